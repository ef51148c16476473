"""A job under random faults, for as long as is asked for: does it end as if nothing had happened, and what did it cost?

The faults and their moments come from a seed, one a minute unless told otherwise. First the same job runs undisturbed:
its digest is the one to reach, and its pace says what a step takes. Beside what Relight did stands what the policy of the
training operators' defaults would have done with the same faults: all pods made anew, back to a checkpoint a minute.
That one is simulated, from the restart time that benchmarks/recovery.py measured of it (`torchrun-anew`, from the fault
to the state restored), with checkpoints that cost nothing and no fault after the last that Relight met.
"""

import argparse
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

import _runs
from relight_agent.processes import descendants

CALIBRATION_STEPS = 400
IN_CLUSTER = 5  # times as many: there a status shows the step every ten seconds
CHECKPOINT_SECONDS = 60.0  # of the simulated policy
DEAD_SECONDS = 60.0  # a killed machine comes back after so long


class Job(Protocol):
    """One started job."""

    kinds: Sequence[str]

    def status(self) -> dict[str, Any]: ...
    def strike(self, kind: str, rng: random.Random) -> int | None:
        """Bring the fault about; the slot that it met, None where nobody was there to be met."""

    def over(self) -> bool: ...


def spec_of(steps: int, nodes: int) -> dict[str, Any]:
    config = {
        "model": {"type": "digits_cnn", "width": 16},
        "data": {"type": "digits"},
        "train": {"duration": f"{steps}st", "global_batch": 64, "seed": 0, "threads": 1, "device": "cpu"},
    }
    # Killed ranks count as failures, killed members are held against their machines.
    retry = {
        "failures": 10**6, "noProgressLimit": 100, "backoff": {"initial": "0s"}, "avoidMachines": {"afterFailures": 100},
    }  # fmt: skip
    return {
        "nodes": nodes,
        "procPerNode": 1,
        "trainer": {"config": config},
        "retry": retry,
        "disruption": {"gracePeriod": "20s"},
    }


@dataclass
class LocalJob:
    """By `relight run`."""

    state: Path
    process: "subprocess.Popen[str]"
    kinds: Sequence[str] = ("preempt", "kill machine", "kill rank", "kill elastic agent")

    def status(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.state / "job.json").read_text())["status"])
        except FileNotFoundError:
            return {}

    def over(self) -> bool:
        return self.process.poll() is not None

    def strike(self, kind: str, rng: random.Random) -> int | None:
        agents = {p: e for p, e in _runs.processes_of(self.state).items() if _runs.is_agent(p)}
        if not agents:
            return None
        pid = rng.choice(sorted(agents))
        slot = int(agents[pid]["RELIGHT_SLOT"])
        if kind in {"preempt", "kill machine"}:
            words = ["preempt" if kind == "preempt" else "kill", "--agent-pid", str(pid)]
            folder = agents[pid]["RELIGHT_RUN_DIR"]
            command = [sys.executable, "-m", "relight_agent.chaos", *words, "--run-dir", folder, "--grace", "20"]
            subprocess.run(command, check=True)
            return slot
        # Below the agent its launcher, below that torch's elastic agent, below that the ranks.
        below = [p for p in descendants(pid) if descendants(p)]
        if len(below) < 2:
            return None
        os.kill(below[1] if kind == "kill elastic agent" else descendants(below[1])[0], signal.SIGKILL)
        return slot


@contextmanager
def locally(folder: Path, name: str, spec: dict[str, Any]) -> Iterator[LocalJob]:
    home = folder / name
    home.mkdir()
    file = home / "job.yaml"
    spec = {**spec, "checkpoint": {"persistentVolumeClaim": {"claimName": "ckpt"}, "interval": {"steps": 500}}}
    metadata = {"name": "soak"}
    file.write_text(
        yaml.safe_dump(
            {"apiVersion": "relight.dev/v1alpha1", "kind": "TrainingJob", "metadata": metadata, "spec": spec}
        )
    )
    job = LocalJob(home / "state", _runs.start(file, home / "state", "--fresh"))
    try:
        yield job
    finally:
        for _ in range(2):
            if not job.over():
                job.process.send_signal(signal.SIGINT)
                time.sleep(0.2)
        job.process.communicate()


