"""A member of a job in a real cluster is taken away, in each of eight ways: what did it cost?

Each time a job of its own, at a random step; it must end with the weights of a job that nobody disturbed. A fault's
instant is when the API server shows it, or the SIGKILL; all instants are on one clock, CLOCK_MONOTONIC of the computer
that carries the testbed's machines. It starts the testbed, or uses the one that runs.
"""

import itertools
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import _cluster
import _runs
from _cluster import Job, Operator, faults, items
from _instants import MOMENTS, STILL, Fault, follow, still


def uncordon(job: Job, node: str) -> None:
    job.cluster.kubectl("uncordon", node)


def revive(job: Job, node: str) -> None:
    job.cluster.revive_machine(node)  # type: ignore[attr-defined]  # the testbed


FAULTS = {
    "delete": Fault(1, faults.delete, frozenset({"Deleted"})),
    "delete the master's": Fault(0, faults.delete, frozenset({"Deleted"})),
    "eviction API": Fault(1, faults.evict, frozenset({"Evicted", "Deleted"})),
    "preemption": Fault(1, faults.preempt, frozenset({"Preempted"})),
    "drain": Fault(1, faults.drain, frozenset({"Evicted", "Deleted"}), undo=uncordon),
    "SIGKILL of PID 1": Fault(1, faults.kill_process, frozenset({"MachineUnhealthy"}), through_api=False),
    "machine killed": Fault(
        1, faults.kill_machine, frozenset({"MachineLost"}), undo=revive, through_api=False, may_lose_steps=True
    ),
    "delete by force": Fault(1, faults.delete_by_force, frozenset({"Deleted"})),
}


def meet(operator: Operator, name: str, steps: int, digest: str, rng: random.Random) -> dict[str, Any]:
    """One job, one fault; what was found."""
    fault = FAULTS[name]
    counted = _cluster.counters(operator, "relight_disruptions_total")
    node = ""
    with _cluster.applied(operator, _cluster.spec_of(steps)) as job:
        try:
            at_step = rng.randint(steps // 5, steps // 2)
            before = _cluster.train_until(job, at_step)
            uids, pod = job.uids(), job.pod(fault.slot)
            node = faults.node_of(job, pod)
            began = time.monotonic()
            # Beside: a drain ends when everything on its machine has ended, not only ours.
            with ThreadPoolExecutor(1) as beside:
                acting = beside.submit(fault.act, job, pod)
                instants, after = follow(job, before, fault, began)
                acting.result()
            if fault.undo is not None:
                fault.undo(job, node)
                node = ""
            end = job.until_ended()
            events = [
                e["message"] for e in items(job.cluster, "events", f"-n={job.namespace}") if e["reason"] == "MemberLost"
            ]
        finally:
            if node and fault.undo is not None:
                fault.undo(job, node)
    metric = _cluster.increase(counted, _cluster.counters(operator, "relight_disruptions_total"))
    causes = end["restarts"].get("byCause", {})
    checks = {
        "succeeded": end["phase"] == "Succeeded",
        "same digest": (end.get("result") or {}).get("weightsDigest") == digest,
        "survivor kept": {s["slot"]: s["uid"] for s in end["slots"]}[1 - fault.slot] == uids[1 - fault.slot],
        "cause in status": sum(causes.values()) == 1 and set(causes) <= fault.causes,
        "cause in Event": len(events) == 1 and any(c in events[0] for c in causes),
        "cause in metric": {c: n for c, n in metric.items() if n} == causes,
        "budget untouched": (end["restarts"]["counted"], end["restarts"]["failures"]) == (0, 0),
        "no step lost": fault.may_lose_steps or end["goodput"]["lostSteps"] == 0,
    }
    return {
        "fault": name,
        "steps": steps,
        "at step": at_step,
        "cause": ",".join(causes),
        "lost steps": end["goodput"]["lostSteps"],
        STILL: still(instants, after),
        "instants": {m: round(v - instants["fault"], 3) for m, v in instants.items()},
        "wrong": [what for what, good in checks.items() if not good],
    }


def summary(runs: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    """Medians of the phases per fault, in seconds."""
    spans = list(itertools.pairwise(MOMENTS))
    rows: list[tuple[object, ...]] = [
        ("fault", "n", "cause", "lost", *(f"-> {b}" for _, b in spans), "total", STILL, "wrong")
    ]
    for name in FAULTS:
        those = [r for r in runs if r["fault"] == name]
        if not those:
            continue

        def median(a: str, b: str, those: list[dict[str, Any]] = those) -> object:
            took = [r["instants"][b] - r["instants"][a] for r in those if a in r["instants"] and b in r["instants"]]
            return _runs.percentile(took, 0.5) if took else "?"

        rows.append(
            (
                name,
                len(those),
                ",".join(sorted({r["cause"] for r in those})),
                max(r["lost steps"] for r in those),
                *(median(a, b) for a, b in spans),
                median("fault", "first step"),
                _runs.percentile([r[STILL] for r in those], 0.5),
                ", ".join(sorted({w for r in those for w in r["wrong"]})) or "-",
            )
        )
    return rows


def main() -> int:
    parser = _cluster.arguments(__doc__, times=5, what="each fault", draws="the steps")
    parser.add_argument("--steps", type=int, default=2500, help="of a job, about 60 s on two cores (default 2500)")
    parser.add_argument("--only", action="append", choices=list(FAULTS), help="this fault; may be repeated")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    runs: list[dict[str, Any]] = []
    with _cluster.installed(arguments.set) as operator:
        began = time.monotonic()
        with _cluster.applied(operator, _cluster.spec_of(arguments.steps)) as job:
            digest = job.until_phase("Succeeded", 600)["result"]["weightsDigest"]
        undisturbed = time.monotonic() - began
        _runs.say(f"undisturbed: {undisturbed:.0f} s, {digest[:16]}")
        for number, name in itertools.product(range(arguments.times), arguments.only or FAULTS):
            found = meet(operator, name, arguments.steps, digest, rng)
            runs.append(found)
            wrong = f" WRONG: {', '.join(found['wrong'])}" if found["wrong"] else ""
            _runs.say(
                f"{number + 1}/{arguments.times} {name} at step {found['at step']}: {found['cause']}, "
                f"{found['lost steps']} lost, {found[STILL]:.2f} s{wrong}"
            )
            # After each: an hour of measuring must not hang on its last minute.
            result = {"undisturbedSeconds": round(undisturbed, 1), "digest": digest, "runs": runs}
            _runs.write(arguments.results, "cluster_faults", result)
    print(_runs.table(summary(runs)))
    return 1 if any(r["wrong"] for r in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
