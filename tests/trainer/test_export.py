"""`relight export`: what it writes loads elsewhere, bit for bit, under the names of the model's state_dict."""

import errno
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from relight_trainer.checkpoint import CheckpointFolder, weights_digest
from relight_trainer.flush import _Alone
from relight_trainer.inspect import Unreadable, WrongInput, read
from relight_trainer.inspect.export import export

RELIGHT = [sys.executable, "-m", "relight_operator.cli"]


def model():
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 8))
    net.register_buffer("brief", torch.randn(5).bfloat16())
    net.register_buffer("count", torch.tensor(7))
    net.register_buffer("empty", torch.zeros(0, 2))
    net.tied = torch.nn.Linear(8, 8)
    net.tied.weight = net[2].weight
    return net.to(memory_format=torch.channels_last)


def commit(folder, state):
    checkpoints = CheckpointFolder(folder, job_uid="u", created=5.0, config_hash="h", say=lambda _: None)
    checkpoints.begin_generation(1)
    return checkpoints.save(state, generation=1, step=7, cursor={}, final=True, rank=0, world=1, exchange=_Alone())


def loaded(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("source", ["checkpoint", "pt", "compiled"])
def test_exported_weights_load_into_the_model_bit_for_bit(tmp_path, suffix, source):
    net = model()
    state = {"model": net.state_dict(), "optimizer": torch.optim.SGD(net.parameters(), lr=1).state_dict()}
    if source == "checkpoint":
        commit(tmp_path / "from", state)
    elif source == "compiled":
        torch.save({"state_dict": {f"module._orig_mod.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "from")
    else:
        torch.save(state, tmp_path / "from")

    said = export(read(tmp_path / "from"), tmp_path / f"out{suffix}")

    other = model()
    for tensor in other.state_dict().values():
        tensor.zero_()
    got = loaded(tmp_path / f"out{suffix}")
    other.load_state_dict(got, strict=True)
    for name, tensor in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
        assert got[name].dtype == tensor.dtype
    assert said["tensors"] == len(net.state_dict())
    assert said["elements"] == sum(t.numel() for t in net.state_dict().values())
    assert said["weightsDigest"] == weights_digest(net.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["from", f"out{suffix}"]


def test_the_digest_stands_in_a_safetensors_files_metadata(tmp_path):
    torch.save(model().state_dict(), tmp_path / "a.pt")
    said = export(read(tmp_path / "a.pt"), tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "relight.weightsDigest": said["weightsDigest"]}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda w: {"model": {"a": torch.zeros(2)}, "ema": w},
        lambda w: {"model": {"a": torch.zeros(2)}, "ema": {"shadow": w, "decay": 0.9, "updates": 3}},
        lambda w: {"model": {"a": torch.zeros(2)}, "ema": {"updates": torch.tensor(3.0), "weights": w}},  # ours
        lambda w: {"state_dict": {"a": torch.zeros(2)}, "state_dict_ema": w},  # timm
        lambda w: {  # torch.optim.swa_utils.AveragedModel
            "model": {"a": torch.zeros(2)},
            "ema": {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in w.items()}},
        },
    ],
)
def test_the_moving_average_is_exported_on_request(tmp_path, wrapped):
    torch.save(wrapped({"a": torch.ones(2)}), tmp_path / "x.pt")

    export(read(tmp_path / "x.pt"), tmp_path / "w.pt")
    export(read(tmp_path / "x.pt"), tmp_path / "e.pt", ema=True)

    assert loaded(tmp_path / "w.pt")["a"].tolist() == [0, 0]
    assert loaded(tmp_path / "e.pt")["a"].tolist() == [1, 1]
    assert list(loaded(tmp_path / "e.pt")) == ["a"]


def test_one_of_several_models_is_chosen_by_its_name(tmp_path):
    torch.save({"nets": {"teacher": {"a": torch.ones(1)}, "student": {"a": torch.zeros(1)}}}, tmp_path / "x.pt")

    export(read(tmp_path / "x.pt"), tmp_path / "y.safetensors", key="nets.teacher")

    assert load_file(tmp_path / "y.safetensors")["a"].item() == 1
    with pytest.raises(WrongInput, match="no weights in it; at the top are nets: name one with --key"):
        export(read(tmp_path / "x.pt"), tmp_path / "z.pt")


def test_what_exists_is_replaced_only_on_request_and_a_wrong_name_is_told(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    (tmp_path / "y.pt").write_text("mine")
    with pytest.raises(WrongInput, match="--force replaces it"):
        export(read(tmp_path / "x.pt"), tmp_path / "y.pt")
    assert (tmp_path / "y.pt").read_text() == "mine"
    export(read(tmp_path / "x.pt"), tmp_path / "y.pt", force=True)
    with pytest.raises(WrongInput, match=r"allowed: \*\.safetensors, \*\.pt, \*\.pth"):
        export(read(tmp_path / "x.pt"), tmp_path / "y.onnx")
    with pytest.raises(WrongInput, match=r'none/y.pt": there is no folder "'):
        export(read(tmp_path / "x.pt"), tmp_path / "none/y.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_full_disk_is_said_with_the_files_name_and_leaves_nothing(tmp_path, monkeypatch, suffix):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    torch.save({"a": torch.ones(5000)}, tmp_path / "x.pt")
    source = read(tmp_path / "x.pt")
    (tmp_path / "full").mkdir()
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: Full(path, "x") if mode == "xb" else opened(path, mode))

    with pytest.raises(OSError, match=rf"No space left on device: '.*full/y{suffix}'"):
        export(source, tmp_path / f"full/y{suffix}")
    assert not [*(tmp_path / "full").iterdir()]


def test_a_damaged_checkpoint_is_not_exported(tmp_path):
    path = commit(tmp_path, {"model": model().state_dict()}).path
    shard = path / "shard-0-of-1.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)

    with pytest.raises(Unreadable, match="does not match its checksum: nothing was exported"):
        export(read(path), tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


# ---- diff


def diff(*arguments):
    done = subprocess.run([*RELIGHT, "diff", *arguments, "-o", "json"], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    said = json.loads(done.stdout)
    assert done.returncode == (0 if said["equal"] else 1)
    return said


def test_a_checkpoint_and_its_export_are_equal_and_one_changed_bit_is_not(tmp_path):
    net = model()
    commit(tmp_path / "c", {"model": net.state_dict(), "loop": {"step": 7}})
    export(read(tmp_path / "c"), tmp_path / "w.safetensors")

    said = diff("--weights", tmp_path / "c", tmp_path / "w.safetensors")

    elements = sum(t.numel() for t in net.state_dict().values())
    assert said["equal"]
    assert said["tensors"]["equalElements"] == elements
    with torch.no_grad():
        net[2].weight[1, 2] += 0.5
        net[0].bias[3] = float("nan")
    torch.save(net.state_dict(), tmp_path / "v.pt")
    said = diff(tmp_path / "w.safetensors", tmp_path / "v.pt")
    assert not said["equal"]
    assert said["maxAbs"] == pytest.approx(0.5, abs=1e-6)
    assert {(row["name"], row["differing"]) for row in said["unequal"]} == {
        ("2.weight", 1),
        ("tied.weight", 1),
        ("0.bias", 1),
    }
    assert said["tensors"]["equalElements"] == elements - 3


def test_every_kind_of_difference_is_named(tmp_path):
    a = {
        "s": torch.zeros(2),
        "d": torch.ones(3),
        "gone": torch.ones(1),
        "epoch": 3,
        "same": torch.tensor([1.0, float("nan")]),
    }
    b = {"s": torch.zeros(3), "d": torch.ones(3).half(), "new": torch.ones(1), "epoch": 4, "same": a["same"].clone()}
    torch.save(a, tmp_path / "a.pt")
    torch.save(b, tmp_path / "b.pt")

    said = diff(tmp_path / "a.pt", tmp_path / "b.pt")

    assert (said["onlyA"], said["onlyB"]) == (["gone"], ["new"])
    assert said["shapes"] == [{"name": "s", "a": [2], "b": [3]}]
    assert said["dtypes"] == [{"name": "d", "a": "float32", "b": "float16"}]
    assert said["values"] == [{"name": "epoch", "a": 3, "b": 4}]
    assert said["unequal"] == []
    assert said["tensors"]["equal"] == 2
    words = subprocess.run(
        [*RELIGHT, "diff", tmp_path / "a.pt", tmp_path / "b.pt"], capture_output=True, text=True, check=False
    )
    assert "only in" in words.stdout
    assert words.stdout.splitlines()[-1] == "different"


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.float64, torch.bfloat16, torch.complex64]
)
def test_the_largest_difference_is_exact_for_every_kind_of_number(tmp_path, dtype):
    a = torch.tensor([0, 1, 1, 0]).to(dtype)
    b = torch.tensor([1, 1, 0, 0]).to(dtype)
    if dtype is torch.int64:
        a[3], b[3] = 2**60, 2**60 + 5  # float64 cannot tell these apart
    save_file({"x": a}, tmp_path / "a.safetensors")
    save_file({"x": b}, tmp_path / "b.safetensors")

    said = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors")

    assert said["maxAbs"] == (5 if dtype is torch.int64 else 1)
    assert said["unequal"][0]["differing"] == (3 if dtype is torch.int64 else 2)


def test_the_export_command_tells_the_digest_and_a_wrong_input_by_its_code(tmp_path):
    torch.save(model().state_dict(), tmp_path / "a.pt")
    done = subprocess.run(
        [*RELIGHT, "export", tmp_path / "a.pt", tmp_path / "b.safetensors"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert weights_digest(model().state_dict().items()) in done.stdout
    done = subprocess.run(
        [*RELIGHT, "export", tmp_path / "a.pt", tmp_path / "b.x"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (64, False)
