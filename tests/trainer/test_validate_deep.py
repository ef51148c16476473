"""`relight validate`: what would fail here, and with `--deep` what only a worker would find."""

import json
from pathlib import Path
from typing import Any

import pytest
import worlds
from click.testing import CliRunner

from relight_agent.files import JobFile
from relight_operator.cli.here import deep_problem
from relight_operator.cli.validate import validate_command
from relight_trainer.config import parse
from relight_trainer.context import WorkerContext

pytestmark = pytest.mark.timeout(120)

HEAD = "apiVersion: relight.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: small}\n"
SMALL: dict[str, Any] = {"model": {"type": "digits_cnn", "width": 2}, "train": {"global_batch": 16, "duration": "4st"}}


def tried(_: WorkerContext, config: dict[str, Any], workers: int) -> int:
    from relight_trainer.trial import try_out

    return try_out(parse(config), workers)


def answer(tmp_path: Path, config: dict[str, Any], workers: int = 1) -> Any:
    """What a trial gives: the samples of its step, or the error's text."""
    job = JobFile("default", "t", "uid", 0.0, 1, 1, {"kind": "config", "config": {}}, "hash", str(tmp_path))
    [found] = worlds.run(tried, config, workers, root=tmp_path, job=job, ranks=1)
    return found


@pytest.mark.parametrize(("workers", "samples"), [(1, 16), (3, 5)])
def test_one_step_of_a_worker_s_smallest_micro_batch_is_taken(tmp_path: Path, workers: int, samples: int) -> None:
    assert answer(tmp_path, SMALL, workers) == samples


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"train": {"global_batch": 9999}}, "train.global_batch 9999: allowed is at most"),
        ({"freeze": ["nothing.like.it"]}, "freeze"),
        ({"freeze": [{"match": ["conv*"], "after": "3st", "until": "2st"}]}, "freeze"),
        ({"init_from": {"path": "nowhere.safetensors"}}, "init_from"),
    ],
    ids=["batch", "pattern", "thawed before it is frozen", "weights"],
)
def test_what_a_worker_would_refuse_is_found(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    assert words in str(answer(tmp_path, {**SMALL, **config}, 2))


def test_the_trial_ends_in_time(tmp_path: Path) -> None:
    found = deep_problem(parse(SMALL), (1, 1), tmp_path, "config", seconds=0.05)
    assert found is not None
    assert "took longer than" in found.message


def validated(path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(validate_command, [*options, "-o", "json", str(path)])
    [file] = json.loads(result.stdout)["files"]
    return result.exit_code, file


def written(folder: Path, trainer: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(f"{HEAD}spec: {{nodes: 1, trainer: {trainer}}}\n")
    return path


def test_deep_says_that_it_has_tried_and_names_what_fails(tmp_path: Path) -> None:
    good = written(tmp_path, "{config: {model: {type: digits_cnn, width: 2}, train: {duration: 4st}}}")
    assert validated(good, "--deep") == (
        0,
        {"file": str(good), "valid": True, "job": "small", "problems": [], "tried": True},
    )
    net = "nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))"
    (tmp_path / "normed.py").write_text(f"from torch import nn\ndef net():\n    return {net}\n")
    config = '{model: {type: "normed:net"}, train: {duration: 4st, global_batch: 1}}'
    code, file = validated(written(tmp_path, f"{{config: {config}}}"), "--deep")
    assert (code, file["problems"][0]["path"]) == (64, "spec.trainer.config")
    assert "Expected more than 1 value per channel" in file["problems"][0]["message"]


@pytest.mark.parametrize(
    ("trainer", "path"),
    [
        ("{script: [nothere.py]}", "spec.trainer.script[0]"),
        ("{config: {train: {device: cuda}}}", "spec.trainer.config.train.device"),
        ("{config: {init_from: {path: nothere.pt}}}", "spec.trainer.config.init_from.path"),
    ],
)
def test_what_would_fail_here_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str, path: str) -> None:
    monkeypatch.setattr("relight_operator.cli.here._has_gpu", lambda: False)
    code, file = validated(written(tmp_path, trainer))
    assert (code, [one["path"] for one in file["failsHere"]]) == (0, [path])
    # An image of the job's own may have the file.
    _, file = validated(written(tmp_path, trainer.replace("{", "{image: mine, ", 1)))
    assert "failsHere" not in file


def test_a_module_that_python_cannot_read_is_wrong_everywhere(tmp_path: Path) -> None:
    (tmp_path / "broken_model.py").write_text("def net(:\n")
    code, file = validated(written(tmp_path, '{config: {model: {type: "broken_model:net"}}}'))
    assert (code, file["problems"][0]["path"]) == (64, "spec.trainer.config.model.type")
    assert "SyntaxError" in file["problems"][0]["message"]
