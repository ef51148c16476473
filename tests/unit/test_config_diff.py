"""What may change between a checkpoint and the run that goes on from it."""

import subprocess
import sys
from typing import Any

import pytest

from relight_trainer.config import canonical, parse
from relight_trainer.config_diff import differences, refused
from relight_trainer.globs import fits, near


def between(old: dict[str, Any], new: dict[str, Any]) -> Any:
    return differences(canonical(parse(old)), canonical(parse(new)))


def test_equal_configurations_do_not_differ() -> None:
    assert between({}, {"train": {"seed": 0}, "optimizer": {"type": "sgd", "lr": 0.1}}) == []


def test_every_difference_is_named_with_what_was_and_what_is() -> None:
    found = between({}, {"optimizer": {"type": "sgd", "lr": 0.2}, "train": {"log_every": 5, "duration": "20ep"}})
    assert [str(d) for d in found] == [
        "optimizer.lr: 0.1 -> 0.2",
        'train.duration: "15ep" -> "20ep"',
        "train.log_every: 10 -> 5",
    ]
    assert [d.path for d in refused(found, [])] == ["optimizer.lr", "train.duration"]


@pytest.mark.parametrize(
    ("allowed", "left"),
    [
        ([], ["model.width", "optimizer.lr", "optimizer.momentum"]),
        (["optimizer.lr"], ["model.width", "optimizer.momentum"]),
        (["optimizer"], ["model.width"]),
        (["optimizer.*", "model.width"], []),
        (["*"], []),
        (["optimizers"], ["model.width", "optimizer.lr", "optimizer.momentum"]),
    ],
)
def test_unsafe_differences_are_refused_unless_allowed(allowed: list[str], left: list[str]) -> None:
    new = {"optimizer": {"type": "sgd", "lr": 0.2, "momentum": 0.8}, "model": {"type": "digits_cnn", "width": 8}}
    assert [d.path for d in refused(between({}, new), allowed)] == left


def test_how_often_it_is_evaluated_is_safe_but_where_the_schedule_looks_at_it() -> None:
    plateau = {"schedule": {"type": "plateau", "patience": 3}}
    assert refused(between({"evaluate": {"every": "1ep"}}, {"evaluate": {"every": "2ep"}}), []) == []
    found = between({**plateau, "evaluate": {"every": "1ep"}}, {**plateau, "evaluate": {"every": "2ep"}})
    assert [d.path for d in refused(found, [])] == ["evaluate.every"]


def test_what_an_older_relight_did_not_know_is_a_difference() -> None:
    old = canonical(parse({}))
    del old["ema"]
    assert differences(old, canonical(parse({}))) == []  # nothing then, nothing now
    assert [d.path for d in refused(differences(old, canonical(parse({"ema": 0.9}))), [])] == ["ema"]


def test_patterns_reach_below_what_they_name_and_the_top_level() -> None:
    assert fits("backbone.layer1.0.weight", "backbone.layer1")
    assert fits("backbone.layer1.0.weight", "backbone.*")
    assert fits("bn1.weight", "*.bn*")
    assert not fits("backbone.layer10.0.weight", "backbone.layer1")
    assert not fits("head.weight", "backbone*")
    assert near(["backbone.layer1.weight", "head.weight"], "backbone.layr1.*")[0] == "backbone.layer1"


def test_reading_checkpoints_needs_the_standard_library_only() -> None:
    code = "import sys, relight_trainer.config_diff; sys.exit(any(m in sys.modules for m in ('torch', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    "config",
    [
        {"optimizer": {"type": "muon", "lr": 1, "others": {"type": "adamw", "groups": [{"match": "x", "beta1": 0}]}}},
        {"optimizer": {"type": "my.own:Kind", "lr": {"value": 1, "at_batch": 256}, "flag": True}},
        {"schedule": {"type": "sequence", "parts": [{"length": "10%", "schedule": {"type": "my:fn", "a": 1}}, {}]}},
        {"clip": {"type": "agc", "but": "head"}, "ema": 0.99, "init_from": "x.pt"},
        {"freeze": ["a", {"match": "*", "but": "b", "until": "5ep"}]},
    ],
)
def test_every_section_comes_back_from_its_canonical_form(config: dict[str, Any]) -> None:
    form = canonical(parse(config))
    assert canonical(parse(form)) == form
    assert differences(form, canonical(parse(form))) == []
