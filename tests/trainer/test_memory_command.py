"""`relight memory`: the same numbers as a training's, and what would fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from relight_operator.cli.validate import validate_command
from relight_trainer.amounts import BadSize, amount, shape, size
from relight_trainer.commands.memory import command
from relight_trainer.models.digits_cnn import digits_cnn
from relight_trainer.models.resnet import resnet18

CONFIG = """
model: {type: digits_cnn, width: 4}
train: {global_batch: 96, micro_batch: 20}
optimizer: {type: adamw}
ema: {decay: 0.99}
freeze: ["0"]
"""


def said(tmp_path: Path, config: str, *options: str) -> Result:
    path = tmp_path / "config.yaml"
    path.write_text(config)
    return CliRunner().invoke(command, [str(path), *options])


def answer(result: Result) -> Any:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return json.loads(result.stdout)


def test_it_counts_what_the_training_will_have(tmp_path: Path) -> None:
    found = answer(said(tmp_path, CONFIG, "--workers", "2", "-o", "json"))
    sizes = found["bytes"]
    # 48 samples for each worker, 20 at most at a time: three times 16
    assert (found["workers"], found["samples"]) == (2, 16)
    assert sizes["batch"] == 16 * (8 * 8 * 4 + 8)
    assert found["elements"] * 4 == sizes["parameters"]
    assert sizes["frozen"] > 0
    assert sizes["gradients"] == sizes["ddp"] == sizes["parameters"] - sizes["frozen"]
    tensors = 2 * sizes["gradients"]
    assert tensors < sizes["optimizer"] < tensors + 200  # and a step counter for each parameter
    assert sizes["ema"] == sizes["parameters"] + sizes["buffers"]
    assert found["peak"] > sizes["activations"]
    assert sum(found["layers"].values()) == sizes["activations"]


def test_a_limit_says_what_would_fit_and_that_does(tmp_path: Path) -> None:
    config = "model: {type: digits_cnn, width: 8}\ntrain: {global_batch: 256}\n"
    whole = answer(said(tmp_path, config, "-o", "json"))
    assert said(tmp_path, config, "--limit", f"{whole['peak']}B").exit_code == 0
    most = whole["peak"] // 3
    limit = f"{most}B"
    tight = said(tmp_path, config, "--limit", limit)
    assert tight.exit_code == 1
    assert tight.stdout.endswith(f"it does not fit into {amount(most)}: train.micro_batch: 64 would fit\n")
    fits = said(tmp_path, config, "--limit", limit, "--set", "train.micro_batch=64", "-o", "json")
    assert (fits.exit_code, answer(fits)["fits"]) == (0, True)
    none = said(tmp_path, config, "--limit", "1KiB", "-o", "json")
    assert (none.exit_code, answer(none)["fittingMicroBatch"]) == (1, None)


def test_validate_foretells_the_same_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "apiVersion: relight.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: digits}\n"
        "spec: {nodes: 2, trainer: {config: {model: {type: digits_cnn, width: 8}, train: {global_batch: 256}}}}\n"
    )

    def checked(*options: str) -> tuple[int, Any]:
        result = CliRunner().invoke(validate_command, [str(job), "-o", "json", *options])
        return result.exit_code, json.loads(result.stdout)["files"][0]

    whole = answer(CliRunner().invoke(command, [str(job), "--workers", "2", "-o", "json"]))
    assert "memory" not in checked()[1]
    assert checked("--memory") == (
        0,
        {"file": str(job), "valid": True, "job": "digits", "problems": [], "memory": whole},
    )
    assert checked("--limit", f"{whole['peak']}B")[0] == 0
    limit = whole["peak"] // 3
    code, tight = checked("--limit", f"{limit}B")
    assert (code, tight["valid"], tight["memory"]["fits"]) == (64, False, False)
    assert tight["problems"] == [
        {
            "path": "spec.trainer.config.train.micro_batch", "found": "null", "allowed": "32 or less, with accumulate: auto",
            "message": f"a worker will want {amount(whole['peak'])}, which is more than {amount(limit)}",
        }
    ]  # fmt: skip
    assert checked("--limit", f"{limit}B", "--set", "train.micro_batch=32")[0] == 0


def test_validate_says_why_it_cannot_foretell(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("data: {type: image_folder, root: /not/here}\n")
    result = CliRunner().invoke(validate_command, [str(config), "--memory", "-o", "json"])
    [why] = json.loads(result.stdout)["files"][0]["notChecked"]
    assert result.exit_code == 0
    assert why.startswith("memory: ")
    assert "there is no /not/here" in why


def test_a_shape_stands_in_for_data_that_is_not_here(tmp_path: Path) -> None:
    config = """
