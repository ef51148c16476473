"""`relight inspect`, `diff` and `export` of files that were made to cost memory or time, or to mislead."""

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import deque

import pytest
import torch
import torch.distributed.checkpoint as dcp

from relight_trainer.inspect import Unreadable, WrongInput, read
from relight_trainer.inspect.compare import compare, text
from relight_trainer.inspect.export import export
from relight_trainer.inspect.report import plain, report

# The peak of the process that reads, which is a child of the command's.
MEASURED = """
import resource, sys
from relight_operator.cli.main import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
"""


def relight(*arguments):
    """(the process, MiB at most of the child that read): within a minute, or it is not bounded."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    *lines, peak = done.stderr.splitlines()
    done.stderr = "\n".join(lines)
    return done, int(peak) / 1024


def torch_zip(path, data, byteorder=b"little", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/byteorder", byteorder, compress_type=compression)
        archive.writestr("x/version", b"3")


def memo_bomb():
    """Python's unpickler makes a table as long as the largest index that a pickle names."""
    return b"\x80\x02]" + b"r" + struct.pack("<I", 1 << 28) + b"."


def folded(leaf, depth, make):
    for _ in range(depth):
        leaf = make(leaf)
    return leaf


def pickled(tree):
    return pickle.dumps(tree, protocol=2)


def refused(done, code, words):
    assert "Traceback" not in done.stderr
    assert words in done.stderr
    assert (done.returncode, done.stdout) == (code, "")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_names_a_far_place_in_memory_is_refused(tmp_path, legacy):
    file = tmp_path / "memo.pt"
    file.write_bytes(memo_bomb()) if legacy else torch_zip(file, memo_bomb())

    done, megabytes = relight("inspect", file)

    refused(done, 65, "it takes more than 1024 MiB of memory to read; --read-memory allows more")
    assert megabytes < 300  # of 4,100 without a bound


def test_a_key_whose_hash_takes_for_ever_ends_after_the_seconds_allowed(tmp_path):
    key = folded((1,), 60, lambda t: (t, t))
    data = io.BytesIO()
    # Written by hand: to make such a dictionary here would take for ever, too.
    pickle._Pickler(data, protocol=2).dump([key])
    torch_zip(tmp_path / "hash.pt", data.getvalue()[:-1].replace(b"]", b"}", 1)[:-1] + b"K\x01s.")

    done, _ = relight("inspect", tmp_path / "hash.pt", "--read-seconds", 1)

    refused(done, 65, "it takes more than 1 s of the processor's time to read; --read-seconds allows more")


FOLDS = {
    "list": lambda t: [t, t],
    "tuple": lambda t: (t, t),
    "dict": lambda t: {"a": t, "b": t},
    "deque": lambda t: deque([t, t]),
}


