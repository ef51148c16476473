"""Loaders x faults x accumulation, on 1, 2 and 3 ranks: a script ends with the weights that it would have had.

The lives of one job follow each other in one process of each rank; what a fault takes away is taken away between them.
"""

import contextlib
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from script_loaders import BY_INDEX, BY_OWN_STATE, BY_READING, WITH_PROCESSES, Noisy, UnknownOrder, state_of
from test_train_exact import job
from torch import nn
from torch.utils.data import DataLoader

from relight_agent.files import GenerationFolder
from relight_trainer import client
from relight_trainer.context import WorkerContext
from relight_trainer.session import Cursor, Session

pytestmark = pytest.mark.timeout(600)
LOADERS = {
    **BY_INDEX,
    **WITH_PROCESSES,
    **BY_READING,
    **BY_OWN_STATE,
    "unknown order": lambda rank, world: DataLoader(Noisy(), 2, sampler=UnknownOrder()),
}
FAULTS = ("kill", "preempt", "all at once")
# By accumulation: behind which steps. An epoch of 7 batches has 7 or 3 of them; "no batches" has 14 or 5.
CUTS = {1: (3, 9), 3: (2, 4)}
LIVES = [0]  # of this process


class Died(BaseException):
    """A life's end without a word."""


def train(name: str, accumulate: int, rank: int, world: int) -> str:
    """The digest of the weights at the end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    loader = LOADERS[name](rank, world)
    run = client.start(model=model, optimizer=optimizer, init=True, seed=3, **state_of(name, loader))
    net = run.wrap(model)
    for batch in run.steps(loader, epochs=2, accumulate=accumulate):
        with contextlib.nullcontext() if run.stepping or world == 1 else net.no_sync():  # type: ignore[operator]
            net(batch).pow(2).mean().backward()
        if run.stepping:
            optimizer.step()
            optimizer.zero_grad()
    ended = run.outcome()
    assert ended is not None
    assert ended.result is not None
    return str(ended.result["weightsDigest"])


def life(  # noqa: PLR0917
    context: WorkerContext, folder: Path, name: str, accumulate: int, cut: int | None, fault: str
) -> str:
    """One generation: it dies behind step `cut`, or is stopped there, or ends."""
    LIVES[0] += 1
    generation = LIVES[0]
    slot = folder / f"slot-{context.rank}"
    slot.mkdir(parents=True, exist_ok=True)
    replace(job(folder, checkpoints=True), checkpoint_steps=2).write(slot / "job.json")
    os.environ.update(
        RELIGHT_JOB_FILE=str(slot / "job.json"),
        RELIGHT_RUN_DIR=str(slot),
        RELIGHT_GENERATION=str(generation),
        RELIGHT_GENERATION_DIR=str(GenerationFolder.create(slot, generation).path),
        TORCHELASTIC_RESTART_COUNT=str(generation),
    )
    client._current = None
    random.seed()
    np.random.seed()  # noqa: NPY002  # what a new process begins with
    step_done, requested = Session.step_done, Session._requested
    is_told_to_stop = False

    def step_done_then(self: Session, cursor: Cursor) -> None:
        nonlocal is_told_to_stop
        step_done(self, cursor)
        if cursor.step == cut:
            if fault != "preempt":
                raise Died
            is_told_to_stop = True
            assert self._stop._decided.wait(60)

    Session._requested = lambda _: is_told_to_stop  # type: ignore[method-assign]
    Session.step_done = step_done_then  # type: ignore[method-assign]
    try:
        return train(name, accumulate, context.rank, context.world_size)
    except Died:
        return "died"
    except SystemExit:
        ended = client.outcome()
        return f"{ended.kind}, saved {ended.saved}" if ended else "exit"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        # The process group stays for the next life: ranks that leave one do not meet again at the same addresses.
        Session.step_done, Session._requested = step_done, requested  # type: ignore[method-assign]


def cells(context: WorkerContext, root: Path, names: list[str], accumulates: list[int], faults: list[str]) -> Any:
    """By cell, how its lives ended; under the fault "", the digest of the whole."""
    torch.set_num_threads(1)
    found: dict[tuple[str, int, str], list[str]] = {}
    for name in names:
        for accumulate in accumulates:
            place = root / f"{name}-{accumulate}".replace(" ", "_")
            found[name, accumulate, ""] = [life(context, place / "whole", name, accumulate, None, "")]
            for fault in faults:
                folder = place / fault.replace(" ", "_")
                ends = []
                for cut in (*CUTS[accumulate], None):
                    ends.append(life(context, folder, name, accumulate, cut, fault))
                    lost = fault == "all at once" or (fault == "kill" and context.rank == context.world_size - 1 > 0)
                    if lost and cut is not None:  # with its machine's memory
                        shutil.rmtree(folder / f"slot-{context.rank}", ignore_errors=True)
                found[name, accumulate, fault] = ends
    return found


def check(found: dict[tuple[str, int, str], list[str]], name: str, accumulate: int, fault: str) -> None:
    [whole] = found[name, accumulate, ""]
    ends = found[name, accumulate, fault]
    if name == "unknown order":
        assert any(end.startswith("DataDiffers: the loader") or "Connection" in end for end in ends[1:]), ends
        return
    assert len(whole) == 64 or len(whole) == 16, whole
    middle = "stopped, saved True" if fault == "preempt" else "died"
    assert ends == [middle, middle, whole], (name, accumulate, fault)


def names_for(ranks: int) -> list[str]:
    """One rank alone finds that its order does not repeat, and ends; others here would wait for it in one process."""
    return [name for name in LOADERS if ranks == 1 or name != "unknown order"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_script_ends_with_the_same_weights_whatever_its_loader(tmp_path: Path, ranks: int) -> None:
    """Each loader in one cell for each number of ranks, another one each time; the whole product is the test below."""
    names = names_for(ranks)
    chosen = {name: (FAULTS[(i + ranks) % 3], (1, 3)[(i // 3 + ranks) % 2]) for i, name in enumerate(names)}
    groups: dict[tuple[str, int], list[str]] = {}
    for name, cell in chosen.items():
        groups.setdefault(cell, []).append(name)
    the_job = job(tmp_path, checkpoints=False)
    with worlds.world(all_of, tmp_path, list(groups.items()), root=tmp_path, job=the_job, ranks=ranks) as running:
        for found in running.join(300):
            assert isinstance(found, dict), found
            for name, (fault, accumulate) in chosen.items():
                check(found, name, accumulate, fault)


def all_of(context: WorkerContext, root: Path, groups: list[tuple[tuple[str, int], list[str]]]) -> Any:
    found: dict[Any, Any] = {}
    for (fault, accumulate), names in groups:
        found |= cells(context, root, names, [accumulate], [fault])
    return found


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_whole_product(tmp_path: Path, ranks: int) -> None:
    the_job = job(tmp_path, checkpoints=False)
    names = names_for(ranks)
    with worlds.world(cells, tmp_path, names, [1, 3], list(FAULTS), root=tmp_path, job=the_job, ranks=ranks) as running:
        for found in running.join(550):
            assert isinstance(found, dict), found
            for name in names:
                for accumulate in (1, 3):
                    for fault in FAULTS:
                        check(found, name, accumulate, fault)