@contextmanager
def in_cluster(operator: Any, spec: dict[str, Any]) -> Iterator[Job]:
    import _cluster  # wants a testbed

    faults = _cluster.faults

    @dataclass
    class ClusterJob:
        job: Any
        kinds: Sequence[str] = ("delete", "evict", "delete by force", "kill container", "preempt", "kill machine")
        dead: dict[str, float] = field(default_factory=dict)

        def status(self) -> dict[str, Any]:
            for node in [n for n, since in self.dead.items() if time.monotonic() - since > DEAD_SECONDS]:
                self.job.cluster.revive_machine(node)
                del self.dead[node]
            status: dict[str, Any] = self.job.status()
            return status

        def over(self) -> bool:
            return self.job.status().get("phase") in {"Succeeded", "Failed"}

        def strike(self, kind: str, rng: random.Random) -> int | None:
            slot = rng.choice([s["slot"] for s in self.job.status()["slots"]])
            pod = self.job.pod(slot)
            if self.job.cluster.get("pod", pod, f"-n={self.job.namespace}") is None:
                return None
            try:
                if kind == "kill machine":
                    if self.dead:  # of three machines two are needed
                        return None
                    node = faults.node_of(self.job, pod)
                    self.dead[node] = time.monotonic()
                    self.job.cluster.kill_machine(node)
                else:
                    acts: dict[str, Callable[..., None]] = {
                        "delete": faults.delete, "evict": faults.evict, "delete by force": faults.delete_by_force,
                        "kill container": faults.kill_process, "preempt": faults.preempt,
                    }  # fmt: skip
                    acts[kind](self.job, pod)
            except (ProcessLookupError, KeyError):
                return None  # it was not there yet, or no more
            return int(slot)

    with _cluster.applied(operator, spec) as applied:
        made = ClusterJob(applied)
        try:
            yield made
        finally:
            for node in made.dead:
                applied.cluster.revive_machine(node)