def folded_file(path, fold, leaf, *, legacy):
    torch.save({"x": folded(leaf, 40, FOLDS[fold])}, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_tensor_that_is_named_two_to_the_forty_times_is_refused(tmp_path, fold, legacy, monkeypatch):
    monkeypatch.setattr("relight_trainer.inspect.contents._MOST_LEAVES", 10_000)
    contents = read(folded_file(tmp_path / "folded.pt", fold, torch.ones(2), legacy=legacy))

    with pytest.raises(Unreadable, match="it names more than 10,000 values: some of them many times over"):
        report(contents)


@pytest.mark.parametrize("fold", ["list", "tuple", "deque"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_value_that_holds_itself_two_to_the_forty_times_is_clipped(tmp_path, fold, legacy):
    contents = read(folded_file(tmp_path / "folded.pt", fold, 1, legacy=legacy))

    assert "..." in json.dumps(report(contents)["values"])


def test_a_container_that_holds_itself_is_told_and_clipped(tmp_path):
    ring = [1]
    ring.append(ring)
    (tmp_path / "ring.pt").write_bytes(b"")
    torch_zip(tmp_path / "ring.pt", pickled({"ring": ring}))

    assert "..." in json.dumps(report(read(tmp_path / "ring.pt"))["values"])


@pytest.mark.parametrize(
    "value", [10**5000, (10**5000, 1), {(10**5000,): 1}, deque([10**5000])], ids=["int", "tuple", "key", "deque"]
)
def test_a_number_that_python_does_not_write_in_decimal_is_told(value):
    assert len(json.dumps(plain(value))) < 1000


def test_a_byte_order_of_gigabytes_is_not_unpacked(tmp_path):
    torch_zip(tmp_path / "order.pt", pickled({}), b"little" + b" " * (64 << 20), zipfile.ZIP_DEFLATED)

    done, megabytes = relight("inspect", tmp_path / "order.pt")

    refused(done, 65, "damaged: byteorder is too long")
    assert megabytes < 100


def test_a_tensor_that_repeats_its_bytes_is_shown_and_not_measured(tmp_path):
    torch.save({"wide": torch.ones(1).expand(1 << 20, 1 << 20), "w": torch.ones(3)}, tmp_path / "wide.pt")

    done, _ = relight("inspect", tmp_path / "wide.pt")

    assert done.returncode == 0, done.stderr
    assert "note: 1 tensors were not measured" in done.stdout
    assert "1048576x1048576" in done.stdout


def test_a_tensor_that_is_named_many_times_is_read_once(tmp_path):
    torch.save([torch.ones(1 << 18)] * 2000, tmp_path / "many.pt")  # 2 GB, if each were read

    rows = report(read(tmp_path / "many.pt"))["tensors"]

    assert len(rows) == 2000
    assert all(row["mean"] == 1 for row in rows)


def test_limits_leave_room_for_a_model_of_many_tensors(tmp_path):
    """The negative control: 5,000 parameters with Adam's state."""
    weights = {f"layer{i}.weight": torch.zeros(1) for i in range(5_000)}
    state = {i: {"step": torch.zeros(()), "exp_avg": torch.zeros(1)} for i in range(5_000)}
    torch.save({"model": weights, "optimizer": {"state": state, "param_groups": []}}, tmp_path / "many.pt")

    done, _ = relight("inspect", tmp_path / "many.pt", "--quick", "--read-memory", 256, "--read-seconds", 30)

    assert done.returncode == 0, done.stderr
    assert "all tensors: 15000 tensors" in done.stdout


QUANTIZED = {
    "per tensor": lambda: torch.quantize_per_tensor(torch.arange(6.0), 0.5, 3, torch.qint8),
    "per channel": lambda: torch.quantize_per_channel(
        torch.ones(2, 3), torch.tensor([0.5, 0.25]), torch.tensor([1, 2]), 0, torch.quint8
    ),
}
SPARSE = {
    "coo": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


@pytest.mark.filterwarnings(
    "ignore:torch.*quantize", "ignore:.*prototype stage", "ignore:.*deprecated", "ignore:Sparse CSR"
)
@pytest.mark.parametrize("kind", [*QUANTIZED, *SPARSE])
def test_a_tensor_made_of_tensors_is_shown_and_never_exported_as_its_parts(tmp_path, kind):
    tensor = {**QUANTIZED, **SPARSE}[kind]()
    torch.save({"net.w": tensor, "net.b": torch.ones(2)}, tmp_path / "made.pt")

    contents = read(tmp_path / "made.pt")

    names = [name for name, _ in contents.tensors()]
    assert "net.b" in names
    assert any(name.startswith("net.w") for name in names)
    json.dumps(report(contents), allow_nan=False)
    with pytest.raises(WrongInput, match=r"net\.w is a .*, and no plain tensor: save it dense"):
        export(contents, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.filterwarnings("ignore:torch.*quantize", "ignore:.*deprecated")
def test_the_integers_of_a_quantized_tensor_are_those_of_torch(tmp_path):
    tensor = QUANTIZED["per tensor"]()
    torch.save({"w": tensor}, tmp_path / "q.pt")

    [row] = report(read(tmp_path / "q.pt"))["tensors"]

    assert (row["name"], row["dtype"]) == ("w.int_repr", "qint8")
    assert (row["min"], row["max"]) == (tensor.int_repr().min().item(), tensor.int_repr().max().item())


def test_two_tensors_of_one_name_are_refused_by_name(tmp_path):
    torch.save({"model": {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}}, tmp_path / "twice.pt")

    with pytest.raises(WrongInput, match=r'2 tensors in it are named "a\.b"'):
        export(read(tmp_path / "twice.pt"), tmp_path / "out.pt")


def test_a_difference_that_is_no_number_is_told_as_such(tmp_path):
    torch.save({"w": torch.full((36,), float("nan"))}, tmp_path / "a.pt")
    torch.save({"w": torch.ones(36)}, tmp_path / "b.pt")
    torch.save({"w": torch.cat([torch.ones(35) * 3, torch.full((1,), float("inf"))])}, tmp_path / "c.pt")

    def said(a, b):
        return text(compare(read(tmp_path / a), read(tmp_path / b))).splitlines()[0]

    assert said("a.pt", "b.pt") == "w: 36 of 36 differ, 36 of them because one is NaN or infinite"
    assert said("b.pt", "c.pt") == "w: 36 of 36 differ, 1 of them because one is NaN or infinite, the others by up to 2"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:.*single process")
def test_a_distributed_checkpoint_with_a_hole_is_refused(tmp_path):
    """What nobody wrote would be told, and exported, as whatever was in memory."""
    dcp.save({"w": torch.ones(4, 4)}, checkpoint_id=tmp_path / "dcp")
    metadata = (tmp_path / "dcp" / ".metadata").read_bytes()
    tree = pickle.loads(metadata)
    tree.state_dict_metadata["w"].size = torch.Size([8, 4])
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(tree))

    with pytest.raises(Unreadable, match="w is not whole"):
        read(tmp_path / "dcp")


@pytest.mark.parametrize("change", [{"created": 1e300}, {"created": "x"}, {"created": float("nan")}])
def test_a_manifest_of_another_time_is_damaged(tmp_path, change):
    manifest = {
        "files": {}, "final": False, "world": 1, "config_hash": "", "job_uid": "", "versions": {}, "cursor": {},
        "order": {"step": 1, "generation": 1, "created": 1.0} | change,
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "state.json").write_text(json.dumps({"state": {}, "views": []}))

    with pytest.raises(Unreadable, match=r"manifest\.json or state\.json is damaged"):
        read(tmp_path)
