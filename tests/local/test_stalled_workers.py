"""Workers that hang: found, named with what they were at, and left behind without a step lost."""

import shutil

import pytest
from builders import SCRIPTS, Home, Job, script

pytestmark = pytest.mark.timeout(240)

PATIENCE = 200.0  # of a busy machine
HEALTH = {"heartbeat": "4s", "noProgress": "20s", "startup": "60s"}
CONFIG = {
    "model": {"type": "digits_cnn", "width": 4},
    "data": {"type": "digits"},
    "train": {"duration": "120st", "global_batch": 32, "threads": 1, "log_every": 10},
}


def test_a_stopped_worker_and_one_that_loops_with_the_gil_held_are_found_named_and_left_behind(
    home: Home, digest: str
) -> None:
    home.path.mkdir(parents=True)
    shutil.copy(SCRIPTS / "stuck.py", home.path)
    config = {**CONFIG, "hooks": [{"type": "stuck:Stuck"}]}
    job = Job(trainer={"config": config}).with_spec(health=HEALTH, retry={"backoff": {"initial": "100ms"}})
    run = home.start(job)
    first = run.until(lambda s: (s.get("stall") or {}).get("ended"), "the stopped worker is found", PATIENCE)["stall"]
    result = run.wait(PATIENCE)

    assert result.code == 0, result.said
    assert result.restarts["byCause"] == {"Stall": 2}, result.said
    assert result.final["goodput"]["lostSteps"] == 0
    assert result.digest == digest
    assert [s["incarnation"] for s in result.final["slots"]] == [0, 0], "both members stay"

    assert (first["generation"], first["rank"], first["member"]) == (1, 1, "small-1-0")
    assert (first["section"], first["step"], first["frames"]) == ("train", 30, [])
    assert first["message"].endswith("in train after step 30: its process has been stopped")
    assert first["message"] in result.said

    second = result.final["stall"]
    assert (second["generation"], second["rank"], second["member"]) == (2, 0, "small-0-0")
    assert (second["section"], second["step"]) == ("train", 60)
    assert [f.split(" in ")[1] for f in second["frames"]] == ["match", "never_ends", "forward_end", "timed"]
    assert result.final["lastFailure"]["exitCode"] == 71
    assert result.final["lastFailure"]["message"] == second["message"]
    assert next(c["status"] for c in result.final["conditions"] if c["type"] == "Stalled") == "False"

    kept = home.checkpoints()[0].parent / "stacks"
    pages = {p.relative_to(kept).as_posix(): p.read_text() for p in kept.rglob("*.txt")}
    assert sorted(pages) == [f"generation-{g}/rank-{r}.txt" for g in (1, 2) for r in (0, 1)]
    assert pages["generation-1/rank-1.txt"].startswith("rank 1, process ")
    assert "T (stopped)" in pages["generation-1/rank-1.txt"]
    assert "in _engine_run_backward" in pages["generation-1/rank-0.txt"]
    assert "in never_ends" in pages["generation-2/rank-0.txt"]
    assert "in _engine_run_backward" in pages["generation-2/rank-1.txt"]


def test_an_evaluation_on_one_rank_is_no_stall_though_the_others_are_overdue(home: Home) -> None:
    log = home.state / "members" / "small-1-0" / "log"
    health = {"heartbeat": "2s", "noProgress": "90s"}
    result = home.start(Job(trainer=script("evaluating.py", log), spec={"health": health})).wait(PATIENCE)
    assert "relight-agent: rank 1 has been silent for more than" in log.read_text()
    assert result.code == 0, result.said
    assert result.final["executedSteps"] == 80
    assert result.restarts["total"] == 0
    assert "stall" not in result.final
