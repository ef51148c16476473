"""Whoever asks which of a closed set a thing is has an answer for each, and an error for one that is new."""

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
import torch
from torch import nn

from relight_operator.core import stalls, verdict
from relight_operator.core.actions import Action
from relight_operator.kube import reconciler
from relight_operator.local import runner
from relight_trainer.clip import build_clip
from relight_trainer.comm_hooks import compress
from relight_trainer.data.images import pixels_of
from relight_trainer.precision import autocast
from relight_trainer.settings.clip import CLIPS
from relight_trainer.settings.train import Train
from relight_trainer.supernet.samplers import build_sampler

pytestmark = pytest.mark.timeout(60)


def chains(module: Any) -> list[tuple[list[str], str]]:
    """Of each `if isinstance(action, ...)` chain of a module: the classes in it, and what its last `else` calls."""
    tree = ast.parse(Path(inspect.getfile(module)).read_text())
    inner = {id(node.orelse[0]) for node in ast.walk(tree) if isinstance(node, ast.If) and len(node.orelse) == 1}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.If) or id(node) in inner or _class(node.test) is None:
            continue
        classes, rest = [], [cast("ast.stmt", node)]
        while len(rest) == 1 and isinstance(rest[0], ast.If) and (name := _class(rest[0].test)):
            classes.append(name)
            rest = rest[0].orelse
        found.append((classes, ast.unparse(rest[0]) if rest else ""))
    return found


def _class(test: ast.expr) -> str | None:
    matched = isinstance(test, ast.Call) and ast.unparse(test.func) == "isinstance"
    return ast.unparse(test.args[1]) if matched and ast.unparse(test.args[0]) == "action" else None  # type: ignore[attr-defined]


@pytest.mark.parametrize("backend", [reconciler, runner])
def test_each_backend_does_every_action_of_a_plan(backend: Any) -> None:
    [(classes, rest)] = chains(backend)
    assert sorted(classes) == sorted(action.__name__ for action in get_args(Action))
    assert rest == "assert_never(action)"


def test_an_action_of_retry_rules_that_is_new_is_an_error() -> None:
    rule = SimpleNamespace(action="Postpone", match=SimpleNamespace(text="x"))
    with pytest.raises(AssertionError, match="Postpone"):
        verdict._purse(verdict.Class.COUNTED, cast("Any", (0, rule)))


def test_an_answer_to_stalls_that_is_new_is_an_error() -> None:
    draft = SimpleNamespace(seen=SimpleNamespace(spec=SimpleNamespace(health=SimpleNamespace(on_stall="Wait"))))
    with pytest.raises(AssertionError, match="Wait"):
        stalls._act(cast("Any", draft), cast("Any", None))


def test_a_kind_of_compression_that_is_new_is_an_error() -> None:
    with pytest.raises(AssertionError, match="int8"):
        compress(cast("Any", None), cast("Any", SimpleNamespace(compress="int8")))


def test_a_sampler_of_paths_that_is_new_is_an_error() -> None:
    with pytest.raises(AssertionError, match="greedy"):
        build_sampler(cast("Any", SimpleNamespace(sampler="greedy", paths=1)), [2], 0, cast("Any", None))


def test_a_way_of_clipping_that_is_new_is_an_error_and_each_known_one_clips() -> None:
    model = nn.Linear(2, 1)
    for kind in CLIPS.values():
        model.weight.grad = torch.full((1, 2), 1e6)
        clip = build_clip(cast("Any", kind()), model)
        assert clip is not None
        clip()
        assert model.weight.grad.abs().max() < 1e6
    clip = build_clip(cast("Any", SimpleNamespace(type="quantile")), model)
    assert clip is not None
    with pytest.raises(AssertionError, match="quantile"):
        clip()


def test_a_precision_that_is_new_is_an_error_and_each_known_one_is_had() -> None:
    for name in ("fp32", "tf32", "bf16", "fp16"):
        assert Train.model_validate({"precision": name}).precision == name
        with autocast(name, torch.device("cpu"))():
            assert torch.is_autocast_enabled("cpu") == (name in {"bf16", "fp16"})
    with pytest.raises(KeyError, match="fp8"):
        autocast("fp8", torch.device("cpu"))


def test_a_crop_that_is_new_is_an_error() -> None:
    from PIL import Image

    settings = SimpleNamespace(crop="five", channels=3, size=4, test_crop=1.0)
    with pytest.raises(AssertionError, match="five"):
        pixels_of(Image.new("RGB", (8, 8)), cast("Any", settings), lambda: 0.5, training=True)


def test_a_policy_of_init_from_that_is_new_is_an_error() -> None:
    from relight_trainer.init_from import _judge

    report = SimpleNamespace(missing=("a",), unexpected=(), reshaped=())
    with pytest.raises(AssertionError, match="loose"):
        _judge(cast("Any", SimpleNamespace(policy="loose")), cast("Any", report))