model: {type: resnet18, classes: 7}
data: {type: image_folder, root: /not/here}
train: {global_batch: 4, precision: bf16}
"""
    found = answer(said(tmp_path, config, "--input", "3x64x64", "-o", "json"))
    assert found["elements"] == sum(p.numel() for p in resnet18(classes=7).parameters())
    assert found["bytes"]["batch"] == 4 * (3 * 64 * 64 * 4 + 8)
    assert getattr(said(tmp_path, config).exception, "exit_code", None) == 65


def test_on_a_gpu_the_optimizer_takes_all_parameters_at_once(tmp_path: Path) -> None:
    config = "model: {type: resnet18, classes: 10}\ntrain: {global_batch: 2}\noptimizer: {type: adamw}\n"
    gpu, cpu = (
        answer(said(tmp_path, config, "--input", "3x32x32", "--set", f"train.device={device}", "-o", "json"))
        for device in ("cuda", "cpu")
    )
    assert gpu["bytes"] == cpu["bytes"]
    held = sum(gpu["bytes"][name] for name in ("parameters", "gradients", "optimizer"))
    assert cpu["peak"] < held + 0.8 * gpu["bytes"]["parameters"]
    assert gpu["peak"] == pytest.approx(held + gpu["bytes"]["parameters"], rel=0.05)


class OwnStep(nn.Module):
    """A model that has its loss in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def training_step(self, batch: Any, run: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])


def test_a_model_with_its_own_step_is_measured_too(tmp_path: Path) -> None:
    config = f"model: {{type: '{__name__}:OwnStep'}}\noptimizer: {{type: sgd, momentum: 0.0, nesterov: false}}\n"
    found = answer(said(tmp_path, config, "-o", "json"))
    assert found["elements"] == 64 * 10 + 10
    assert found["bytes"]["optimizer"] == 0


@pytest.mark.parametrize(
    ("text", "count"), [("80GiB", 80 << 30), ("80Gi", 80 << 30), ("141 GB", 141 * 10**9), ("1.5e9B", 1_500_000_000)]
)
def test_amounts_are_read(text: str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "80 lots", "8.0.0G", "1iB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(BadSize, match="is not an amount of memory; allowed: 80GiB"):
        size(text)


def test_a_number_without_a_unit_is_asked_for_one(tmp_path: Path) -> None:
    for text in ("80", "1.5e9"):
        with pytest.raises(BadSize, match=f'"{text}" has no unit; allowed: {text}GiB, {text}GB'):
            size(text)
    result = said(tmp_path, CONFIG, "--limit", "80")
    assert isinstance(result.exception, BadSize)
    assert result.exception.exit_code == 64


def test_shapes_are_read() -> None:
    assert shape("3x224x224") == (3, 224, 224)
    for text in ("", "3x", "axb", "0x3"):
        with pytest.raises(BadSize, match="is not the shape of a sample"):
            shape(text)


def test_the_table_is_for_people(tmp_path: Path) -> None:
    lines = said(tmp_path, CONFIG).stdout.splitlines()
    assert lines[0] == "each of 1 --workers, 20 samples at a time, fp32"
    assert [line.split("  ")[1] for line in lines[1:9]] == [
        f"parameters ({sum(p.numel() for p in digits_cnn(width=4).parameters()):,} numbers)", "", "gradients", "buffers", "optimizer (adamw)", "moving average", "a batch", "activations",
    ]  # fmt: skip
    assert lines[9].startswith("at most at one time ")
