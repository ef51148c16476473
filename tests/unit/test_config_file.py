"""Configurations from files and the command line, and what they name."""

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from relight_operator.api.validate import load_job
from relight_operator.cli.validate import arithmetic
from relight_operator.errors import InvalidJob
from relight_trainer import registry
from relight_trainer.config import BadConfig, check, parse
from relight_trainer.config_file import is_bare, load, merged, with_sets
from relight_trainer.settings.model import MODELS
from relight_trainer.settings.optimizer import Sgd

JOB = "apiVersion: relight.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: j}\nspec: {trainer: {config: %s}}\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_extends_others_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base" / "all.yaml", "train: {seed: 7, duration: 3ep}\noptimizer: {type: sgd, momentum: 0.5}\n")
    write(tmp_path / "base" / "mid.yaml", "extends: all.yaml\ntrain: {duration: 4ep}\n")
    file = write(tmp_path / "mine.yaml", "extends: base/mid.yaml\noptimizer: {type: adamw}\ntrain: {log_every: 3}\n")
    config = load(file, ["train.log_every=5", "evaluate.every=1ep"])
    assert (config.train.seed, str(config.train.duration), config.train.log_every) == (7, "4ep", 5)
    assert config.optimizer.type == "adamw"
    assert str(config.evaluate.every) == "1ep"
    assert is_bare(file)


def test_a_job_extends_and_takes_settings_too(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "train: {seed: 7}\n")
    file = write(tmp_path / "job.yaml", JOB % "{extends: base.yaml, train: {log_every: 2}}")
    assert load_job(file, ["train.duration=2ep"]).spec.trainer.config == {
        "train": {"seed": 7, "log_every": 2, "duration": "2ep"}
    }
    assert load(file).train.seed == 7
    assert not is_bare(file)


