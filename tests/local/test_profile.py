"""A signal to `relight run` leaves every worker's trace in the job's checkpoint folder."""

import gzip
import json
import signal

import pytest
from builders import Home, Job

pytestmark = pytest.mark.timeout(180)


def test_a_signal_has_all_workers_trace_their_next_steps(home: Home) -> None:
    run = home.start(Job("traced", steps=100_000, every=1000))
    run.until_step(1)
    run.process.send_signal(signal.SIGUSR1)
    folder = home.state / "volumes/ckpt/default/traced/profiles"
    # What is written is complete once its worker says so.
    run.until(lambda s: len([n for n in s["checkpoint"].get("notices", ()) if "trace" in n]) >= 1, "a trace")
    run.until(lambda _: {rank_of(p.name) for p in folder.glob("*.json.gz")} == {"0", "1"}, "both traces")
    run.interrupt()
    assert run.wait().code == 130
    for path in folder.iterdir():
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        assert any("backward" in str(event.get("name")).lower() for event in events)


def rank_of(name: str) -> str:
    return name.removesuffix(".json.gz").rpartition("-")[2]
