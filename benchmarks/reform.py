"""How long does it take a world of two nodes to train again after one of them was killed?

One long job in this process; again and again one node's processes are killed and its memory is deleted. All times are
seconds on one clock, CLOCK_MONOTONIC. The replacement's interpreter and imports stand apart: a spare or a warm pool
would have done them beforehand.
"""

import argparse
import asyncio
import itertools
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _runs
from relight_agent import chaos
from relight_agent.files import GenerationFolder, Progress
from relight_operator.api.status import JobStatus
from relight_operator.api.validate import load_job
from relight_operator.coordinator.wire import Report
from relight_operator.core.actions import EmitEvent
from relight_operator.local.private import run_root
from relight_operator.local.runner import Listener, LocalRunner
from relight_operator.local.start import begin
from relight_operator.local.state import StateFolder

# What happens, in order; each is an instant.
MOMENTS = (
    "kill", "detected", "member created", "agent up", "launcher ready", "generation formed", "process group formed",
    "restored", "first step",
)  # fmt: skip


@dataclass
class Recorder(Listener):
    """The instants of one recovery as they are seen from inside the runner."""

    slot: int = -1
    incarnation: int = -1
    generation: int = 0
    at: dict[str, float] = field(default_factory=dict)
    status: JobStatus = field(default_factory=JobStatus)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.on_event, self.on_status, self.on_report = self._event, self._status, self._report

    def begin(self, slot: int) -> None:
        holder = self.status.slots[slot]
        assert self.status.world is not None
        self.slot, self.incarnation, self.generation = slot, holder.incarnation + 1, self.status.world.generation + 1
        self.at = {}

    def _mark(self, moment: str) -> None:
        self.at.setdefault(moment, time.monotonic())

    def _event(self, event: EmitEvent) -> None:
        if event.reason == "MemberLost":
            self._mark("detected")
        elif event.reason == "GenerationFormed":
            self._mark("generation formed")

    def _status(self, status: JobStatus) -> None:
        self.status = status
        holder = next((s for s in status.slots if s.slot == self.slot), None)
        if holder is not None and holder.incarnation == self.incarnation and holder.uid is not None:
            self._mark("member created")
        self.news.set()

    def _report(self, report: Report) -> None:
        if (report.slot, report.incarnation) == (self.slot, self.incarnation):
            self._mark("agent up")
            if report.state == "Ready":
                self._mark("launcher ready")


class Bench:
    def __init__(self, folder: StateFolder, name: str, recorder: Recorder) -> None:
        self._state = folder.path
        self._name = name
        self._recorder = recorder

    @property
    def _run_root(self) -> Path:
        return run_root(self._state)

    async def trains(self) -> Progress:
        """Wait until both members of the present generation have done a step in it; the earlier one's progress."""
        while True:
            world = self._recorder.status.world
            if (
                world is not None
                and world.generation >= self._recorder.generation
                and self._recorder.status.recovery is None
            ):
                members = [self._member(slot) for slot in (0, 1)]
                seen = [GenerationFolder(self._run_root / m / f"gen-{world.generation}").progress() for m in members]
                done = [p for p in seen if p is not None and p.first_step_at is not None]
                if len(done) == len(members):
                    return min(done, key=lambda p: p.first_step_at or 0.0)
            self._recorder.news.clear()
            try:
                async with asyncio.timeout(0.02):
                    await self._recorder.news.wait()
            except TimeoutError:
                pass

    async def kill(self, slot: int) -> dict[str, float]:
        """Kill a node as `--chaos kill-node` does, and wait until the world trains again; the instants."""
        self._recorder.begin(slot)
        uid = self._recorder.status.slots[slot].uid
        of_member = [
            p for p, e in _runs.processes_of(self._state).items() if e.get("RELIGHT_UID") == uid and _runs.is_agent(p)
        ]
        (agent,) = of_member
        member = self._member(slot)
        at = await asyncio.to_thread(self._kill, agent, self._run_root / member)
        progress = await self.trains()
        assert progress.formed_at is not None
        assert progress.restored_at is not None
        assert progress.first_step_at is not None
        return {
            "kill": at,
            **self._recorder.at,
            "process group formed": progress.formed_at,
            "restored": progress.restored_at,
            "first step": progress.first_step_at,
        }

    @staticmethod
    def _kill(agent: int, run_dir: Path) -> float:
        at = time.monotonic()
        chaos.kill(agent)
        shutil.rmtree(run_dir, ignore_errors=True)
        return at

    def _member(self, slot: int) -> str:
        return f"{self._name}-{slot}-{self._recorder.status.slots[slot].incarnation}"


async def measure(state: Path, kills: int, rng: random.Random) -> list[dict[str, float]]:
    job = load_job(_runs.DIGITS)
    assert job.spec.trainer.config is not None
    job.spec.trainer.config["train"]["duration"] = "1000000st"
    folder, recorder = StateFolder(state), Recorder()
    with folder.exclusively():
        stored, _ = begin(folder, job, fresh=True)
        runner = LocalRunner(folder, stored, Path.cwd(), recorder)
        running = asyncio.create_task(runner.run())
        bench = Bench(folder, job.metadata.name, recorder)
        recoveries: list[dict[str, float]] = []
        try:
            await _or_the_runners_end(bench.trains(), running)
            for number in range(kills):
                await asyncio.sleep(rng.uniform(0.3, 1.3))  # train on, to be killed at any point of a step
                recoveries.append(await _or_the_runners_end(bench.kill(number % 2), running))
                took = recoveries[-1]["first step"] - recoveries[-1]["kill"]
                _runs.say(f"{number + 1}/{kills} slot {number % 2} killed: {took:.2f} s")
        finally:
            runner.request_stop()
            runner.request_stop()
            await running
    return recoveries


async def _or_the_runners_end(what: Any, running: "asyncio.Task[JobStatus]") -> Any:
    """`what`, unless the runner ends before: then that is the error."""
    task = asyncio.ensure_future(what)
    await asyncio.wait([task, running], return_when=asyncio.FIRST_COMPLETED, timeout=120.0)
    if task.done():
        return task.result()
    task.cancel()
    raise RuntimeError(f"no new step: {running.result() if running.done() else 'not within 120 s'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many kills (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments (default 0)")
    parser.add_argument(
        "--results", type=Path, default=_runs.RESULTS, help="folder for the result (default: %(default)s)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="relight-reform-") as folder:
        recoveries = asyncio.run(measure(Path(folder) / "state", arguments.kills, random.Random(arguments.seed)))
    spans = {
        f"{before} -> {after}": [r[after] - r[before] for r in recoveries]
        for before, after in itertools.pairwise(MOMENTS)
    }
    total = [r["first step"] - r["kill"] for r in recoveries]
    warming = [r["launcher ready"] - r["member created"] for r in recoveries]
    spans["kill -> first step"] = total
    spans["of it the replacement's interpreter and imports"] = warming
    spans["kill -> first step without them"] = [a - b for a, b in zip(total, warming, strict=True)]
    figures = {name: {"p50": _runs.percentile(v, 0.5), "p95": _runs.percentile(v, 0.95)} for name, v in spans.items()}
    print(_runs.table([("seconds", "p50", "p95"), *((n, f["p50"], f["p95"]) for n, f in figures.items())]))
    relative = [{m: round(r[m] - r["kill"], 4) for m in MOMENTS} for r in recoveries]
    rounded = {n: {k: round(v, 4) for k, v in f.items()} for n, f in figures.items()}
    _runs.write(arguments.results, "reform", {"kills": arguments.kills, "seconds": rounded, "recoveries": relative})
    return 0


if __name__ == "__main__":
    sys.exit(main())