def until(job: Job, condition: Callable[[dict[str, Any]], object], seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while not condition(status := job.status()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s; the status is {status}")
        time.sleep(0.05)
    return status


def undisturbed(job: Job, steps: int) -> tuple[str, float]:
    """(digest, seconds of a step)."""

    def step(s: dict[str, Any]) -> int:
        return int((s.get("progress") or {}).get("step", 0))

    began_at = step(until(job, lambda s: step(s) > 0 or s.get("phase") in {"Succeeded", "Failed"}, 300))
    began = time.monotonic()
    end = until(job, lambda s: s.get("phase") in {"Succeeded", "Failed"}, 24 * 3600)
    if end["phase"] != "Succeeded":
        raise RuntimeError(f"the undisturbed job failed: {end}")
    return end["result"]["weightsDigest"], (time.monotonic() - began) / max(1, steps - began_at)


def soak(job: Job, every: float, rng: random.Random) -> tuple[list[dict[str, Any]], dict[str, Any], float]:
    """(the faults, the final status, seconds from the first step to the end)."""
    until(job, lambda s: (s.get("world") or {}).get("recovered") or (s.get("progress") or {}).get("step"), 300)
    began, met = time.monotonic(), list[dict[str, Any]]()
    due = began + every * rng.uniform(0.5, 1.5)
    while not job.over():
        status = job.status()
        if time.monotonic() < due:
            time.sleep(0.05)
            continue
        kind = rng.choice(job.kinds)
        slot = job.strike(kind, rng)
        if slot is None:  # in the middle of a recovery: a moment later
            due = time.monotonic() + 1.0
            continue
        met.append(
            {"at": round(time.monotonic() - began, 2), "fault": kind, "slot": slot, "phase": status.get("phase")}
        )
        _runs.say(f"{met[-1]['at']:.0f} s: {kind} of {slot}, in phase {status.get('phase')}")
        due = began + every * (len(met) + rng.uniform(0.5, 1.5))
    return met, job.status(), time.monotonic() - began


def simulated(work: float, faults: Sequence[float], restart: float, interval: float) -> float:
    """Seconds that `work` seconds of steps take where each fault costs a restart and all since the last checkpoint.

    A checkpoint every `interval` seconds of training is free; a fault in a restart begins it anew; after the last of
    `faults` nothing happens any more.
    """
    due = itertools.chain(faults, itertools.repeat(math.inf))
    fault, now, kept = next(due), 0.0, 0.0
    while True:
        span = min(interval, work - kept)
        if now + span <= fault:
            now, kept = now + span, kept + span
            if span < interval or kept >= work:
                return now
            continue
        now = fault + restart
        fault = next(due)
        while fault < now:  # in the middle of a restart, which begins anew
            now = fault + restart
            fault = next(due)


def measured_restart(results: Path) -> float | None:
    """Median seconds from a fault to the state restored, of plain torchrun with all pods made anew."""
    for folder in (results, _runs.RESULTS):
        path = folder / "recovery.json"
        if path.exists():
            runs = json.loads(path.read_text())["runs"]
            took = [r["instants"]["restored"] for r in runs if r["variant"] == "torchrun-anew"]
            if took:
                return _runs.percentile(took, 0.5)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="of the job under faults, about (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="draws faults and moments (default 0)")
    parser.add_argument("--every", type=float, default=60, help="seconds between two faults (default 60)")
    parser.add_argument("--nodes", type=int, default=2, help="members of the job (default 2)")
    parser.add_argument("--cluster", action="store_true", help="on the testbed, not by `relight run`")
    parser.add_argument("--restart", type=float, help="seconds of a restart by the other policy (default: as measured)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for Helm, with --cluster")
    parser.add_argument(
        "--results", type=Path, default=_runs.RESULTS, help="folder for the result (default: %(default)s)"
    )
    arguments = parser.parse_args()
    with jobs(arguments) as start:
        steps = CALIBRATION_STEPS * (IN_CLUSTER if arguments.cluster else 1)
        with start("pace", spec_of(steps, arguments.nodes)) as job:
            _, pace = undisturbed(job, steps)
        steps = max(steps, round(arguments.minutes * 60 / pace))
        _runs.say(f"a step takes {1000 * pace:.1f} ms: {steps} steps")
        with start("undisturbed", spec_of(steps, arguments.nodes)) as job:
            digest, step_seconds = undisturbed(job, steps)
        _runs.say(f"undisturbed: {digest[:16]}, {1000 * step_seconds:.2f} ms a step")
        with start("soak", spec_of(steps, arguments.nodes)) as job:
            met, end, elapsed = soak(job, arguments.every, random.Random(arguments.seed))
    return judge(arguments, Soaked(steps, digest, step_seconds, met, end, elapsed))


@contextmanager
def jobs(arguments: argparse.Namespace) -> Iterator[Callable[[str, dict[str, Any]], Any]]:
    if arguments.cluster:
        import _cluster

        with _cluster.installed(arguments.set) as operator:
            yield lambda _, spec: in_cluster(operator, spec)
    else:
        with tempfile.TemporaryDirectory(prefix="relight-soak-") as folder:
            yield lambda name, spec: locally(Path(folder), name, spec)


class Soaked(NamedTuple):
    """What came of it; `elapsed` seconds from the first step to the end."""

    steps: int
    digest: str  # of the undisturbed job
    step_seconds: float
    met: list[dict[str, Any]]
    end: dict[str, Any]
    elapsed: float


def judge(arguments: argparse.Namespace, soaked: Soaked) -> int:
    steps, digest, step_seconds, met, end, elapsed = soaked
    found = (end.get("result") or {}).get("weightsDigest")
    goodput = end.get("goodput") or {}
    work = steps * step_seconds
    # Both over the seconds from the first step on: how a job comes to its first step is nobody's recovery.
    ours = work / elapsed
    restart = arguments.restart or measured_restart(arguments.results)
    theirs = work / simulated(work, [f["at"] for f in met], restart, CHECKPOINT_SECONDS) if restart else None
    wrong = [
        what
        for what, good in {
            f"phase {end.get('phase')}": end.get("phase") == "Succeeded",
            f"digest {found}": found == digest,
            f"{goodput.get('executedSteps')} steps executed": goodput.get("executedSteps")
            == steps + goodput.get("lostSteps", 0),
        }.items()
        if not good
    ]
    print(
        _runs.table([("at s", "fault", "slot", "phase"), *((f["at"], f["fault"], f["slot"], f["phase"]) for f in met)])
    )
    print(f"{len(met)} faults in {elapsed:.0f} s; by cause: {(end.get('restarts') or {}).get('byCause')}")
    print(f"lost steps {goodput.get('lostSteps')} of {steps}; recoveries {goodput.get('recoveries')}")
    print(f"goodput {ours:.3f}: {steps} steps x {1000 * step_seconds:.2f} ms undisturbed, over {elapsed:.0f} s")
    if goodput.get("ratio") is not None:
        print(f"goodput by the operator's own account, start and end included: {goodput['ratio']}")
    if theirs is None:
        print("the other policy: not simulated, its restart time has not been measured (benchmarks/recovery.py)")
    else:
        print(
            f"the other policy, simulated: goodput {theirs:.3f} with restarts of {restart:.1f} s, a checkpoint a minute"
        )
    result = {
        "where": "testbed" if arguments.cluster else "relight run", "minutes": arguments.minutes, "seed": arguments.seed,
        "every": arguments.every, "nodes": arguments.nodes, "steps": steps, "step seconds": round(step_seconds, 6),
        "seconds": round(elapsed, 1), "faults": met, "restarts": end.get("restarts"), "status goodput": goodput,
        "digest": digest, "goodput": round(ours, 4),
        "simulated": theirs and {"goodput": round(theirs, 4), "restart seconds": restart, "checkpoint seconds": CHECKPOINT_SECONDS},
        "wrong": wrong,
    }  # fmt: skip
    _runs.write(arguments.results, "soak_cluster" if arguments.cluster else "soak", result)
    print(f"soak: {'; '.join(wrong) or 'ended with the digest of the undisturbed run'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
