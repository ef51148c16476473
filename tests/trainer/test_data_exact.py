"""A batch is a function of (seed, epoch, indices): whoever loads it, wherever training was cut, in a world of any size."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relight_agent.exits import ExitCode
from relight_trainer.data.draws import Draw, shard
from relight_trainer.data.errors import BadData, DataChanged, StorageTrouble, UnfitData, unreadable
from relight_trainer.data.loading import LoaderDied, SampleFailed, automatic_workers
from relight_trainer.data.splits import Splits, splits_of
from relight_trainer.data.tensors import Repeated, Samples
from relight_trainer.failures import classify
from relight_trainer.sampler import permutation
from relight_trainer.seeds import stream
from relight_trainer.settings.loader import Loader
from relight_trainer.shares import share

CPU = torch.device("cpu")
COUNT = 60


class Noisy:
    """Every generator that a sample may draw from is in it."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "torch": torch.rand(3),
            "random": random.random(),
            "numpy": np.random.random(2),  # noqa: NPY002  # the global generator is the point
        }


def opened(data: Any = None, *, workers: int = 0, seed: int = 0, **loader: Any) -> Splits:
    return splits_of((data or Noisy(), None), Loader(workers=workers, **loader), seed, CPU)


def order(epochs: int, batch: int) -> list[Draw]:
    orders = (permutation(COUNT, stream(0, "data", epoch)) for epoch in range(epochs))
    return [Draw(e, p[i : i + batch]) for e, p in enumerate(orders) for i in range(0, COUNT, batch)]


def part(draw: Draw, rank: int, world: int) -> Draw:
    return Draw(draw.epoch, draw.indices[share(len(draw.indices), rank, world)])


def equal(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_batches_are_the_same_with_any_number_of_loader_processes_and_from_any_cut() -> None:
    draws = order(epochs=2, batch=7)
    whole = list(opened().train.batches(draws))
    assert len(whole) == len(draws) == 18
    assert not torch.equal(whole[0]["torch"], whole[9]["torch"])
    for workers in (1, 2):
        for cut in (0, 1, 9, 17):
            rest = list(opened(workers=workers).train.batches(iter(draws[cut:])))
            assert all(equal(a, b) for a, b in zip(rest, whole[cut:], strict=True))


def test_a_sample_is_another_in_each_epoch_and_with_each_seed() -> None:
    def first(seed: int, epoch: int) -> float:
        [batch] = opened(seed=seed).train.batches([Draw(epoch, np.array([5]))])
        return float(batch["random"])

    assert len({first(0, 0), first(0, 1), first(1, 0)}) == 3
    assert first(0, 0) == first(0, 0)


def test_worlds_of_4_then_2_then_3_ranks_consume_the_very_samples_of_one() -> None:
    draws = order(epochs=2, batch=10)
    whole = list(opened().train.batches(draws))
    worlds = [4] * 3 + [2] * 5 + [3] * 4
    splits = opened()
    for step, (draw, world) in enumerate(zip(draws, worlds, strict=True)):
        parts = [next(iter(splits.train.batches([part(draw, rank, world)]))) for rank in range(world)]
        assert equal({key: torch.cat([p[key] for p in parts]) for key in parts[0]}, whole[step])


def test_loading_neither_reads_nor_disturbs_the_trainings_generators() -> None:
    for workers in (0, 1):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        expected = torch.rand(1).item(), random.random(), np.random.random()  # noqa: NPY002
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        assert len(list(opened(workers=workers).train.batches(order(1, 20)))) == 3
        assert (torch.rand(1).item(), random.random(), np.random.random()) == expected  # noqa: NPY002


def test_a_draw_of_nothing_is_a_batch_of_no_rows() -> None:
    nothing = Draw(0, np.array([], dtype=np.int64))
    for workers in (0, 1):
        [batch] = opened(workers=workers).train.batches([nothing])
        assert {key: (tuple(t.shape), t.dtype) for key, t in batch.items()} == {
            "index": ((0,), torch.int64),
            "torch": ((0, 3), torch.float32),
            "random": ((0,), torch.float64),
            "numpy": ((0, 2), torch.float64),
        }
    [samples] = opened(Samples(torch.ones(4, 2), torch.arange(4))).train.batches([nothing])
    assert samples.inputs.shape == (0, 2)


def test_evaluation_has_each_sample_once_whatever_the_ranks() -> None:
    for size in range(41):
        for world in (1, 2, 3, 4, 41):
            draws = [draw for rank in range(world) for draw in shard(size, rank, world, 3)]
            assert sorted(i for draw in draws for i in draw.indices.tolist()) == list(range(size))
            assert all(0 < len(draw.indices) <= 3 for draw in draws)


def test_loader_processes_ignore_sigterm_and_end_with_the_iterator() -> None:
    batches = opened(workers=2).train.batches(order(2, 5))
    next(batches)
    children = loader_processes()
    assert len(children) == 2
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    assert len(list(zip(range(20), batches, strict=False))) == 20
    assert loader_processes() == children
    batches.close()  # type: ignore[attr-defined]
    assert loader_processes() == []


def test_a_peer_sees_a_workers_end_while_its_loader_processes_live() -> None:
    ours, theirs = socket.socketpair()
    with closing(opened(workers=1).train.batches(order(1, 5))) as batches:  # type: ignore[type-var]
        next(batches)
        ours.close()  # as a killed worker's would be
        theirs.settimeout(5)
        assert theirs.recv(1) == b""
        next(batches)
    theirs.close()


BADLY_ENDED = """
import sys, numpy as np
sys.path[:0] = {path!r}
from relight_trainer.worker import _run_exit_handlers
from test_data_exact import Draw, opened
batches = opened(workers=1).train.batches(Draw(0, np.arange(4)) for _ in range(1000))
next(batches)
print(open("/proc/self/task/" + str(__import__("os").getpid()) + "/children").read().split()[-1], flush=True)
if {wait}:
    sys.stdin.read()
_run_exit_handlers()
"""


def test_a_worker_that_ends_amid_an_epoch_waits_for_no_loader_process() -> None:
    code = BADLY_ENDED.format(path=[str(Path(__file__).parent)], wait=False)
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, timeout=120)  # else for ever
    assert ended.returncode == 0, ended.stderr


