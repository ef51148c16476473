"""A supernet through the real training: cut anywhere, it ends with the same weights and the same ranking."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import worlds
from test_train_exact import job, result, until

from relight_trainer import train

pytestmark = pytest.mark.timeout(120)

CONFIG: dict[str, Any] = {
    "model": {"type": "digits_supernet", "width": 4, "choices": 2},
    "sync_bn": True,
    "supernet": {"sampler": "fair", "evaluate": 4, "recalibrate": {"samples": 64, "batch": 32}},
    "optimizer": {"type": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
}


def test_a_supernet_that_loses_a_member_ends_with_the_same_weights_and_ranking(tmp_path: Path) -> None:
    outcomes = {}
    for name in ("whole", "cut"):
        root = tmp_path / name
        root.mkdir()
        the_job = job(root, steps=7, **CONFIG)
        if name == "cut":
            ends = worlds.run(until, 0, 3, root=root, job=the_job, generation=1)
            assert ends[0] == "died"
            shutil.rmtree(root / "slot-0")
        outcomes[name] = result(worlds.run(train.run, root=root, job=the_job, generation=2))
        outcomes[name]["ranking"] = json.loads((root / "checkpoints" / "paths.json").read_text())
    assert outcomes["cut"] == outcomes["whole"]
    metrics, ranking = outcomes["whole"]["metrics"], outcomes["whole"]["ranking"]
    assert (metrics["paths"], len(ranking)) == ("4", 4)
    assert metrics["best_path"] == ranking[0]["path"]
    assert metrics["test_accuracy"] == f"{sum(row['accuracy'] for row in ranking) / 4:.4f}"
