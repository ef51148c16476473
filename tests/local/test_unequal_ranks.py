"""The real `relight run` of jobs whose ranks come to hold different weights: failed for good, and nothing wrong kept."""

import shutil

import pytest
from builders import SCRIPTS, Home, Job, script

pytestmark = pytest.mark.timeout(120)


def failed_for_good(home: Home, job: Job) -> str:
    """Run `job`, which may be retried; the message of its only failure."""
    result = home.start(job.with_spec(retry={"failures": 3, "backoff": {"initial": "1s"}})).wait()
    assert (result.code, result.final["phase"], result.reason) == (79, "Failed", "RanksDiffer")
    status = home.status()
    assert status["world"]["generation"] == 1, "it has been tried again"
    assert status["lastFailure"]["exitCode"] == 79
    return str(status["lastFailure"]["message"])


def test_a_script_that_wraps_no_model_fails_and_is_not_retried(home: Home) -> None:
    message = failed_for_good(home, Job(trainer=script("not_wrapped.py", "trains"), every=5))
    assert "after step 1 rank 1 and rank 0 hold different values in model, first in 0." in message


def test_no_checkpoint_holds_one_tensor_of_one_rank_and_the_next_of_another(home: Home) -> None:
    message = failed_for_good(home, Job(trainer=script("not_wrapped.py", "is set"), every=5))
    assert "rank 1 and rank 0 hold different values in model" in message
    assert not list(home.state.rglob("step-*/manifest.json"))


def test_a_hook_that_moves_weights_by_the_rank_fails_the_job(home: Home) -> None:
    home.path.mkdir(parents=True, exist_ok=True)
    shutil.copy(SCRIPTS / "nudge.py", home.path)
    message = failed_for_good(home, Job(trainer={"config": Job().config(hooks=[{"type": "nudge:Nudge"}])}))
    assert "rank 1 and rank 0 hold different values in model" in message