def test_a_loader_process_dies_with_its_worker() -> None:
    code = BADLY_ENDED.format(path=[str(Path(__file__).parent)], wait=True)
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    loader = int(worker.stdout.readline())
    assert Path(f"/proc/{loader}").exists()
    worker.kill()
    worker.communicate()
    deadline = time.monotonic() + 30
    while alive(loader) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(loader)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def loader_processes() -> list[int]:
    """The children of this process that are called as torch calls loader processes."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == "pt_data_worker"]


class Failing(Noisy):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 7:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_sample_names_it_and_says_whose_fault_it_is(workers: int) -> None:
    errors: list[tuple[Exception, ExitCode, str]] = [
        (ValueError("not a number"), ExitCode.EXCEPTION, r"ValueError: not a number .*test_data_exact.py:\d+"),
        (BadData("/data/7.png: cannot be read"), ExitCode.BAD_DATA, "/data/7.png: cannot be read"),
        (unreadable("/data/7.png", OSError(5, "Input/output error")), ExitCode.STORAGE_FAILED, "/data/7.png: Input"),
        (MemoryError(), ExitCode.OUT_OF_MEMORY, "MemoryError"),
    ]
    for error, exit_code, text in errors:
        batches = opened(Failing(error), workers=workers).train.batches(
            [Draw(0, np.array([1])), Draw(0, np.array([2, 7]))]
        )
        next(batches)
        with pytest.raises(SampleFailed, match=rf"^data.train\[7\]: {text}") as raised:
            next(batches)
        assert raised.value.exit_code is exit_code
    assert loader_processes() == []


def test_a_lasting_error_of_the_system_is_the_datas_and_a_passing_one_the_storages() -> None:
    assert isinstance(unreadable("a", FileNotFoundError(2, "No such file")), BadData)
    assert isinstance(unreadable("a", OSError(116, "Stale file handle")), StorageTrouble)
    assert str(unreadable("a", ValueError())) == "a: cannot be read: ValueError"


class Endless(torch.utils.data.IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (7, "found an object of builtins.int; allowed: a tuple of a training set and a test set"),
        ((Endless(), None), "data.train: found .*Endless; allowed: a map-style data set"),
        ((Noisy(), iter([])), "data.test: found an object of builtins.list_iterator; allowed: a map-style"),
    ],
)
def test_what_is_no_data_set_is_refused(given: Any, text: str) -> None:
    with pytest.raises(UnfitData, match=text):
        splits_of(given, Loader(), 0, CPU)


def test_data_without_samples_is_refused() -> None:
    with pytest.raises(BadData, match=r"data\.train has no samples"):
        splits_of(([], None), Loader(), 0, CPU)


def test_other_data_than_the_job_began_with_is_refused_unless_allowed() -> None:
    before = opened(Samples(torch.ones(5, 2), torch.arange(5)))
    state = before.identity.state_dict()
    opened(Samples(torch.ones(5, 2), torch.arange(5))).identity.load_state_dict(state)
    for other in (Samples(torch.ones(6, 2), torch.arange(6)), Samples(torch.zeros(5, 2), torch.arange(5)), Noisy()):
        with pytest.raises(
            DataChanged, match=r"data\.train: \d+ samples .* began with 5 samples .*changed_data: allow"
        ):
            opened(other).identity.load_state_dict(state)
        allowed = opened(other, changed_data="allow").identity
        allowed.load_state_dict(state)
        assert allowed.state_dict() != state


def test_samples_that_repeat_are_kept_once() -> None:
    few = Samples(torch.arange(6.0).view(3, 2), torch.arange(3))
    splits = splits_of((Repeated(few, 8), few), Loader(), 0, CPU)
    [batch] = splits.train.batches([Draw(0, np.array([7, 3, 2]))])
    assert batch.labels.tolist() == [1, 0, 2]
    assert splits.train.size == 8


def test_loader_processes_are_as_many_as_the_pods_quota_allows() -> None:
    there = len(os.sched_getaffinity(0))
    assert automatic_workers(1, limit=0.5) == automatic_workers(10**6, limit=None) == 1
    assert automatic_workers(1, limit=None) == automatic_workers(1, limit=1000.0) == min(16, there)


# torch's handler of SIGCHLD raises wherever the process is: in the midst of torch's own opening of a file, too.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_loader_process_that_the_kernel_killed_was_out_of_memory() -> None:
    batches = opened(workers=1).train.batches(order(2, 5))
    next(batches)
    [pid] = loader_processes()

    def lose_it() -> None:
        os.kill(pid, signal.SIGKILL)
        for _ in batches:
            time.sleep(0.05)

    # The second is torch's, raised wherever the signal of the child's end finds this process.
    with pytest.raises(
        (LoaderDied, RuntimeError), match=r"data\.train: .* killed by SIGKILL: the pod's memory|Killed"
    ) as raised:
        lose_it()
    assert classify(raised.value) is ExitCode.OUT_OF_MEMORY
    batches.close()  # type: ignore[attr-defined]
    assert loader_processes() == []
