"""The leading operator is deleted or SIGKILLed again and again, in mid-training and in mid-recovery: does it show?

One job in a real cluster meets all of it. There must never be two pods of one slot and incarnation, every loss must be
counted once, no step may be lost, and the job must end with the weights of a job that nobody disturbed.
"""

import itertools
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import _cluster
import _runs
from _cluster import SYSTEM, Operator, Watch, WatchedJob, faults, waited_for


def delete(operator: Operator) -> None:
    operator.cluster.kubectl("delete", "pod", operator.leader(), f"-n={SYSTEM}", "--wait=false")


def kill(operator: Operator) -> None:
    os.kill(faults.operator_of(operator.leader()), signal.SIGKILL)


ENDS: dict[str, Callable[[Operator], None]] = {"deleted": delete, "SIGKILLed": kill}
MOMENTS = ("training", "recovery")


def end_leader(operator: Operator, job: WatchedJob, how: str, moment: str, rng: random.Random) -> float:
    """Seconds until another leads, and in mid-recovery until the job trains again."""
    status = job.until_training()
    transitions = _transitions(operator)
    if moment == "recovery":
        faults.delete_by_force(job, job.pod(rng.randrange(2)))
        time.sleep(rng.uniform(0.0, 3.0))  # a recovery takes about so long: any point of it
    began = time.monotonic()
    ENDS[how](operator)
    waited_for("another term", lambda: _transitions(operator) > transitions, 60)
    job.until_training(status["world"]["generation"] + (moment == "recovery"))
    return time.monotonic() - began


def _transitions(operator: Operator) -> int:
    """How often the lease has been taken."""
    lease = operator.cluster.get("lease", _cluster.RELEASE, f"-n={SYSTEM}") or {}
    spec = lease.get("spec", {})
    return int(spec.get("leaseTransitions") or 0) if spec.get("holderIdentity") else -1


def doubles(pods: Watch) -> list[str]:
    """Names that more than one pod has had."""
    names = {(s.body["metadata"]["name"], s.body["metadata"]["uid"]) for s in pods.sights}
    return [name for name, count in Counter(name for name, _ in names).items() if count > 1]


def wrong_in(end: dict[str, Any], losses: int, pods: Watch, digest: str) -> list[str]:
    restarts = end["restarts"]
    checks = {
        "succeeded": end["phase"] == "Succeeded",
        "same digest": (end.get("result") or {}).get("weightsDigest") == digest,
        "each loss counted once": (restarts["total"], restarts["disruptions"]) == (losses, losses),
        "budget untouched": (restarts["counted"], restarts["failures"]) == (0, 0),
        "no step lost": end["goodput"]["lostSteps"] == 0,
        "never two pods of one name": not doubles(pods),
        "one pod for each loss": len({s.body["metadata"]["uid"] for s in pods.sights}) == losses + 2,
    }
    return [what for what, good in checks.items() if not good]


def main() -> int:
    parser = _cluster.arguments(__doc__, times=20, what="ends of a leader", draws="the moments")
    parser.add_argument("--steps", type=int, default=30000, help="of the job, enough to outlast them (default 30000)")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    spec = _cluster.spec_of(arguments.steps)
    runs: list[dict[str, Any]] = []
    with _cluster.installed(arguments.set) as operator:
        with _cluster.applied(operator, spec) as job:
            digest = job.until_phase("Succeeded", 3600)["result"]["weightsDigest"]
        with _cluster.applied(operator, spec) as job:
            kinds = itertools.cycle(itertools.product(ENDS, MOMENTS))
            for number, (how, moment) in enumerate(itertools.islice(kinds, arguments.times), start=1):
                took = end_leader(operator, job, how, moment, rng)
                runs.append({"leader": how, "in": moment, "seconds": round(took, 2), "step": job.step()})
                _runs.say(f"{number}/{arguments.times} leader {how} in mid-{moment}: {took:.2f} s")
            end = job.until_ended(3600)
            wrong = wrong_in(end, sum(r["in"] == "recovery" for r in runs), job.sighted, digest)
    rows: list[tuple[object, ...]] = [("leader", "in mid-", "n", "p50 s", "max s")]
    for how, moment in itertools.product(ENDS, MOMENTS):
        took_all = [r["seconds"] for r in runs if (r["leader"], r["in"]) == (how, moment)]
        if took_all:
            rows.append((how, moment, len(took_all), _runs.percentile(took_all, 0.5), max(took_all)))
    print(_runs.table(rows))
    print("wrong:", ", ".join(wrong) or "nothing")
    _runs.write(
        arguments.results,
        "cluster_leader",
        {"steps": arguments.steps, "restarts": end["restarts"], "wrong": wrong, "runs": runs},
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
