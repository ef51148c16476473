"""What a script imports is imported once in a member's life, and before it is waited for."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from builders import Home, Job, kill, launcher_of, script, workers_of

pytestmark = pytest.mark.timeout(240)


def test_the_libraries_of_a_script_are_there_when_its_workers_start_again(home: Home) -> None:
    notes, flag = home.path / "notes", home.path / "flag"
    # The second fault is a machine's: whoever comes for it finds the list, and is ready once all is imported.
    run = home.start(Job(steps=200, trainer=script("libraries.py", notes, flag)), kill(0, at=150))
    run.until_step(1)
    launchers = [launcher_of(home, slot) for slot in (0, 1)]
    give_up = time.monotonic() + 60
    while not all("sklearn/ensemble" in Path(f"/proc/{pid}/maps").read_text() for pid in launchers):
        assert time.monotonic() < give_up, run.said()
        time.sleep(0.05)
    [victim] = workers_of(home, 1)
    os.kill(victim, signal.SIGKILL)
    run.until(lambda s: (s.get("world") or {}).get("generation") == 2, "the second generation")
    flag.touch()
    result = run.wait()

    assert result.code == 0, result.said
    assert (result.final["goodput"]["lostSteps"], result.final["executedSteps"]) == (0, 200)
    seen = {
        (generation, rank): (there, took)
        for generation, rank, there, took in map(json.loads, notes.read_text().splitlines())
    }
    assert {key: there for key, (there, _) in seen.items()} == {
        (generation, rank): generation > 1 for generation in (1, 2, 3) for rank in (0, 1)
    }
    first = min(took for (generation, _), (_, took) in seen.items() if generation == 1)
    later = max(took for (generation, _), (_, took) in seen.items() if generation > 1)
    assert later < first / 10
