"""Data sets through the whole training: loader processes, augmentation, evaluation, a cut, changed data."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from PIL import Image
from test_train_exact import job, result, until

from relight_agent.files import Outcome
from relight_trainer import train
from relight_trainer.context import WorkerContext
from relight_trainer.data.digits import digits
from relight_trainer.worker import entry_of

pytestmark = pytest.mark.timeout(180)


def digit_images(root: Path, train_images: int, test_images: int) -> None:
    """Scikit-learn's digits as PNG files in class folders."""
    parts = digits(test_fraction=0.2, split_seed=0)
    for name, samples, count in (("train", parts.train, train_images), ("val", parts.test, test_images)):
        for i, (image, label) in enumerate(zip(samples.inputs[:count], samples.labels[:count].tolist(), strict=True)):
            (root / name / str(label)).mkdir(parents=True, exist_ok=True)
            pixels = (image[0] * 255).round().to(torch.uint8).numpy()
            Image.fromarray(pixels).save(root / name / str(label) / f"{i:04}.png")


def images(root: Path, workers: int) -> dict[str, Any]:
    pipeline = {"size": 8, "channels": 1, "mean": [0.3], "std": [0.4], "test_crop": 1.0, "rand_augment": {}}
    return {
        "model": {"type": "resnet18", "width": 4, "stem": "small", "channels": 1, "classes": 10},
        "data": {"type": "image_folder", "root": str(root), "images": pipeline},
        "loader": {"workers": workers},
    }


def test_a_cut_amid_augmented_epochs_changes_nothing_and_other_data_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    digit_images(data, 200, 41)

    def the_job(root: Path, workers: int) -> Any:
        root.mkdir(exist_ok=True)
        return job(root, steps=8, **images(data, workers))  # of 64 samples: three to an epoch

    whole = result(worlds.run(train.run, root=tmp_path / "whole", job=the_job(tmp_path / "whole", 0), ranks=2))
    assert set(whole["metrics"]) == {"loss", "test_accuracy", "test_loss"}

    root = tmp_path / "cut"
    outcomes = worlds.run(until, 1, 4, root=root, job=the_job(root, 2), ranks=2)
    assert outcomes[1] == "died"
    shutil.rmtree(root / "slot-1")
    added = data / "train" / "3" / "added.png"
    shutil.copy(next((data / "train" / "3").iterdir()), added)
    refused = worlds.run(train.run, root=root, job=the_job(root, 1), generation=2, ranks=2)
    assert all(str(text).startswith("DataChanged: data.train: 201 samples") for text in refused), refused
    added.unlink()
    assert result(worlds.run(train.run, root=root, job=the_job(root, 1), generation=3, ranks=2)) == whole


def test_unusable_data_ends_a_worker_before_the_world_forms(tmp_path: Path) -> None:
    the_job = job(tmp_path, **images(tmp_path / "not_mounted", 1))
    # Alone of two ranks: it would wait for the other one if it got as far.
    with worlds.world(train.run, root=tmp_path, job=the_job, ranks=1, WORLD_SIZE="2") as one:
        [outcome] = one.join(60)
    assert outcome.startswith(f"BadData: data.root: {tmp_path} has no not_mounted; found job.json, slot-0")


OWN_SETS = """
import torch

class Halves(torch.utils.data.Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.tensor([index / self.size, 1.0]) + 0.1 * torch.rand(2), int(2 * index >= self.size)

def sets(size):
    return Halves(size), Halves(size // 2)
"""


def as_a_worker(context: WorkerContext) -> Outcome | None:
    return entry_of(context)()


def test_files_and_modules_in_the_jobs_folder_are_found(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).integers(0, 256, (60, 6), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", inputs=inputs, labels=inputs[:, 0] // 128)
    (tmp_path / "own_sets_of_a_test.py").write_text(OWN_SETS)
    arrays = {"type": "arrays", "train": "d.npz", "scale": 255.0}
    own = {"type": "own_sets_of_a_test:sets", "size": 40}
    results = {}
    for name, width, data, workers in (("arrays", 6, arrays, "auto"), ("own", 2, own, 2), ("same", 2, own, 0)):
        folder = tmp_path / name
        folder.mkdir()
        model = {"type": "mlp", "inputs": width, "hidden": [8], "outputs": 2}
        the_job = job(folder, steps=9, model=model, data=data, loader={"workers": workers})
        the_job.entry["config"]["train"]["global_batch"] = 7
        the_job = replace(the_job, workdir=str(tmp_path))
        results[name] = result(worlds.run(as_a_worker, root=folder, job=the_job, ranks=1))
        assert "test_accuracy" in results[name]["metrics"]
    assert results["own"] == results["same"]


def accuracies(root: Path, seeds: int, config: dict[str, Any]) -> list[float]:
    found = []
    for seed in range(seeds):
        folder = root / str(seed)
        folder.mkdir()
        the_job = job(folder, checkpoints=False)
        the_job.entry["config"] = {**config, "train": {"device": "cpu", **config["train"], "seed": seed}}
        found.append(
            float(
                result(worlds.run(train.run, root=folder, job=the_job, ranks=1, timeout=500))["metrics"][
                    "test_accuracy"
                ]
            )
        )
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)  # seven trainings, two of them in a precision that many a CPU does not have
def test_the_digits_reach_99_percent_in_the_mean_of_five_seeds_and_in_two_of_them_in_bf16(tmp_path: Path) -> None:
    found = {}
    for precision, seeds in (("fp32", 5), ("bf16", 2)):
        config = example("digits")
        config["train"] = {**config.get("train", {}), "precision": precision}
        (tmp_path / precision).mkdir()
        found[precision] = accuracies(tmp_path / precision, seeds, config)
    assert np.mean(found["fp32"]) >= 0.99, found
    assert abs(np.mean(found["bf16"]) - np.mean(found["fp32"][:2])) <= 0.005, found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mnist5k_reaches_97_and_a_half_percent(tmp_path: Path) -> None:
    [found] = accuracies(tmp_path, 1, example("mnist5k"))
    assert found >= 0.975


def example(name: str) -> dict[str, Any]:
    import yaml

    path = Path(__file__).parents[2] / "examples" / f"{name}.yaml"
    config: dict[str, Any] = yaml.safe_load(path.read_text())["spec"]["trainer"]["config"]
    return config
