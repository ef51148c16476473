"""`relight lr`: what it says is what the training does."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from relight_trainer.commands.lr import command
from relight_trainer.config import BadConfig, parse
from relight_trainer.schedule import build_schedule
from relight_trainer.settings.position import Length
from relight_trainer.settings.spans import EpochSize


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(
        "train: {duration: 3ep, global_batch: 32}\n"
        "schedule: {type: cosine, warmup: 1ep}\n"
        "optimizer: {type: sgd, lr: {value: 0.4, at_batch: 256, scale: linear}, groups: [{match: '*.bias', lr_scale: 2}]}\n"
    )
    return file


def test_the_rates_are_those_of_the_training_step_by_step(config: Path) -> None:
    said: dict[str, Any] = json.loads(run(str(config), "--samples", "650", "-o", "json"))
    assert (said["steps"], said["stepsPerEpoch"], said["peak"]) == (60, 20, 0.05)
    settings = parse({"schedule": {"type": "cosine", "warmup": "1ep"}, "optimizer": {"type": "sgd", "lr": 0.05}})
    schedule = build_schedule(settings.schedule, settings.optimizer, Length(60, EpochSize(20, 640, 32)), 32)
    assert [r["lr"] for r in said["rates"]] == [schedule(step).lr for step in range(60)]
    assert {r["momentum"] for r in said["rates"]} == {None}


def test_a_person_reads_the_arithmetic_the_table_and_the_curve(config: Path, tmp_path: Path) -> None:
    image = tmp_path / "curve.svg"
    said = run(str(config), "--samples", "650", "--plot", "--svg", str(image))
    assert "60 steps, 20 in an epoch: sgd with cosine" in said
    assert "learning rate 0.05 (0.4 at batch 256, linear, at batch 32)" in said
    assert "group 0: match ['*.bias'], lr_scale 2.0" in said
    assert "step 59, epoch 3" in said
    assert len([line for line in said.splitlines() if "┤" in line]) == 14
    assert image.read_text().startswith("<svg")


def test_the_number_of_steps_follows_from_the_data_set_and_fields_can_be_set(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("kind: TrainingJob\nspec: {trainer: {config: {train: {duration: 2ep}}}}\n")
    assert "44 steps, 22 in an epoch: sgd with onecycle" in run(str(file))
    assert "66 steps, 22 in an epoch: sgd with constant" in run(
        str(file), "--set", "train.duration=3ep", "--set", "schedule.type=constant"
    )


def test_what_is_wrong_is_said(config: Path, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"config.schedule.warmup: not a place in the training"):
        run(str(config), "--set", "schedule.warmup=1epoch")
    for wrong, text in (
        (["--samples", "20"], "train.global_batch: 32 is more than the 20 samples there are"),
        (
            ["--set", "train.duration=10m", "--set", "schedule.type=constant"],
            'train.duration: "10m" is a time, and how many steps fit into it is not known here',
        ),
        (["--samples", "650", "--svg", str(tmp_path / "x.png")], "is no name of an SVG image; allowed: *.svg"),
    ):
        result = CliRunner().invoke(command, [str(config), *wrong])
        assert (result.exit_code, text in result.output) == (64, True)
