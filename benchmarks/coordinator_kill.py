"""The process that runs plan() and the coordinator, SIGKILLed at random moments and started again.

In every job: one preemption and one lost node beside. Checked all the while: no member has two agents. Checked at the
end: one job, nothing counted twice, the weights of a job that nothing happened to.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

import _runs

KILLS_A_JOB = 5
# From the start of a runner (None), or from the first sight of the phase, to the runner's end at most.
LONGEST_SECONDS = {None: 5.0, "Running": 1.0, "Recovering": 4.0}
FAULTS = _runs.faults("preempt-node:1@step:100", "kill-node:0@step:200")
CAUSES = {"Preempted": 1, "MachineLost": 1}


class Watch:
    """Looks for members with two agents, in a thread of its own."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.found: set[str] = set()
        self.looks = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            agents = {pid: e for pid, e in _runs.processes_of(self._state).items() if _runs.is_agent(pid)}
            members = Counter(
                f"slot {e['RELIGHT_SLOT']} incarnation {e['RELIGHT_INCARNATION']}" for e in agents.values()
            )
            self.found.update(member for member, count in members.items() if count > 1)
            self.looks += 1


def stored(state: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((state / "job.json").read_text()))
    except FileNotFoundError:
        return {}


def wait_for_a_moment(runner: subprocess.Popen[str], state: Path, rng: random.Random) -> bool:
    """Let the runner be at work until a random instant of a random phase; False where it has ended before."""
    phase = rng.choice([None, "Running", "Recovering"])
    while phase is not None and stored(state).get("status", {}).get("phase") not in {phase, "Succeeded", "Failed"}:
        if runner.poll() is not None:
            return False
        time.sleep(0.01)
    try:
        runner.wait(rng.uniform(0.0, LONGEST_SECONDS[phase]))
    except subprocess.TimeoutExpired:
        return True
    return False


def one_job(state: Path, kills: int, rng: random.Random) -> tuple[dict[str, Any], list[str], set[str], set[str]]:
    """(final status, the phase at each kill, the uids that the job has had, members that had two agents)."""
    phases: list[str] = []
    uids: set[str] = set()
    with Watch(state) as watch:
        runner = _runs.start(_runs.DIGITS, state, "--fresh", *FAULTS)
        while len(phases) < kills and wait_for_a_moment(runner, state, rng):
            runner.kill()
            runner.communicate()
            job = stored(state)
            if job:
                uids.add(job["metadata"]["uid"])
            phases.append(job["status"]["phase"] if job else "before the first write")
            runner = _runs.start(_runs.DIGITS, state, *FAULTS)
        final = _runs.finish(runner)
        uids.add(stored(state)["metadata"]["uid"])
    return final, phases, uids, watch.found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how often the runner is killed (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="draws the moments (default 0)")
    parser.add_argument(
        "--results", type=Path, default=_runs.RESULTS, help="folder for the result (default: %(default)s)"
    )
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    jobs: list[dict[str, Any]] = []
    phases: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="relight-coordinator-") as folder:
        digest = _runs.run(_runs.DIGITS, Path(folder) / "untouched")["weightsDigest"]
        _runs.say(f"no kill: {digest}")
        while phases.total() < arguments.kills:
            state = Path(folder) / f"state-{len(jobs)}"
            kills = min(KILLS_A_JOB, arguments.kills - phases.total())
            final, met, uids, doubles = one_job(state, kills, rng)
            phases.update(met)
            lost = final.get("goodput", {}).get("lostSteps")
            checks = {
                f"exit code {final['code']}": final["code"] == 0,
                f"digest {final.get('weightsDigest')}": final.get("weightsDigest") == digest,
                f"{len(uids)} jobs instead of one": len(uids) == 1,
                f"two agents for {', '.join(sorted(doubles))}": not doubles,
                f"counted {final.get('restarts', {}).get('byCause')}": final.get("restarts", {}).get("byCause")
                == CAUSES,
                f"{lost} steps lost": lost == 0,
                f"{final.get('executedSteps')} steps executed": final.get("executedSteps") == _runs.STEPS,
                "processes left": not _runs.processes_of(state),
            }
            wrong = [text for text, right in checks.items() if not right]
            jobs.append({"killed in": met, "wrong": wrong, "generations": final.get("world", {}).get("generation")})
            _runs.say(
                f"{phases.total()}/{arguments.kills} killed in {', '.join(met)}: {'; '.join(wrong) or 'as it should be'}"
            )
        said = (Path(folder) / "said").read_text()
    if any(job["wrong"] for job in jobs):
        print(said[-8000:])
    print(_runs.table([("phase at the kill", "kills"), *sorted(phases.items())]))
    good = sum(not job["wrong"] for job in jobs)
    result = {"seed": arguments.seed, "kills": phases.total(), "phases": dict(phases), "jobs": jobs}
    _runs.write(arguments.results, "coordinator_kill", result)
    print(f"coordinator_kill: {phases.total()} kills in {len(jobs)} jobs, {good} of {len(jobs)} jobs as they should be")
    return 0 if good == len(jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
