"""Models with `training_step` and `validation_step`: the page's examples train, and every command takes them."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from test_train_exact import job
from torch import nn

from relight_trainer import train
from relight_trainer.commands import inspect as inspect_command
from relight_trainer.commands import memory, recalibrate
from relight_trainer.config import canonical, parse
from relight_trainer.context import WorkerContext

pytestmark = pytest.mark.timeout(120)
PAGE = (Path(__file__).parents[2] / "docs" / "own-models.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CONFIGS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
NAMES = ["autoencoder", "distilled", "centred"]


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's modules, importable."""
    for name, code in zip(NAMES, CODE, strict=True):
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in NAMES:
        sys.modules.pop(name, None)


def trained(context: WorkerContext, folder: str) -> Any:
    sys.path.append(folder)
    return train.run(context)


@pytest.mark.parametrize(
    ("name", "metrics"),
    [("autoencoder", {"test_error"}), ("distilled", {"test_loss", "test_accuracy"}), ("centred", {"test_loss"})],
)
def test_the_pages_examples_train_on_two_ranks(modules: Path, name: str, metrics: set[str]) -> None:
    config = yaml.safe_load(CONFIGS[NAMES.index(name)])
    config["train"] |= {"threads": 1}
    the_job = job(modules, checkpoints=False)
    the_job.entry["config"] = canonical(parse(config))
    outcomes = worlds.run(trained, str(modules), root=modules, job=the_job)
    assert [o.kind for o in outcomes] == ["completed", "completed"], outcomes
    assert outcomes[0].result["weightsDigest"] == outcomes[1].result["weightsDigest"]
    assert metrics <= outcomes[0].result["metrics"].keys()


class AsksTheRun(nn.Module):
    """Self-supervised: a batch has no target, and both steps look at every part of `run`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    def training_step(self, batch: Any, run: Any) -> dict[str, torch.Tensor]:
        assert isinstance(run.config.train.seed, int)
        assert run.model is self or run.model.layer is self.layer
        assert (run.rank, run.world) == (0, 1)
        run.log({"seed": str(run.random("noise", run.step))})
        error = self.layer(batch["x"]) - batch["x"] * (1 + run.step + run.epoch)
        return {"loss": error.pow(2).mean()}

    def validation_step(self, batch: Any, run: Any) -> dict[str, torch.Tensor]:
        return {"distance": self.training_step(batch, run)["loss"].sqrt()}


class Points(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([index, index / 7, -1.0 * index])}


def points() -> tuple[Points, Points]:
    return Points(), Points()


CONFIG = f"""
model: {{type: "{__name__}:AsksTheRun"}}
data: {{type: "{__name__}:points"}}
train: {{global_batch: 8}}
optimizer: {{type: sgd, momentum: 0.0, nesterov: false}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def test_memory_measures_a_step_that_asks_the_run(config: Path) -> None:
    result = CliRunner().invoke(memory.command, [str(config), "-o", "json"], catch_exceptions=False)
    assert json.loads(result.stdout)["elements"] == 3 * 3 + 3 + 3 + 3


def test_inspect_shows_the_layers_of_a_step_that_asks_the_run(config: Path) -> None:
    result = CliRunner().invoke(inspect_command.command, ["--model", str(config)], catch_exceptions=False)
    assert "layer.1" in result.stdout, result.output
    assert "fails" not in result.stdout


def test_recalibrate_takes_batches_without_a_target_and_shows_the_models_own_metrics(
    config: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    model = AsksTheRun()
    save_file(model.state_dict(), weights)
    out = tmp_path / "out.safetensors"
    arguments = [str(weights), str(out), "--config", str(config), "--samples", "40", "--batch", "10", "-o", "json"]
    said = json.loads(CliRunner().invoke(recalibrate.command, arguments, catch_exceptions=False).stdout)
    assert said["before"].keys() == said["after"].keys() == {"test_distance"}
    population = model.layer[0](torch.stack([Points()[i]["x"] for i in range(40)])).double()
    written = load_file(out)
    torch.testing.assert_close(written["layer.1.running_mean"].double(), population.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(written["layer.1.running_var"].double(), population.var(0), rtol=1e-5, atol=1e-6)
