"""Evaluations with batch norm statistics of their own, in a real training."""

from pathlib import Path

import pytest
import worlds
from test_train_exact import job, result

from relight_trainer import train
from relight_trainer.inspect import WrongInput
from relight_trainer.recalibrate_checkpoint import recalibrate_checkpoint

pytestmark = pytest.mark.timeout(120)


def test_an_evaluation_with_statistics_of_its_own_sees_what_recalibrate_writes_and_changes_nothing(
    tmp_path: Path,
) -> None:
    results = {}
    for name, settings in (("plain", {}), ("own", {"recalibrate": {"samples": 96, "batch": 48}})):
        root = tmp_path / name
        root.mkdir()
        [*outcomes] = worlds.run(train.run, root=root, job=job(root, steps=6, evaluate=settings))
        results[name] = result(outcomes)
    assert results["own"]["weightsDigest"] == results["plain"]["weightsDigest"]
    source = str(tmp_path / "own" / "checkpoints")
    with pytest.raises(WrongInput, match="there is no folder"):  # before anything is computed
        recalibrate_checkpoint(source, tmp_path / "none" / "out.pt")
    far = ["hooks=[{type: 'not_here:Hook'}]"]
    said = recalibrate_checkpoint(source, tmp_path / "out.safetensors", sets=far, samples=96, batch=48)
    for name, metrics in (("before", results["plain"]["metrics"]), ("after", results["own"]["metrics"])):
        assert said[name] == {key: value for key, value in metrics.items() if key in said[name]}
    assert said["before"] != said["after"]
