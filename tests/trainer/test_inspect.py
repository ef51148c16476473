"""`relight inspect`: whatever the file, what it says is what torch says; no code of the file is run; little memory."""

import argparse
import json
import math
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import worlds
from safetensors.torch import save_file
from test_train_exact import job

from relight_trainer.checkpoint import CheckpointFolder, Snapshots, pack
from relight_trainer.flush import _Alone
from relight_trainer.inspect import Unreadable, WrongInput, read
from relight_trainer.inspect.dtypes import ITEM_SIZES, QUANTIZED, SAFETENSORS
from relight_trainer.inspect.report import report, text
from relight_trainer.inspect.statistics import Bytes
from relight_trainer.inspect.weights import weights

RELIGHT = [sys.executable, "-m", "relight_operator.cli"]


def model():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(8, 4)
    )
    return layers.to(memory_format=torch.channels_last)


def trained():
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.25)
    net(torch.randn(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    return net, {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.5}


def commit(folder, state, step=7, final=False, world=1):
    checkpoints = CheckpointFolder(folder, job_uid="u", created=5.0, config_hash="h", say=lambda _: None)
    checkpoints.begin_generation(1)
    return checkpoints.save(
        state, generation=1, step=step, cursor={"epoch": 2}, final=final, rank=0, world=world, exchange=_Alone()
    )


def as_pt(path, state):
    torch.save(state, path)


def as_legacy(path, state):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def as_dcp(path, state):
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(state, checkpoint_id=path)


def as_checkpoint(path, state):
    commit(path, state).path.rename(path.with_name("c"))
    path.joinpath("fence.json").unlink()
    path.rmdir()
    path.with_name("c").rename(path)


def as_snapshot(path, state):
    path.write_bytes(pack(state))


@pytest.mark.parametrize("save", [as_pt, as_legacy, as_dcp, as_checkpoint, as_snapshot])
def test_every_format_gives_the_numbers_that_torch_gives(tmp_path, save):
    net, state = trained()
    save(tmp_path / "file", state)

    contents = read(tmp_path / "file")
    said = report(contents)

    rows = {row["name"]: row for row in said["tensors"]}
    expected = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    for index, slots in state["optimizer"]["state"].items():
        separator = f".{index}." if "optimizer.state.0.exp_avg" in rows else f"[{index}]."
        expected |= {f"optimizer.state{separator}{slot}": tensor for slot, tensor in slots.items()}
    assert set(rows) == set(expected)
    for name, tensor in expected.items():
        row, exact = rows[name], tensor.double()
        assert (row["shape"], row["dtype"]) == (list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        assert row["norm"] == pytest.approx(exact.norm().item(), rel=1e-14)
        assert (row["min"], row["max"]) == (exact.min().item(), exact.max().item())
        assert row["mean"] == pytest.approx(exact.mean().item(), rel=1e-12, abs=1e-18)
        assert (row["nan"], row["inf"]) == (0, 0)
    assert said["weights"]["elements"] == sum(t.numel() for t in net.state_dict().values())
    assert said["total"]["elements"] == sum(t.numel() for t in expected.values())
    assert said["total"]["bytes"] == sum(t.numel() * t.element_size() for t in expected.values())
    assert said["values"]["epoch"] == 3
    assert dict(weights(contents)).keys() == net.state_dict().keys()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert "8x3x3x3" in text(said)


def save_sharded(_, path):
    from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor

    torch.distributed.init_process_group("gloo")
    mesh = DeviceMesh("cpu", [0, 1])
    full = torch.arange(35.0).reshape(5, 7)
    dcp.save(
        {
            "model": {
                "rows": distribute_tensor(full, mesh, [Shard(0)]),
                "columns": distribute_tensor(full, mesh, [Shard(1)]),
            }
        },
        checkpoint_id=path,
    )


def test_a_tensor_that_several_ranks_have_saved_is_one(tmp_path):
    worlds.run(save_sharded, tmp_path / "dcp", root=tmp_path, job=job(tmp_path), ranks=2)

    contents = read(tmp_path / "dcp")

    assert {(row["name"], row["norm"]) for row in report(contents)["tensors"]} == {
        (f"model.{name}", math.sqrt(sum(n * n for n in range(35)))) for name in ("rows", "columns")
    }
    for _, ref in weights(contents):
        assert len(ref.pieces) == 2
        with Bytes() as data:
            assert data.whole(ref).tolist() == torch.arange(35.0).reshape(5, 7).tolist()


def test_an_optimizer_is_summed_up(tmp_path):
    _, state = trained()
    torch.save(state, tmp_path / "a.pt")

    [optimizer] = report(read(tmp_path / "a.pt"))["optimizers"]

    assert optimizer["name"] == "optimizer"
    assert optimizer["parameters"] == 6
    assert optimizer["groups"][0]["lr"] == 0.25
    assert optimizer["groups"][0]["parameters"] == 6
    assert optimizer["slots"]["exp_avg"]["elements"] == 276


def test_a_checkpoint_folder_says_what_its_manifest_says_and_whether_it_is_whole(tmp_path):
    checkpoint = commit(tmp_path, {"model": model().state_dict(), "odd": (1, float("inf"), {2: "two"})}, final=True)

    said = report(read(tmp_path))  # the job's folder: the newest in it

    assert said["kind"] == "Relight checkpoint (final)"
    assert (said["facts"]["step"], said["facts"]["generation"], said["facts"]["final"]) == (7, 1, True)
    assert said["values"] == {"odd": [1, "inf", {"2": "two"}]} or said["values"]["odd[1]"] == "inf"
    assert said["damage"] == []
    shard = checkpoint.path / "shard-0-of-1.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert report(read(checkpoint.path))["damage"] == ["shard-0-of-1.safetensors does not match its checksum"]


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_a_checkpoint_that_has_lost_a_file_is_no_folder_of_weights(tmp_path, name):
    path = commit(tmp_path, {"model": model().state_dict()}).path
    (path / name).unlink()

    with pytest.raises(Unreadable, match=f"{name} is missing"):
        read(path)


def test_a_members_snapshot_is_read_where_it_lies(tmp_path):
    snapshots = Snapshots(tmp_path, job_uid="u", config_hash="h")
    snapshots.write({"model": model().state_dict(), "loop": {"step": 4}}, generation=1, step=4)

    contents = read(tmp_path / "slot-0.safetensors")

    assert contents.kind == "Relight snapshot"
    assert dict(weights(contents)).keys() == model().state_dict().keys()


DTYPES = [getattr(torch, name) for name in ITEM_SIZES if hasattr(torch, name) and name not in QUANTIZED]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_decoded_as_torch_decodes_it(tmp_path, dtype):
    size = torch.empty(0, dtype=dtype).element_size()
    if dtype.is_complex or size > 2:
        tensor = (torch.randn(300) * 9).to(dtype)
    elif dtype is torch.bool:
        tensor = torch.arange(7) % 2 == 0
    else:  # every bit pattern
        carrier = torch.arange(256 ** min(size, 2), dtype=torch.int64).to(torch.uint8 if size == 1 else torch.int16)
        tensor = carrier.view(dtype)
    torch.save({"x": tensor}, tmp_path / "x.pt")

    [row] = report(read(tmp_path / "x.pt"))["tensors"]

    exact = tensor.to(torch.complex128).abs() if dtype.is_complex else tensor.to(torch.float64)
    good = exact[exact.isfinite()]
    assert row["dtype"] == str(dtype).removeprefix("torch.")
    assert (row["nan"], row["inf"]) == (int(exact.isnan().sum()), int(exact.isinf().sum()))
    assert row["norm"] == pytest.approx(good.norm().item(), rel=1e-12)
    assert (row["min"], row["max"]) == (pytest.approx(good.min().item()), pytest.approx(good.max().item()))


def test_safetensors_dtypes_are_those_that_the_library_writes(tmp_path):
    for name in set(SAFETENSORS.values()) - {"float8_e8m0fnu"}:
        if hasattr(torch, name):
            save_file({"x": torch.zeros(4, dtype=getattr(torch, name))}, tmp_path / "x.safetensors")
            assert read(tmp_path / "x.safetensors").tensors()[0][1].dtype == name


def test_nan_and_inf_are_counted_and_told(tmp_path):
    bad = torch.tensor([1.0, math.nan, math.inf, -math.inf, 2.0])
    save_file({"bad": bad, "good": torch.ones(2), "none": torch.zeros(0, 3)}, tmp_path / "x.safetensors")

    said = report(read(tmp_path / "x.safetensors"))

    rows = {row["name"]: row for row in said["tensors"]}
    assert (rows["bad"]["nan"], rows["bad"]["inf"], rows["bad"]["max"]) == (1, 2, 2.0)
    assert rows["bad"]["norm"] == pytest.approx(math.sqrt(5))
    assert (rows["none"]["norm"], rows["none"]["min"]) == (0.0, None)
    assert said["notes"] == ["1 of 3 tensors hold NaN or Inf: bad"]


def test_views_of_one_storage_are_measured_each_and_stored_once(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"base": base, "tied": base, "column": base[:, 1], "twice": torch.ones(1).expand(5)}, tmp_path / "x.pt")

    said = report(read(tmp_path / "x.pt"))

    rows = {row["name"]: row for row in said["tensors"]}
    assert rows["column"]["norm"] == pytest.approx(math.sqrt(1 + 25 + 81))
    assert rows["twice"]["norm"] == pytest.approx(math.sqrt(5))
    assert (said["total"]["bytes"], said["total"]["stored"]) == (48 + 48 + 12 + 20, 48 + 12 + 20)


def test_a_module_that_was_saved_whole_has_its_state_dicts_names(tmp_path):
    torch.save(model(), tmp_path / "whole.pt")

    contents = read(tmp_path / "whole.pt")

    assert dict(weights(contents)).keys() == model().state_dict().keys()
    assert "torch.nn.modules.conv.Conv2d" in contents.notes[0]


def test_classes_are_named_and_not_loaded(tmp_path):
    torch.save({"args": argparse.Namespace(lr=1), "score": np.float64(2), "w": torch.ones(1)}, tmp_path / "x.pt")

    said = report(read(tmp_path / "x.pt"))

    assert said["values"]["args"] == "<argparse.Namespace, not loaded>"
    assert "argparse.Namespace" in said["notes"][0]


class Attack:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "args", "named"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open('{}', 'w')",), "builtins.eval"),
        (exec, ("open('{}', 'w')",), "builtins.exec"),
        (subprocess.run, (["touch", "{}"],), r"(subprocess|commands)\.run"),
        (__import__, ("os",), "builtins.__import__"),
        (getattr, ("x", "upper"), "builtins.getattr"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, function, args, named, legacy):
    witness = tmp_path / "witness"
    args = tuple([part.format(witness) for part in a] if isinstance(a, list) else a.format(witness) for a in args)
    file = tmp_path / "evil.pt"
    torch.save({"w": torch.ones(1), "x": Attack(function, *args)}, file, _use_new_zipfile_serialization=not legacy)

    with pytest.raises(Unreadable, match=f"evil.pt: it names {named}: torch.load .* would run code") as error:
        read(file)

    assert error.value.exit_code == 65
    assert not witness.exists()


def test_a_member_of_an_enumeration_is_no_attack_however_python_spells_it(tmp_path):
    file = tmp_path / "member.pt"
    torch.save({"w": torch.ones(1), "x": Attack(getattr, argparse.Namespace, "MEMBER")}, file)
    assert "argparse.Namespace" in report(read(file))["notes"][0]


def test_a_function_nobody_knows_is_not_run_either(tmp_path):
    torch.save({"w": torch.ones(1), "x": Attack(torch.save, 1, str(tmp_path / "witness"))}, tmp_path / "x.pt")

    assert len(read(tmp_path / "x.pt").tensors()) == 1
    assert not (tmp_path / "witness").exists()


def head(text, tail=b""):
    return struct.pack("<Q", len(text)) + text + tail


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"hello world, hello", "neither a torch file nor safetensors"),
        (head(b'{"a": 3'), "not a safetensors file"),
        (struct.pack("<Q", 1 << 60) + b"{" + b" " * 20, "its header cannot be that long"),
        (head(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"1234"), "a lies beyond the end"),
        (head(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"1234"), "a lies beyond the end"),
        (
            head(b'{"a":{"dtype":"Q7","shape":[2],"data_offsets":[0,4]}}', b"1234"),
            "a dtype that is not known here: 'Q7'",
        ),
        (pickle.dumps({"a": 1}), "a pickle, but not torch's"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "its pickle is damaged"),
        (b"PK\x03\x04 and nothing more", "damaged"),
    ],
)
def test_what_is_no_state_is_refused_in_words(tmp_path, data, words):
    (tmp_path / "x").write_bytes(data)

    with pytest.raises(Unreadable, match=words):
        read(tmp_path / "x")


