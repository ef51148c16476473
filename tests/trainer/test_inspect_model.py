"""`relight inspect --model`: the shapes on the way through a model, and the layer that cannot take what it gets."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from relight_trainer.commands.inspect import command
from relight_trainer.models.digits_cnn import digits_cnn


class Flat(nn.Module):
    """The classic: the linear layer was sized for another image. Where it is right, a layer is used twice."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        self.flat = nn.Flatten()
        self.head = nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(self.body[1](self.body(x))))


class Lost(Flat):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.empty(3)


def inspected(tmp_path: Path, config: str, *options: str) -> Result:
    file = tmp_path / "config.yaml"
    file.write_text(config)
    return CliRunner().invoke(command, ["--model", str(file), *options])


def test_the_shapes_are_those_of_a_real_forward_pass(tmp_path: Path) -> None:
    model, seen = digits_cnn(width=4), []
    for path, module in model.named_modules():
        module.register_forward_hook(lambda m, i, o, p=path: seen.append((p, [*i[0].shape], [*o.shape])))  # type: ignore[misc]
    model(torch.zeros(2, 1, 8, 8))
    result = inspected(tmp_path, "model: {type: digits_cnn, width: 4}", "-o", "json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert said["failed"] is None
    assert sorted((c["path"], *c["input"], *c["output"]) for c in said["layers"]) == sorted(seen)
    assert sum(c["parameters"] for c in said["layers"]) == sum(p.numel() for p in model.parameters())


def test_the_layer_that_cannot_take_it_is_named(tmp_path: Path) -> None:
    result = inspected(tmp_path, "model: {type: 'test_inspect_model:Flat', features: 100}")
    assert result.exit_code == 64
    assert "head (Linear) cannot take 2x144; flat (Flatten) before it gave 2x144: RuntimeError" in result.stdout
    right = inspected(
        tmp_path, "model: {type: 'test_inspect_model:Flat', features: 100}", "--set", "model.features=144"
    )
    assert right.exit_code == 0
    assert [line.split()[0] for line in right.stdout.splitlines()[2:]] == [
        "body",
        "body.0",
        "body.1",
        "body.1",
        "flat",
        "head",
    ]
    made_up = inspected(tmp_path, "model: {type: 'test_inspect_model:Flat', features: 16}", "--input", "1x4x4")
    assert "2x1x4x4" in made_up.stdout


def test_what_fails_around_the_layers_is_told_as_that(tmp_path: Path) -> None:
    result = inspected(tmp_path, "model: {type: 'test_inspect_model:Lost', features: 144}", "-o", "json")
    assert result.exit_code == 64
    assert json.loads(result.stdout)["failed"]["layer"] == "(the model itself)"


@pytest.mark.parametrize("options", [["--input", "3x2"], ["--set", "a=b"]])
def test_a_file_of_weights_takes_no_input(tmp_path: Path, options: list[str]) -> None:
    result = CliRunner().invoke(command, [str(tmp_path), *options])
    assert result.exit_code == 2
    assert "go with --model" in result.output
