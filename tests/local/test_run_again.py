"""A job that is edited and run again: before its first step, after its end, and from scratch."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from builders import Home, Job, command, script

pytestmark = pytest.mark.timeout(120)


def job(steps: int, **more: object) -> Job:
    return Job(nodes=1, steps=steps, trainer={"config": Job(steps=steps).config(schedule={"type": "constant"}, **more)})


def test_a_job_that_failed_before_its_first_step_is_mended_and_run_again(home: Home) -> None:
    wrong = job(4, hooks=[{"type": "nothere:Hook"}])
    first = home.run(wrong.with_spec(retry={"failures": 0}))
    assert first.code not in {0, 130}, first.said
    again = home.run(job(5).with_spec(retry={"failures": 0}))
    assert again.code == 0, again.said
    assert "the job has done no step yet" in again.said
    assert "spec.trainer.config" in again.said
    assert again.final["steps"] == 5


def test_a_job_that_has_completed_is_trained_on_and_ends_as_one_that_was_longer_from_the_start(home: Home) -> None:
    first = home.run(job(6))
    assert first.code == 0, first.said
    longer = job(12)
    refused = home.run(longer)
    assert refused.code == 64
    assert "spec.trainer.config.train.duration: changed since the job's first step" in refused.said
    assert "--set 'resume.allow=[train.duration]'" in refused.said
    trained_on = home.run(longer, ("--set", "resume.allow=[train.duration]"))
    assert trained_on.code == 0, trained_on.said
    assert (trained_on.final["steps"], trained_on.final["executedSteps"]) == (12, 12)
    fresh = home.run(longer, "--fresh")
    assert fresh.code == 0, fresh.said
    assert fresh.digest == trained_on.digest
    # What --fresh has moved aside: the checkpoints of both runs before it.
    kept = sorted(path.name for path in home.state.glob("before-*/volumes/ckpt/default/*/step-*.final"))
    assert [name.split(".")[0] for name in kept] == ["step-000000006", "step-000000012"]
    assert "the earlier checkpoints and state are kept in" in fresh.said


def test_a_reader_that_goes_away_after_the_end_is_no_error(home: Home) -> None:
    """As `relight run ... | grep -m1 Succeeded`: the reader ends with the line that it has waited for."""
    home.path.mkdir(parents=True)
    file = Job(nodes=1, trainer=command("-c", "pass")).write(home.path)
    argv = [sys.executable, "-m", "relight_operator.cli", "run", str(file), "--state-dir", str(home.state)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        while "Succeeded" not in (line := run.stdout.readline()):
            assert line
        run.stdout.close()
        said = run.stderr.read()
    assert (run.returncode, said) == (141, "")


def test_another_variable_makes_another_training_and_a_harmless_one_does_not(home: Home) -> None:
    def with_env(**env: object) -> Job:
        return Job(nodes=1, trainer=script("counting.py", home.path / "done", env=env))

    assert home.run(with_env(LR="0.1")).code == 0
    refused = home.run(with_env(LR="0.2"))
    assert refused.code == 64
    assert "spec.trainer.env.LR: changed since the job's first step" in refused.said
    assert home.run(with_env(LR="0.1", WANDB_MODE="offline")).code == 0


def test_a_new_job_does_not_take_the_checkpoint_of_one_with_another_variable(home: Home, tmp_path: Path) -> None:
    place = {"checkpoint": {"hostPath": {"path": str(tmp_path / "shared")}, "interval": {"steps": 40}}}

    def with_env(**env: object) -> Job:
        job = Job(nodes=1, trainer=script("counting.py", home.path / "done", env=env))
        return replace(job, spec={**place, "retry": {"failures": 0}})

    assert home.run(with_env(LR="0.1")).code == 0
    # As if the job had been deleted and made anew: nothing is left of it but its checkpoints.
    shutil.rmtree(home.state)
    result = home.run(with_env(LR="0.2"))
    assert result.code == 64, result.said
    assert "env.LR has another value" in result.said
    assert list((tmp_path / "shared").glob("default/*/step-*.final"))
