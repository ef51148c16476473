"""Trainings whose length is a time: all ranks end after the same step, and a resume goes on counting.

Time is a count of steps here: each costs rank 0 a tenth of a second, and rank 1, whose clock decides nothing, more.
"""

import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import worlds
from test_train_exact import job

from relight_agent.files import Outcome
from relight_trainer import train
from relight_trainer.context import WorkerContext
from relight_trainer.hooks import Hook
from relight_trainer.run import Run
from relight_trainer.trained_time import TrainedTime

pytestmark = pytest.mark.timeout(120)


class Tick(Hook):
    """The clock, and the steps that evaluations came after."""

    order = -1
    now: ClassVar[float] = 5000.0
    second_of_step: ClassVar[float] = 0.1
    evaluated: ClassVar[list[int]] = []
    die_in_evaluation_after: ClassVar[int] = 0

    def step_begin(self, run: Run) -> None:  # as in Hook
        Tick.now += self.second_of_step

    def evaluation_begin(self, run: Run) -> None:
        self.evaluated.append(run.step)
        if run.step == self.die_in_evaluation_after:
            os._exit(9)


def life(context: WorkerContext, die_in_evaluation_after: int = 0) -> tuple[Outcome, list[int]]:
    """One life of a worker, in which rank 1 may die: its outcome, and the steps at which it evaluated."""
    assert TrainedTime.__init__.__kwdefaults__ is not None
    TrainedTime.__init__.__kwdefaults__["clock"] = lambda: Tick.now
    Tick.second_of_step = 0.1 if context.rank == 0 else 0.17
    Tick.die_in_evaluation_after = die_in_evaluation_after if context.rank == 1 else 0
    return train.run(context), Tick.evaluated


def timed(root: Path) -> Any:
    the_job = job(
        root,
        data={"type": "digits"},
        schedule={"type": "constant"},
        evaluate={"every": "400ms"},
        hooks=[{"type": "test_trained_time:Tick"}],
    )
    the_job.entry["config"]["train"] |= {"duration": "1s"}
    return the_job


def ended(answers: list[Any]) -> tuple[list[int], list[int]]:
    """The ranks' last steps, and where they evaluated."""
    outcomes = [outcome for outcome, _ in answers]
    assert [outcome.kind for outcome in outcomes] == ["completed"] * len(outcomes)
    assert outcomes[0].result == outcomes[1].result
    assert answers[0][1] == answers[1][1]
    return [outcome.step for outcome in outcomes], answers[0][1]


def test_the_first_rank_s_clock_ends_all_ranks_after_the_same_step(tmp_path: Path) -> None:
    with worlds.world(life, root=tmp_path, job=timed(tmp_path)) as running:
        assert ended(running.join()) == ([10, 10], [4, 8, 10])
        progress = running.folders[0].progress()
    assert progress is not None
    assert (progress.total_steps, progress.metrics["trained"]) == (0, "1s of 1s")
    assert "loss" in progress.metrics
    # Whoever runs it again finds it done.
    again = worlds.run(life, root=tmp_path, job=timed(tmp_path), generation=2)
    assert ended(again) == ([10, 10], [])


def test_time_spent_counts_after_a_resume_and_an_evaluation_that_was_cut_is_made_again(tmp_path: Path) -> None:
    the_job = timed(tmp_path)
    died = worlds.run(life, 4, root=tmp_path, job=the_job)
    assert died[1] == "died"
    shutil.rmtree(tmp_path / "slot-1")  # what is left is of the rank whose clock counts
    assert ended(worlds.run(life, root=tmp_path, job=the_job, generation=2)) == ([10, 10], [4, 8, 10])


def test_who_resumes_at_the_end_ends_there(tmp_path: Path) -> None:
    the_job = timed(tmp_path)
    died = worlds.run(life, 10, root=tmp_path, job=the_job)  # in the last evaluation
    assert died[1] == "died"
    shutil.rmtree(tmp_path / "slot-0")  # what is left is of the rank whose clock decides nothing
    assert ended(worlds.run(life, root=tmp_path, job=the_job, generation=2)) == ([10, 10], [10])
