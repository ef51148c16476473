"""Does a job that is cut end with the weights of one that is not? examples/digits.yaml, cut at random steps."""

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import _runs


@dataclass(frozen=True)
class Case:
    name: str
    faults: Callable[[random.Random], list[str]]
    causes: dict[str, int]
    most_lost: int = 0
    slow: bool = False  # from the first fault on: a member that is told to leave trains on until its successor is ready


def _preempt_one(rng: random.Random) -> list[str]:
    return [f"preempt-node:1@step:{rng.randrange(5, _runs.STEPS - 30)}"]


def _kill(slot: int) -> Callable[[random.Random], list[str]]:
    return lambda rng: [f"kill-node:{slot}@step:{rng.randrange(1, _runs.STEPS)}"]


def _both(rng: random.Random) -> list[str]:
    first = rng.randrange(5, _runs.STEPS - 100)
    second = rng.randrange(first + 50, _runs.STEPS)
    return [f"preempt-node:1@step:{first}", f"kill-node:0@step:{second}"]


def _kill_all(rng: random.Random) -> list[str]:
    step = rng.randrange(_runs.INTERVAL + 1, _runs.STEPS)
    return [f"kill-node:{slot}@step:{step}" for slot in (0, 1)]


def cases_of(nodes: int) -> list[Case]:
    """Every kind of cut on two nodes; on more, the kill of any one of them."""
    if nodes == 2:
        return CASES
    return [Case(f"kill any of {nodes}", lambda rng: _kill(rng.randrange(nodes))(rng), {"MachineLost": 1})]


NO_FAULT = Case("no fault", lambda _: [], {})
CASES = [
    Case("preempt slot 1", _preempt_one, {"Preempted": 1}, slow=True),
    Case("kill slot 0", _kill(0), {"MachineLost": 1}),
    Case("kill slot 1", _kill(1), {"MachineLost": 1}),
    Case("preempt 1, then kill 0", _both, {"Preempted": 1, "MachineLost": 1}),
    Case("kill all at once", _kill_all, {"MachineLost": 2}, most_lost=_runs.INTERVAL),
]


def digits(folder: Path, nodes: int, slow_from: int | None = None) -> Path:
    """examples/digits.yaml on so many nodes; half a second a step from `slow_from` on, until its second generation."""
    job = yaml.safe_load(_runs.DIGITS.read_text())
    job["spec"]["nodes"] = nodes
    if slow_from is not None:
        shutil.copy(_runs.ROOT / "tests/local/scripts/paced.py", folder)
        job["spec"]["trainer"]["config"]["hooks"] = [{"type": "paced:Paced", "after": slow_from}]
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


def wrong(case: Case, final: dict[str, Any], digest: str) -> list[str]:
    """What is not as it should be after a run of `case`, in words."""
    if final["code"] != 0:
        return [f"exit code {final['code']}"]
    lost, resumed = final["goodput"]["lostSteps"], final["checkpoint"].get("resumedFromStep", 0)
    checks = {
        f"digest {final['weightsDigest']}": final["weightsDigest"] == digest,
        f"{lost} steps lost": lost <= case.most_lost,
        f"{final['executedSteps']} steps executed": final["executedSteps"] == final["steps"] + lost,
        f"{final['steps']} steps": final["steps"] == _runs.STEPS,
        f"resumed from {resumed}": resumed > 0 or not case.causes,
        f"causes {final['restarts']['byCause']}": final["restarts"]["byCause"] == case.causes,
        f"{final['restarts']['failures']} failures": final["restarts"]["failures"] == 0,
    }
    return [text for text, right in checks.items() if not right]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps-each", type=int, default=10, help="random steps for each kind of cut (default 10)")
    parser.add_argument("--nodes", type=int, default=2, help="of the job; where not 2, any one is killed (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="draws the steps (default 0)")
    parser.add_argument(
        "--results", type=Path, default=_runs.RESULTS, help="folder for the result (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.nodes < 2:
        parser.error(f"--nodes {arguments.nodes}: at least 2, for somebody has to survive")
    rng = random.Random(arguments.seed)
    cases = cases_of(arguments.nodes)
    plan = [(NO_FAULT, list[str]())] + [(c, c.faults(rng)) for c in cases for _ in range(arguments.steps_each)]
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="relight-exactness-") as folder:
        state = Path(folder) / "state"
        digest = str(_runs.run(digits(Path(folder), arguments.nodes), state)["weightsDigest"])
        _runs.say(f"no fault: {digest}")
        for number, (case, faults) in enumerate(plan, 1):
            slow_from = int(faults[0].rpartition(":")[2]) if case.slow else None
            final = _runs.run(digits(Path(folder), arguments.nodes, slow_from), state, *_runs.faults(*faults))
            problems = wrong(case, final, digest)
            runs.append(
                {
                    "case": case.name,
                    "faults": faults,
                    "digest": final.get("weightsDigest"),
                    "lostSteps": final.get("goodput", {}).get("lostSteps"),
                    "executedSteps": final.get("executedSteps"),
                    "resumedFromStep": final.get("checkpoint", {}).get("resumedFromStep"),
                    "wrong": problems,
                }
            )
            _runs.say(f"{number}/{len(plan)} {case.name} {' '.join(faults)}: {'; '.join(problems) or 'equal'}")
    rows: list[tuple[object, ...]] = [("case", "runs", "equal", "most steps lost", "executed = total + lost")]
    for case in (NO_FAULT, *cases):
        mine = [r for r in runs if r["case"] == case.name]
        if mine:
            equal = sum(r["digest"] == digest for r in mine)
            sums = sum(r["executedSteps"] == _runs.STEPS + (r["lostSteps"] or 0) for r in mine)
            rows.append((case.name, len(mine), equal, max(r["lostSteps"] or 0 for r in mine), sums))
    print(_runs.table(rows))
    good = sum(not r["wrong"] for r in runs)
    name = "exactness" if arguments.nodes == 2 else f"exactness_{arguments.nodes}_nodes"
    _runs.write(arguments.results, name, {"seed": arguments.seed, "digest": digest, "equal": good, "runs": runs})
    print(f"exactness: {good} of {len(runs)} equal")
    return 0 if good == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
