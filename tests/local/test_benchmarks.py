"""The programs of benchmarks/ in small: that they work, and what they claim."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import SEED

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, results: Path, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable,
            str(BENCHMARKS / f"{name}.py"),
            "--seed",
            str(SEED),
            "--results",
            str(results),
            *map(str, arguments),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (written,) = results.glob(f"{name}*.json")
    return dict(json.loads(written.read_text()))


@pytest.mark.timeout(240)
def test_a_runner_that_is_killed_and_started_again_runs_the_same_job(tmp_path: Path) -> None:
    result = run("coordinator_kill", tmp_path, "--kills", 3)
    assert result["kills"] == 3
    assert not any(job["wrong"] for job in result["jobs"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cut_jobs_are_exact(tmp_path: Path) -> None:
    """On four nodes: every kind of cut on two is test_same_weights'."""
    result = run("exactness", tmp_path, "--steps-each", 1, "--nodes", 4)
    assert result["equal"] == len(result["runs"]) == 2


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_time_to_form_again_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    result = run("reform", tmp_path, "--kills", 2)
    assert len(result["recoveries"]) == 2
    for recovery in result["recoveries"]:
        instants = list(recovery.values())
        assert instants[0] == 0.0
        assert instants == sorted(instants)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_frozen_weights_cost_no_step_and_a_survivor_is_sent_nothing(tmp_path: Path) -> None:
    result = run("frozen_state", tmp_path, "--megabytes", 100)
    assert result["now"]["lost steps"] == 0
    assert result["now"]["sent to the survivor, MB"] == 0
    assert result["now"]["sent to the replacement, MB"] < 1 < result["former"]["sent to the replacement, MB"]