def test_a_torch_file_cut_anywhere_is_refused_in_words(tmp_path):
    torch.save({"a": torch.randn(50), "b": OrderedDict(c=torch.randn(3))}, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()

    for size in range(4, len(data), 37):
        (tmp_path / "cut.pt").write_bytes(data[:size])
        with pytest.raises(Unreadable, match=r"cut\.pt: "):
            report(read(tmp_path / "cut.pt"))


@pytest.mark.parametrize("save", [as_pt, as_legacy, as_snapshot])
def test_a_file_with_wrong_bytes_is_read_or_refused_in_words(tmp_path, save):
    save(tmp_path / "sound", trained()[1])
    sound = (tmp_path / "sound").read_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(150):
        data = bytearray(sound)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(rng.choice((1200, len(data))))] = rng.randrange(256)
        (tmp_path / "wrong").write_bytes(data)
        try:
            json.dumps(report(read(tmp_path / "wrong")), allow_nan=False)
        except (Unreadable, WrongInput):
            refused += 1
    assert refused > 20


def test_a_zip_file_that_is_not_torchs_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/b", "c")
    with pytest.raises(Unreadable, match=r"data.pkl is missing"):
        read(tmp_path / "x.zip")


def test_an_index_must_not_lead_out_of_its_folder(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(Unreadable, match="outside the folder"):
        read(tmp_path)


def test_sharded_safetensors_are_one(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.ones(3)}, tmp_path / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    assert [name for name, _ in read(tmp_path).tensors()] == ["a", "b"]
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(Unreadable, match=r"model-2.safetensors is missing"):
        read(tmp_path)


def test_wrong_names_get_the_right_ones(tmp_path):
    torch.save({"net": {"a": torch.ones(1)}, "lr": 1}, tmp_path / "weights.pt")
    with pytest.raises(WrongInput, match=r'did you mean ".*weights\.pt"'):
        read(tmp_path / "weight.pt")
    with pytest.raises(WrongInput, match=r'--only "x\.\*" matches none of the 1 tensors'):
        report(read(tmp_path / "weights.pt"), pattern="x.*")
    with pytest.raises(WrongInput, match='no "nett" in it; there are net, lr'):
        weights(read(tmp_path / "weights.pt"), key="nett")
    with pytest.raises(WrongInput, match="no EMA of the weights in it; at the top are net, lr"):
        weights(read(tmp_path / "weights.pt"), ema=True)
    assert [name for name, _ in weights(read(tmp_path / "weights.pt"), key="net")] == ["a"]


def test_a_name_cannot_steer_the_terminal(tmp_path):
    save_file({"a\x1b[2J": torch.ones(1)}, tmp_path / "x.safetensors")

    assert "\x1b" not in text(report(read(tmp_path / "x.safetensors")))


# Not ru_maxrss: that begins with the parent's.
MEASURED = """
import sys
from relight_trainer.inspect.__main__ import main
try:
    main()
finally:
    [peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print("torch" in sys.modules, peak, file=sys.stderr)
"""


def inspect_apart(file):
    """The answer of the process that reads a file, and the most memory that it had, in MiB."""
    limits = {"memory": 1 << 30, "seconds": 60}
    request = {"what": "report", "paths": [str(file)], "limits": limits, "options": {"numbers": True, "pattern": "*"}}
    command = [sys.executable, "-c", MEASURED]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False, timeout=120)
    torch_imported, kilobytes = done.stderr.split()[-2:]
    assert torch_imported == "False"
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), int(kilobytes) / 1024