@pytest.mark.parametrize(
    ("text", "sets", "said"),
    [
        ("extends: none.yaml", [], 'config.extends: no such file; found "{0}/none.yaml"'),
        ("extends: mine.yml", [], 'did you mean "mine.yaml"?'),
        ("extends: other.yaml", [], "config.extends: goes in a circle: other.yaml -> mine.yaml -> other.yaml"),
        ("extends: 5", [], "config.extends: wrong type; found 5"),
        ("{}", ["train.duration"], "config: not a setting"),
        (
            "{}",
            ["train.duratoin=5ep"],
            'config.train.duratoin: unknown field; found "duratoin"; did you mean "duration"?',
        ),
        ("{}", ["train.seed={"], "config.train.seed: in --set"),
        ("hooks: [{type: 'a:b'}]", ["hooks.1.type=c:d"], 'config.hooks: no such item; found "1"; allowed: 0 to 0'),
        ("train: {seed: 1}", ["train.seed.x=1"], "config.train.seed: has no field x"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, sets: list[str], said: str) -> None:
    write(tmp_path / "other.yaml", "extends: mine.yaml")
    file = write(tmp_path / "mine.yaml", text)
    with pytest.raises(BadConfig) as caught:
        load(file, sets)
    assert said.format(tmp_path) in str(caught.value)
    with pytest.raises(InvalidJob):
        load_job(write(tmp_path / "job.yaml", JOB % "{extends: none.yaml}"))


def test_a_setting_in_a_section_that_is_left_out_keeps_its_default_type(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("{}")
    config = load(tmp_path / "empty.yaml", ["optimizer.lr=0.05", "model.width=8", "schedule.type=constant"])
    assert config.optimizer == Sgd(lr=0.05)
    assert (config.model.type, config.schedule.type) == ("digits_cnn", "constant")


def test_settings_reach_into_lists_and_make_what_is_missing() -> None:
    assert with_sets({"a": [{"b": 1}]}, ["a.0.b=2", "c.d.e=[1, x]"]) == {"a": [{"b": 2}], "c": {"d": {"e": [1, "x"]}}}


def test_merging_keeps_what_is_not_spoken_of() -> None:
    assert merged({"a": {"type": "x", "k": 1}}, {"a": {"k": 2}}) == {"a": {"type": "x", "k": 2}}
    assert merged({"a": {"type": "x", "k": 1}}, {"a": {"type": "y"}}) == {"a": {"type": "y"}}
    assert merged([1], [2]) == [2]


MODULE = """
from relight_trainer.registry import register

def net(width, depth=2, *, bias=True): return ("net", width, depth, bias)
class Outer:
    class Inner:
        def __init__(self, **anything): self.anything = anything
@register("fancy")
def _made(size): return ("fancy", size)
number = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    write(tmp_path / "some_nets.py", MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("some_nets", None)
    registry._registered.clear()


def checked(model: dict[str, Any]) -> str:
    config = parse({"model": model})
    try:
        check(config)
    except BadConfig as error:
        return str(error)
    return ""


@pytest.mark.usefixtures("module")
def test_anything_importable_can_be_named() -> None:
    def built(model: dict[str, Any]) -> Any:
        assert checked(model) == ""
        return registry.build(MODELS, parse({"model": model}).model)

    assert built({"type": "some_nets:net", "width": 3}) == ("net", 3, 2, True)
    assert built({"type": "some_nets:fancy", "size": 4}) == ("fancy", 4)
    assert built({"type": "some_nets:Outer.Inner", "a": [1]}).anything == {"a": [1]}


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"type": "some_nets:net", "widht": 3}, 'config.model.widht: unknown field; found "widht"; did you mean "width"? allowed: width, depth, bias'),
        ({"type": "some_nets:net"}, "config.model.width: missing"),
        ({"type": "some_nets:fanci"}, 'config.model.type: some_nets has no fanci; found "some_nets:fanci"; did you mean "some_nets:fancy"?'),
        ({"type": "some_nets:number"}, "config.model.type: not callable"),
        ({"type": "no_such_module:net"}, "config.model.type: no_such_module cannot be imported (ModuleNotFoundError"),
        ({"type": "plugin:nothing"}, "config.model.type: no such plug-in"),
    ],
)  # fmt: skip
def test_names_and_arguments_are_checked_against_the_signature(model: dict[str, Any], said: str) -> None:
    assert said in checked(model)


def test_a_name_is_registered_once() -> None:
    registry.register("twice")(write)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("twice")(checked)
    registry._registered.clear()


def test_plug_ins_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    points = [EntryPoint("deep", "relight_trainer.shares:share", registry.PLUGINS)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert registry.resolve(MODELS, "plugin:deep")(10, 0, 2) == slice(0, 5)
    with pytest.raises(registry.Unregistered, match='did you mean "plugin:deep"'):
        registry.resolve(MODELS, "plugin:dep")


def test_every_registered_model_fits_its_factory() -> None:
    pytest.importorskip("torch")
    for name, entry in MODELS.items():
        arguments = {field: None for field in entry.arguments.model_fields if field != "type"}
        inspect.signature(registry.resolve(MODELS, name)).bind(**arguments)


def test_a_steps_arithmetic_is_shown() -> None:
    words = arithmetic(parse({"train": {"global_batch": 65, "micro_batch": 10}}), 3)
    assert words == "a step: 65 samples = 3 workers x 3 micro-batches x 7 or 8 samples; lr 0.1"
    words = arithmetic(parse({"train": {"virtual_ranks": 4}}), 2)
    assert words == "a step: 64 samples = 4 workers x 1 micro-batch x 16 samples, done by 2 workers; lr 0.1"


def test_apexs_levels_are_precisions() -> None:
    levels = [parse({"train": {"precision": f"O{i}"}}).train.precision for i in range(4)]
    assert levels == ["fp32", "fp16", "fp16", "fp16"]


def test_a_static_graph_is_refused_where_bits_are_promised() -> None:
    with pytest.raises(BadConfig, match=r"config.ddp.static_graph: a static graph is not bit-equal"):
        parse({"ddp": {"static_graph": True}})
    assert parse({"ddp": {"static_graph": True}, "train": {"deterministic": False}}).ddp.static_graph
