"""Weights of another training: what is found, what is not, and what is refused."""

import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from relight_trainer.checkpoint import CheckpointFolder, pack
from relight_trainer.config import BadConfig, parse
from relight_trainer.ema import Ema
from relight_trainer.init_from import Report, init_from
from relight_trainer.inspect import Unreadable
from relight_trainer.models.digits_cnn import digits_cnn
from relight_trainer.settings.ema import EmaArguments
from relight_trainer.settings.init_from import InitFrom


def net(seed: int, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    model = digits_cnn(2)
    model.add_module("head", nn.Linear(10, classes))
    return model


def load(model: nn.Module, path: Path | str, **settings: Any) -> Report:
    config = parse({"init_from": {"path": str(path), **settings}})
    assert isinstance(config.init_from, InitFrom)
    return init_from(config.init_from, model)


def equal(a: nn.Module, b: nn.Module) -> set[str]:
    """The names of tensors that are the same in both."""
    other = b.state_dict()
    return {n for n, t in a.state_dict().items() if n in other and torch.equal(t, other[n])}


class Mailbox(dict[str, bytes]):
    def put(self, key: str, value: bytes) -> None:
        self[key] = value

    def get(self, key: str, timeout: float) -> bytes:
        return self[key]


def own_checkpoint(path: Path, model: nn.Module) -> None:
    ema = Ema(EmaArguments(), net(7))
    folder = CheckpointFolder(path, job_uid="u", created=1.0, config_hash="c")
    folder.begin_generation(1)
    state = {"model": model.state_dict(), "ema": ema.state_dict(), "loop": {"step": 3}}
    folder.save(state, generation=1, step=3, cursor={}, final=False, rank=0, world=1, exchange=Mailbox())


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The weights of `net(1)`, in every form that people have them in."""
    model = net(1)
    weights = model.state_dict()
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.save(weights, tmp_path / "plain.pt")
    torch.save({"state_dict": wrapped, "optimizer": optimizer.state_dict(), "epoch": 3}, tmp_path / "nested.pth.tar")
    torch.save({f"_orig_mod.{n}": v for n, v in weights.items()}, tmp_path / "compiled.pth")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "plain.safetensors")
    (tmp_path / "snapshot").write_bytes(pack({"model": weights}))
    own_checkpoint(tmp_path / "job", model)
    return {p.name: p for p in tmp_path.iterdir()}


def test_every_form_of_the_same_weights_gives_the_same_model(files: dict[str, Path]) -> None:
    assert len(files) == 7
    for path in [*files.values(), next(files["job"].glob("step-*"))]:
        model = net(2)
        report = load(model, path)
        assert equal(model, net(1)) == set(model.state_dict()), path
        assert (report.ratio, report.missing, report.unexpected, report.reshaped) == (1.0, (), (), ())
        assert len(report.matched) == len(model.state_dict())


def test_the_average_of_a_checkpoint_can_be_taken_instead(files: dict[str, Path]) -> None:
    model = net(2)
    load(model, files["job"], ema=True)
    assert equal(model, net(7)) == set(model.state_dict())


def test_a_changed_head_stays_fresh_and_the_report_names_it(files: dict[str, Path]) -> None:
    model, fresh = net(2, classes=3), net(2, classes=3)
    report = load(model, files["plain.pt"], policy="shape_tolerant", min_match=0.5)
    assert [r.name for r in report.reshaped] == ["head.weight", "head.bias"]
    assert report.reshaped[0][1:] == ((10, 10), (3, 10))
    assert equal(model, net(1)) == set(model.state_dict()) - {"head.weight", "head.bias"}
    assert {"head.weight", "head.bias"} <= equal(model, fresh)
    assert report.ratio == pytest.approx(20 / 22)
    assert report.dump()["matched"] == report.matched
    assert report.summary() == (
        f"20 of the model's 22 tensors are from {files['plain.pt']}; "
        "head.weight is [10, 10] there and [3, 10] here, head.bias is [10] there and [3] here"
    )


def test_names_are_changed_before_they_are_looked_for(files: dict[str, Path], tmp_path: Path) -> None:
    renamed = {f"encoder.{n}" if not n.startswith("head") else f"fc{n[4:]}": t for n, t in net(1).state_dict().items()}
    torch.save({"nets": {"teacher": renamed}}, tmp_path / "renamed.pt")
    model = net(2)
    rename = [{"pattern": r"^encoder\."}, {"pattern": r"^fc\.(weight|bias)$", "to": r"head.\1"}]
    report = load(model, tmp_path / "renamed.pt", key="nets.teacher", rename=rename)
    assert report.ratio == 1.0
    assert equal(model, net(1)) == set(model.state_dict())
    with pytest.raises(BadConfig, match="two tensors of the file would have one name"):
        load(net(2), files["plain.pt"], rename=[{"pattern": ".*", "to": "x"}])


def test_a_subset_leaves_out_what_the_model_lacks_and_keeps_fresh_what_the_file_lacks(tmp_path: Path) -> None:
    weights = {n: t for n, t in net(1).state_dict().items() if n != "0.weight"}
    torch.save({**weights, "extra": torch.ones(2)}, tmp_path / "other.pt")
    model = net(2)
    report = load(model, tmp_path / "other.pt", policy="subset")
    assert (report.missing, report.unexpected) == (("0.weight",), ("extra",))
    assert equal(model, net(1)) == set(weights)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("strict", r"config.init_from.policy: 0 of the model's 22 tensors are from .*; missing there: 0.weight, .* and 16 more"),
        ("shape_tolerant", r"config.init_from.policy: 0 of the model's 22"),
        ("subset", r"config.init_from.min_match: only 0% match: 0 of the model's 22 .*; found 0.9; did you mean"),
    ],
)  # fmt: skip
def test_a_load_that_would_find_nothing_is_refused_and_changes_nothing(
    tmp_path: Path, policy: str, message: str
) -> None:
    torch.save({f"backbone.{n}": t for n, t in net(1).state_dict().items()}, tmp_path / "other.pt")
    model = net(2)
    with pytest.raises(BadConfig, match=message):
        load(model, tmp_path / "other.pt", policy=policy)
    assert equal(model, net(2)) == set(model.state_dict())


def test_files_older_than_batch_norms_counter_are_whole(tmp_path: Path) -> None:
    weights = {n: t for n, t in net(1).state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "old.pt")
    assert load(net(2), tmp_path / "old.pt").ratio == 1.0


def test_a_strict_load_takes_nothing_of_another_shape(files: dict[str, Path]) -> None:
    model = net(2, classes=3)
    with pytest.raises(
        BadConfig, match=r"config.init_from.policy: 20 of .*; found \"strict\"; allowed: shape_tolerant"
    ):
        load(model, files["plain.pt"])
    assert equal(model, net(2, classes=3)) == set(model.state_dict())


class Evil:
    def __reduce__(self) -> Any:
        return print, ("this must not run",)


def test_code_in_a_file_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": net(1).state_dict(), "evil": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "evil.pkl"):
        with pytest.raises(Unreadable):
            load(net(2), tmp_path / name)
    assert "this must not run" not in capsys.readouterr().out


def test_a_missing_file_and_a_damaged_checkpoint_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"config.init_from: no such file or folder: .*; did you mean .*plain.pt"):
        load(net(2), tmp_path / "plian.pt")
    with pytest.raises(
        BadConfig, match=r"config.init_from: .*: no \"teacher\" in it; there are state_dict, optimizer, epoch"
    ):
        load(net(2), files["nested.pth.tar"], key="teacher")
    [shard] = files["job"].glob("step-*/*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Unreadable):
        load(net(2), files["job"])


def test_a_url_is_fetched_for_as_long_as_it_is_read(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(files["plain.safetensors"]), "/bucket/r18.safetensors")
    memory.put(str(files["job"]), "/bucket/job", recursive=True)
    scratch = files["plain.pt"].parent / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    for url in ("memory://bucket/r18.safetensors", "memory://bucket/job", f"file://{files['plain.pt']}"):
        model = net(2)
        assert load(model, url).path == url
        assert equal(model, net(1)) == set(model.state_dict())
    assert list(scratch.iterdir()) == []
    for url in ("memory://bucket/r19.safetensors", "nowhere://bucket/r18.safetensors"):
        with pytest.raises(BadConfig, match=r"config.init_from.path: cannot be fetched"):
            load(net(2), url)


def test_other_dtypes_and_strides_are_converted(tmp_path: Path) -> None:
    model = net(1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.save(model.state_dict(), tmp_path / "strided.pt")
    other = net(2)
    load(other, tmp_path / "strided.pt")
    assert equal(other, net(1)) == set(other.state_dict())
    halves = {n: t.half() if t.is_floating_point() else t for n, t in net(1).state_dict().items()}
    save_file(halves, tmp_path / "half.safetensors")
    load(other, tmp_path / "half.safetensors")
    assert torch.equal(other.state_dict()["0.weight"], halves["0.weight"].float())


def pair(seed: int) -> nn.ModuleDict:
    return nn.ModuleDict({"teacher": net(seed), "student": net(seed + 10)})


def test_a_file_can_be_for_a_part_of_the_model_all_of_which_must_be_found(
    files: dict[str, Path], tmp_path: Path
) -> None:
    into = {"rename": [{"pattern": "^", "to": "teacher."}], "only": "teacher", "min_match": 1.0}
    model = pair(2)
    report = load(model, files["plain.pt"], **into)
    assert report.ratio == 1.0
    assert (report.missing, report.unexpected) == ((), ())
    assert equal(model["teacher"], net(1)) == set(net(1).state_dict())
    assert equal(model["student"], net(12)) == set(net(12).state_dict())

    both = tmp_path / "both.pt"  # which has a student too, that is not wanted
    torch.save(pair(5).state_dict(), both)
    assert load(model, both, only="teacher").ratio == 1.0
    assert equal(model["teacher"], net(5)) == set(net(5).state_dict())
    assert equal(model["student"], net(12)) == set(net(12).state_dict())


def test_a_part_that_is_not_all_there_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    weights = {n: t for n, t in net(1).state_dict().items() if n != "0.weight"}
    torch.save(weights, tmp_path / "less.pt")
    into: dict[str, Any] = {"rename": [{"pattern": "^", "to": "teacher."}], "only": ["teacher.*"]}
    with pytest.raises(BadConfig, match=r"21 of the model's 22 tensors .*; missing there: teacher.0.weight"):
        load(pair(2), tmp_path / "less.pt", **into)
    with pytest.raises(BadConfig, match=r"config.init_from.min_match: only 95% match: 21 of the model's 22"):
        load(pair(2), tmp_path / "less.pt", policy="subset", min_match=1.0, **into)
    with pytest.raises(BadConfig, match=r'init_from.only: fits no name in the model; found "techer"; allowed: teacher'):
        load(pair(2), files["plain.pt"], only="techer")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"path": "x", "policy": "shape-tolerant"}, 'did you mean "shape_tolerant"?'),
        ({"path": "x", "rename": [{"pattern": "("}]}, "config.init_from.rename[0].pattern: not a regular expression"),
        ({"path": "x", "min_match": 2}, "config.init_from.min_match: out of range; found 2; allowed: 1.0 or less"),
        ({}, "config.init_from.path: missing"),
    ],
)
def test_wrong_settings_are_answered_in_words(value: Any, text: str) -> None:
    with pytest.raises(BadConfig) as caught:
        parse({"init_from": value})
    assert text in str(caught.value)