def sparse_torch_file(path, megabytes):
    parts = {f"w{i}": torch.empty(megabytes // 4, 1 << 18) for i in range(4)}  # untouched: no memory
    with torch.serialization.skip_data():
        torch.save({"model": parts}, path)
    assert path.stat().st_size > megabytes << 20


def test_a_large_file_takes_little_memory(tmp_path):
    _, nothing = inspect_apart(tmp_path)
    sparse_torch_file(tmp_path / "large.pt", 256)

    answer, megabytes = inspect_apart(tmp_path / "large.pt")

    assert answer["result"]["total"]["elements"] == 64 << 20
    assert megabytes < 200
    assert megabytes - nothing < 80  # of 256


@pytest.mark.slow
def test_two_gigabytes_take_less_than_200_mb(tmp_path):
    sparse_torch_file(tmp_path / "large.pt", 2048)

    _, megabytes = inspect_apart(tmp_path / "large.pt")

    assert megabytes < 200


def test_the_command_ends_with_what_it_found(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "x.pt")
    (tmp_path / "bad").write_bytes(b"not a file of tensors")
    codes = {}
    for name in ("x.pt", "y.pt", "bad"):
        done = subprocess.run([*RELIGHT, "inspect", tmp_path / name], capture_output=True, text=True, check=False)
        codes[name] = done.returncode
        assert "Traceback" not in done.stderr
        assert done.returncode == 0 or done.stderr.startswith("error: ")
    assert codes == {"x.pt": 0, "y.pt": 64, "bad": 65}
