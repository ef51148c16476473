"""A supernet through the real training: cut anywhere, it ends with the same weights and the same ranking."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from click.testing import CliRunner
from safetensors.torch import load_file
from test_train_exact import job, result, until
from torch import Tensor, nn

from relight_trainer import train
from relight_trainer.commands.recalibrate import command
from relight_trainer.context import WorkerContext
from relight_trainer.data.digits import digits
from relight_trainer.inspect import WrongInput
from relight_trainer.models.digits_supernet import digits_supernet
from relight_trainer.recalibrate import calibration_draws, population_statistics
from relight_trainer.step import Step
from relight_trainer.supernet import BadSupernet, PathContext
from relight_trainer.supernet.choices import space_of

pytestmark = pytest.mark.timeout(120)

CONFIG: dict[str, Any] = {
    "model": {"type": "digits_supernet", "width": 4, "choices": 2},
    "sync_bn": True,
    "supernet": {"sampler": "fair", "evaluate": 4, "recalibrate": {"samples": 64, "batch": 32}},
    "optimizer": {"type": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
}


class Careless(nn.Module):
    """Draws its paths from torch's generator, which dropout makes another one on each rank."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
        self.path = 0

    def sample_path(self, context: PathContext) -> int:
        return int(torch.randint(0, 2, ()))

    def set_path(self, path: int) -> None:
        self.path = path

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.layers[: 2 + self.path](inputs)
        return output


def active(context: WorkerContext) -> list[set[str]]:
    """The parameters that have a gradient in each step of a training."""
    steps: list[set[str]] = []
    step = Step.__call__

    def note(self: Step, *arguments: Any) -> None:
        step(self, *arguments)
        steps.append({name for name, p in self._run.model.named_parameters() if p.grad is not None})

    Step.__call__ = note  # type: ignore[method-assign]
    assert train.run(context).kind == "completed"
    return steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the result of a training that was not cut."""
    root = tmp_path_factory.mktemp("whole")
    return root, result(worlds.run(train.run, root=root, job=job(root, steps=7, **CONFIG), generation=2))


def ranking(root: Path) -> Any:
    return json.loads((root / "checkpoints" / "paths.json").read_text())


def test_a_supernet_that_loses_a_member_ends_with_the_same_weights_and_ranking(
    tmp_path: Path, whole: tuple[Path, dict[str, Any]]
) -> None:
    the_job = job(tmp_path, steps=7, **CONFIG)
    ends = worlds.run(until, 0, 3, root=tmp_path, job=the_job, generation=1)
    assert ends[0] == "died"
    shutil.rmtree(tmp_path / "slot-0")
    root, expected = whole
    assert result(worlds.run(train.run, root=tmp_path, job=the_job, generation=2)) == expected
    rows = ranking(root)
    assert ranking(tmp_path) == rows
    metrics = expected["metrics"]
    assert (metrics["paths"], len(rows)) == ("4", 4)
    assert metrics["best_path"] == rows[0]["path"]
    assert metrics["test_accuracy"] == f"{sum(row['accuracy'] for row in rows) / 4:.4f}"


def test_recalibrate_writes_a_paths_weights_with_its_own_statistics(
    tmp_path: Path, whole: tuple[Path, dict[str, Any]]
) -> None:
    folder = str(whole[0] / "checkpoints")
    out = tmp_path / "best.safetensors"
    options = ["--path", "best", "--samples", "100", "--batch", "50", "-o", "json"]
    answer = CliRunner().invoke(command, [folder, str(out), *options], catch_exceptions=False)
    said = json.loads(answer.output)
    best = ranking(whole[0])[0]["path"]
    assert (said["path"], said["layers"], said["samples"]) == (best, 3, 100)
    assert set(said["before"]) == set(said["after"]) == {"test_accuracy", "test_loss"}

    model = digits_supernet(4, 2)
    model.load_state_dict(load_file(out))
    space_of(model).choose(tuple(map(int, best.split("-"))))
    train_part, test_part = digits(0.2, 0)
    model.eval()
    right = (model(test_part.inputs).argmax(1) == test_part.labels).double().mean().item()
    assert said["after"]["test_accuracy"] == f"{right:.4f}"
    draws = calibration_draws(train_part.size, 0, samples=100, batch=50)
    batches = [train_part.inputs[torch.from_numpy(draw.indices)] for draw in draws]
    for name, found in population_statistics(model, batches).items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.BatchNorm2d)
        assert torch.equal(layer.running_var, found.var.float())  # type: ignore[arg-type]

    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({**CONFIG, "supernet": {"sampler": "uniform"}}))
    again = [str(out), str(tmp_path / "again.pt"), "--config", str(file), "--path", best, "--set", "train.seed=0"]
    CliRunner().invoke(command, [*again, "--samples", "100", "--batch", "50"], catch_exceptions=False)
    first, second = load_file(out), torch.load(tmp_path / "again.pt", weights_only=True)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())

    for arguments, words in (
        ([folder, str(out)], "exists; --force"),
        ([folder, str(tmp_path / "out.onnx")], "the name says the format"),
        ([folder, str(tmp_path / "x.pt")], "--path is missing: statistics are one path's; allowed: .*or best"),
        ([str(out), str(tmp_path / "x.pt")], "does not say which model and data it belongs to; allowed: --config"),
    ):
        with pytest.raises(WrongInput, match=words):
            CliRunner().invoke(command, arguments, catch_exceptions=False)
    with pytest.raises(BadSupernet, match="allowed: 2 numbers, from 0-0 to 3-3"):
        CliRunner().invoke(command, [folder, str(tmp_path / "x.pt"), "--path", "0-4"], catch_exceptions=False)
    assert {file.name for file in tmp_path.iterdir()} == {"again.pt", "best.safetensors", "config.yaml"}


def test_a_model_that_draws_its_paths_carelessly_ends_the_job_in_words(tmp_path: Path) -> None:
    model = {"type": "test_supernet_train:Careless"}
    the_job = job(tmp_path, steps=5000, model=model, sync_bn=True, supernet={}, schedule={"type": "constant"})
    with worlds.world(train.run, root=tmp_path, job=the_job) as running:
        results = running.join()
        outcomes = [outcome for folder in running.folders for _, outcome in folder.outcomes(1)]
    words = "supernet: rank 1 took other paths than rank 0, in step"
    assert any(words in text for text in [*results, *(o.message for o in outcomes)]), (results, outcomes)
    assert all(o.exit_code == 64 for o in outcomes)


def test_a_rank_without_samples_gives_no_gradient_to_what_is_on_no_path(tmp_path: Path) -> None:
    config = {**CONFIG, "sync_bn": False, "supernet": {"evaluate": 1, "recalibrate": {"samples": 32, "batch": 16}}}
    config["train"] = {"duration": "3st", "global_batch": 1, "device": "cpu"}
    one, other = worlds.run(active, root=tmp_path, job=job(tmp_path, **config))
    assert one == other
    for names in one:
        assert 2 <= sum(".options." in name for name in names) <= 4  # one option of each of the two choices
