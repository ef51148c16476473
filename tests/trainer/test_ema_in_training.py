"""Average, freezing, clipping, groups, schedule and borrowed weights in the training itself, cut and uncut."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from test_train_exact import job, result, until

from relight_trainer import train
from relight_trainer.inspect import read
from relight_trainer.inspect.statistics import Bytes
from relight_trainer.models.digits_cnn import digits_cnn

pytestmark = pytest.mark.timeout(180)


def config(root: Path) -> dict[str, Any]:
    torch.manual_seed(5)
    other = digits_cnn(4)
    torch.save({"state_dict": {f"module.{n}": t for n, t in other.state_dict().items()}}, root / "weights.pth")
    return {
        "optimizer": {"type": "lamb", "lr": {"value": 0.02, "at_batch": 32, "scale": "sqrt"}, "groups": [
            {"layer": "BatchNorm*", "weight_decay": 0, "adapt": False}]},
        "schedule": {"type": "plateau", "metric": "ema_test_loss", "patience": 0, "threshold": 0.9, "warmup": "3st"},
        "evaluate": {"every": "4st"},
        "clip": {"type": "norm", "max": 0.5},
        "ema": 0.9,
        "freeze": [{"match": ["0", "1"], "until": "6st"}],
        "init_from": str(root / "weights.pth"),
    }  # fmt: skip


def tensors(checkpoint: Path) -> dict[str, bytes]:
    """The bytes of everything in a checkpoint but those of its optimizer."""
    with Bytes() as data:
        return {name: data.whole(ref).tobytes() for name, ref in read(checkpoint).tensors()}


def test_a_cut_training_has_the_weights_the_average_and_the_reductions_of_one_that_was_not_cut(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    the_job = job(whole, **config(tmp_path))
    expected = result(worlds.run(train.run, root=whole, job=the_job))
    report = json.loads((whole / "checkpoints" / "init_from.json").read_text())
    assert (report["ratio"], report["unexpected"]) == (1.0, [])
    assert {"test_loss", "ema_test_loss", "ema_test_accuracy"} <= expected["metrics"].keys()

    cut = tmp_path / "cut"
    cut.mkdir()
    the_job = job(cut, **config(tmp_path))
    for generation, (victim, step) in enumerate([(0, 5), (1, 7)], 1):
        worlds.run(until, victim, step, root=cut, job=the_job, generation=generation)
        shutil.rmtree(cut / f"slot-{victim}")  # a killed machine's memory is gone
    assert result(worlds.run(train.run, root=cut, job=the_job, generation=3)) == expected
    [one] = whole.glob("checkpoints/step-*.final")
    [other] = cut.glob("checkpoints/step-*.final")
    assert tensors(one) == tensors(other)
    names = [name for name in tensors(one) if name.startswith("ema.")]
    assert len(names) == len(digits_cnn(4).state_dict())

    # One worker does the work of two and has no DDP that could be built anew: it ends where they end.
    alone = tmp_path / "alone"
    alone.mkdir()
    result(worlds.run(train.run, root=alone, job=job(alone, **config(tmp_path)), ranks=1))
    [third] = alone.glob("checkpoints/step-*.final")
    for name, data in tensors(third).items():
        if name.startswith(("model.", "ema.")) and not name.endswith("num_batches_tracked"):
            a, b = (np.frombuffer(d, np.float32) for d in (data, tensors(one)[name]))
            assert np.abs(a - b).max() <= 1e-5, name

    earlier = tensors(next(whole.glob("checkpoints/step-000000005.*")))
    for name in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"):
        with Bytes() as data:
            borrowed = dict(read(tmp_path / "weights.pth").tensors())[f"state_dict.module.{name}"]
            assert earlier[f"model.{name}"] == earlier[f"ema.weights.{name}"] == data.whole(borrowed).tobytes()
        assert tensors(one)[f"model.{name}"] != earlier[f"model.{name}"]
