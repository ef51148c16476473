"""A later job with another configuration, in the folder of an earlier one's checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import worlds
from test_train_exact import job

from relight_agent.files import JobFile
from relight_trainer import train
from relight_trainer.inspect import read
from relight_trainer.inspect.statistics import Bytes

pytestmark = pytest.mark.timeout(120)


def later(root: Path, number: int, steps: int, lr: float, allow: list[str]) -> JobFile:
    optimizer = {"type": "sgd", "lr": lr, "weight_decay": 0.0}
    resume = {"allow": allow}
    made = job(root, steps=steps, optimizer=optimizer, schedule={"type": "constant"}, resume=resume)
    return replace(made, uid=f"u{number}", created=float(number), config_hash=f"c{number}", nodes=1)


def ended(root: Path, the_job: JobFile) -> tuple[Any, Any]:
    """How the job ended, and its progress."""
    members = root / the_job.uid  # machines of its own: nothing in memory
    members.mkdir()
    with worlds.world(train.run, root=members, job=the_job, ranks=1) as running:
        [outcome] = running.join()
        return outcome, running.folders[0].progress()


def weights(checkpoint: Path) -> dict[str, bytes]:
    with Bytes() as data:
        tensors = [(n, ref) for n, ref in read(checkpoint).tensors() if n.startswith("model.") and "running" not in n]
        return {n: data.whole(ref).tobytes() for n, ref in tensors if ref.dtype == "float32"}


def test_a_changed_configuration_is_refused_or_taken_over_as_it_says_and_a_longer_training_goes_on(
    tmp_path: Path,
) -> None:
    first, _ = ended(tmp_path, later(tmp_path, 1, 6, 0.05, []))
    assert (first.kind, first.step) == ("completed", 6)

    refused, _ = ended(tmp_path, later(tmp_path, 2, 9, 0.1, ["optimizer.lr"]))
    assert refused.startswith("ConfigChanged: ")
    assert 'train.duration: "6st" -> "9st"; allow it with resume.allow: [train.duration]' in refused

    longer, progress = ended(tmp_path, later(tmp_path, 3, 9, 0.1, ["optimizer.lr", "train.duration"]))
    assert (longer.kind, longer.step, progress.resumed_from) == ("completed", 9, 6)
    again, progress = ended(tmp_path, later(tmp_path, 4, 9, 0.0001, ["optimizer"]))
    assert (again.step, progress.resumed_from, again.result) == (9, 9, longer.result)

    # The rate is the new configuration's, not the checkpoint's: at a rate of almost nothing no weight moves.
    still, _ = ended(tmp_path, later(tmp_path, 5, 12, 1e-30, ["*"]))
    assert (still.kind, still.step) == ("completed", 12)
    [before], [after] = (list(tmp_path.glob(f"checkpoints/step-{step:09d}.*.final")) for step in (9, 12))
    assert weights(before) == weights(after)
