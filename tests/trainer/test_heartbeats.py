"""What a worker's heartbeat says of it, and how long its collectives wait."""

import json
import os
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import worlds
from test_train_exact import job

from relight_agent.files import GenerationFolder, Heartbeat
from relight_trainer import peers, train
from relight_trainer.context import WorkerContext
from relight_trainer.hooks import Hook
from relight_trainer.run import Run

pytestmark = pytest.mark.timeout(120)

SLOW_SECONDS = 0.002  # a sample, on rank 1
SEEN: dict[str, set[str]] = defaultdict(set)


def note(place: str) -> None:
    beat = Heartbeat.read(GenerationFolder(os.environ["RELIGHT_GENERATION_DIR"]).heartbeat_path(0))
    assert beat is not None
    SEEN[place].add(beat[0])


class Samples(torch.utils.data.Dataset[Any]):
    def __init__(self, name: str) -> None:
        self.name = name

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        note(f"{self.name} set")
        if os.environ["RANK"] == "1" and self.name == "training":
            time.sleep(SLOW_SECONDS)
        return torch.full((4,), float(index)), index % 3


def samples() -> tuple[Samples, Samples]:
    return Samples("training"), Samples("test")


class Notes(Hook):
    def forward_end(self, run: Run) -> None:  # as in Hook, and below
        note("forward")

    def evaluation_begin(self, run: Run) -> None:
        note("evaluation")

    def checkpoint_begin(self, run: Run) -> None:
        note("checkpoint")

    def run_end(self, run: Run) -> None:
        path = Path(os.environ["RELIGHT_GENERATION_DIR"]) / "seen.json"
        path.write_text(json.dumps({place: sorted(sections) for place, sections in SEEN.items()}))


def test_a_heartbeat_says_what_the_worker_is_at_and_how_much_of_its_time_is_its_own(tmp_path: Path) -> None:
    own_data = {"data": {"type": "test_heartbeats:samples"}, "loader": {"workers": 0}}
    config = {
        **own_data,
        "model": {"type": "little:Perceptron", "double": False},
        "train": {"duration": "12st", "global_batch": 16, "device": "cpu"},
        "hooks": [{"type": "test_heartbeats:Notes"}],
    }
    the_job = job(tmp_path, **config)
    with worlds.world(train.run, root=tmp_path, job=the_job) as world:
        assert [getattr(o, "kind", o) for o in world.join()] == ["completed"] * 2
    own = []
    for folder in world.folders:
        seen = json.loads((folder.path / "seen.json").read_text())
        assert seen == {
            "training set": ["data"],
            "forward": ["train"],
            "test set": ["evaluation"],
            "evaluation": ["evaluation"],
            "checkpoint": ["checkpoint"],
        }
        last = Heartbeat.read(folder.heartbeat_path(0))
        assert last is not None
        assert last[:2] == ("after", 12)
        told = Heartbeat.read_own(folder.heartbeat_path(0))
        assert told is not None
        assert told[1] == 12
        own.append(told[0])
    # Rank 0 waits for rank 1 in each step, but that is no work of its own.
    assert own[1] > 12 * 8 * SLOW_SECONDS
    assert own[1] - own[0] > 0.5 * 12 * 8 * SLOW_SECONDS


def wait_in_vain(context: WorkerContext, told: float) -> float:
    """Rank 0 waits for a sum that rank 1 never joins; the seconds until it gives up."""
    peers.form(torch.device("cpu"))
    dist.barrier()
    peers.MARGIN_SECONDS = 0.5
    patience = peers.Patience(context.folder.patience)
    patience.follow()  # nothing has been told yet
    context.folder.write_patience(told)
    patience.follow()
    if context.rank == 1:
        time.sleep(told + 2.0)
        return 0.0
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"[Tt]imed out"):
        dist.all_reduce(torch.zeros(()))
    return time.monotonic() - began


def test_collectives_wait_a_little_longer_than_any_rank_may_be_silent(tmp_path: Path) -> None:
    waited, _ = worlds.run(wait_in_vain, 1.0, root=tmp_path, job=job(tmp_path))
    assert 1.4 < waited < peers.TIMEOUT / timedelta(seconds=10)


def time_out(context: WorkerContext, level: str) -> float:
    """The seconds that collectives may take once the agent has said 100, with torch's checks of them at `level`."""
    dist.set_debug_level(getattr(dist.DebugLevel, level))
    peers.form(torch.device("cpu"))
    context.folder.write_patience(100.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        peers.Patience(context.folder.patience).follow()
    backend: Any = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    seconds: float = getattr(backend, "wrapped_pg", backend).options._timeout.total_seconds()
    return seconds


@pytest.mark.parametrize("level", ["OFF", "DETAIL"])
def test_torchs_own_checks_of_collectives_cost_no_warning(tmp_path: Path, level: str) -> None:
    [seconds] = worlds.run(time_out, level, root=tmp_path, job=job(tmp_path), ranks=1)
    assert seconds == 100 + peers.MARGIN_SECONDS


def test_stacks_get_into_an_object_store_by_a_command(tmp_path: Path) -> None:
    page = tmp_path / "stacks-3" / "stacks" / "generation-3" / "rank-0.txt"
    page.parent.mkdir(parents=True)
    page.write_text("rank 0")
    argv = [
        sys.executable,
        "-m",
        "relight_trainer.observe.mirror",
        str(tmp_path / "stacks-3"),
        f"file://{tmp_path}/job",
    ]
    subprocess.run(argv, check=True, timeout=60)
    assert (tmp_path / "job" / "stacks" / "generation-3" / "rank-0.txt").read_text() == "rank 0"
