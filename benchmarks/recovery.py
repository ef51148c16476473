"""How long does a training stand still when it loses a member, with Relight and with plain torchrun?

One cluster, one trainer, one model, the same faults, a checkpoint at the same interval, images on every machine, four
members over three kubelets. "Stands still" is the time without a new step: it ends with the first one beyond the furthest
that had been done before, and begins with the fault (when the API server shows it, or the SIGKILL), or, where a member that
was told to leave trained on until its successor was ready, when that training stopped.

relight         the job as anybody would write it
relight+spare   with one spare member, where this Relight has spares
torchrun-anew   plain torchrun, as the training operators' defaults run it: one pod ends, all pods are made anew, and the
                training goes on from the newest checkpoint. The controller that does it stands in this file and waits for
                nothing: it removes the pods by force as soon as it sees the end. What real ones wait besides, a Job's
                back-off of 10 s, 20 s, ... up to 6 min, is not in the figures.
torchrun-elastic  torchrun's own restart (c10d, --max-restarts, a keep-alive of 1 s x 3 instead of 5 s x 3, a rendezvous
                store of its own for each round, without which it does not recover): survivors keep their pods, the lost
                one is made anew at once. Its first pod, which has the rendezvous, is spared: without that pod it cannot.
"""

import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _cluster
import _runs
from _cluster import Job, Operator, Sight, WatchedJob, faults, waited_for
from _instants import MOMENTS, STILL, Fault, follow, still
from relight_agent.files import GenerationFolder, JobFile, Progress

MEMBERS = 4
INTERVAL = 100  # steps between two checkpoints
ENDLESS = 10**9
BACK_OFF = "a Job's back-off, 10 s doubling to 360 s, comes on top"
VARIANTS = ("relight", "relight+spare", "torchrun-anew", "torchrun-elastic")
FAULTS = {
    "eviction": (faults.evict, frozenset({"Evicted", "Deleted"}), True),
    "delete": (faults.delete, frozenset({"Deleted"}), True),
    "SIGKILL": (faults.kill_process, frozenset({"MachineUnhealthy"}), False),
}
# torch gives up on a master whose name is not known yet.
NAMED = ("sh", "-c", 'until getent hosts "$0" > /dev/null; do sleep 0.1; done; exec "$@"')
PLAIN_MOMENTS = ("fault", "detected", "pods created", "containers up", "process group formed", "restored", "first step")


def config() -> dict[str, Any]:
    made: dict[str, Any] = _cluster.spec_of(ENDLESS)["trainer"]["config"]
    return made


def spec_of(folder: Path, spares: int) -> dict[str, Any]:
    spec = _cluster.spec_of(ENDLESS)
    spec["trainer"]["resources"] = {"limits": {"nvidia.com/gpu": 2}}  # several members fit on a machine
    spec["checkpoint"] = {"hostPath": {"path": str(folder)}, "interval": {"steps": INTERVAL}}
    # As it is, a few kills within the hour are held against each machine, and who finds no other waits for two minutes.
    spec["retry"] = {"avoidMachines": {"afterFailures": 100}}
    return {**spec, "nodes": MEMBERS, **({"spares": spares} if spares else {})}


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder of this computer, which every machine of the testbed sees and every user may write to."""
    folder = Path(tempfile.mkdtemp(prefix="relight-recovery-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def relight(operator: Operator, spares: int, plan: Sequence[str], rng: random.Random) -> Iterator[dict[str, Any]]:
    """One job that meets all faults of the plan, one after the other."""
    with shared_folder() as folder, _cluster.applied(operator, spec_of(folder, spares)) as job:
        for name in plan:
            before = job.until_training()
            time.sleep(rng.uniform(1.0, 4.0))
            act, causes, through_api = FAULTS[name]
            seats = [m["slot"] for m in before["world"]["members"]]  # whoever is spare now is nobody's loss
            fault = Fault(rng.choice(seats), act, causes, through_api=through_api)
            pod, began = job.pod(fault.slot), time.monotonic()
            act(job, pod)
            instants, after = follow(job, before, fault, began)
            lost = after["goodput"]["lostSteps"] - before["goodput"]["lostSteps"]
            found = {"fault": name, "slot": fault.slot, "lost steps": lost, STILL: still(instants, after)}
            yield {**found, "instants": _relative(instants)}


@dataclass
class Plain:
    """Pods of plain torchrun, and the controller that looks after them."""

    job: WatchedJob  # a name and a namespace; there is no TrainingJob
    image: str
    shared: Path
    elastic: bool
    made: dict[int, str] = field(default_factory=dict)  # rank -> its present pod
    attempt: int = 0

    def begin(self) -> None:
        self.shared.mkdir()
        self.shared.chmod(0o777)
        JobFile(
            namespace="plain", name="plain", uid="plain", created=1.0, nodes=MEMBERS, proc_per_node=1,
            entry={"kind": "config", "config": config()}, config_hash="plain",
            checkpoint_dir=str(self.shared / "checkpoints"), checkpoint_steps=INTERVAL,
        ).write(self.shared / "job.json")  # fmt: skip
        (self.shared / "job.json").chmod(0o644)
        shutil.copy(Path(__file__).with_name("_plain_worker.py"), self.shared / "worker.py")
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "plain"},
            "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"app": "plain"}},
        }
        self._create(service)
        self.create(range(MEMBERS))

    def _create(self, body: dict[str, Any]) -> None:
        self.job.cluster.kubectl("create", f"-n={self.job.namespace}", "-f-", stdin=json.dumps(body))

    def create(self, ranks: Sequence[int]) -> None:
        pods = []
        for rank in ranks:
            self.made[rank] = f"plain-{rank}-{self.attempt}"
            pods.append(self._pod(rank))
        self.attempt += 1
        self._create({"apiVersion": "v1", "kind": "List", "items": pods})

    def _pod(self, rank: int) -> dict[str, Any]:
        name, first = self.made[rank], self.made[0]
        where = (
            ["--rdzv-backend=c10d", f"--rdzv-endpoint={first}.plain:29400", "--rdzv-id=plain", "--max-restarts=1000",
             f"--rdzv-conf=is_host={int(rank == 0)},keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=600"]
            if self.elastic
            else [f"--node-rank={rank}", f"--master-addr={first}.plain", "--master-port=29500", "--max-restarts=0"]
        )  # fmt: skip
        program = ["python3", "-m", "torch.distributed.run", f"--nnodes={MEMBERS}", "--nproc-per-node=1", *where]
        environment = {
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "RELIGHT_UID": name,  # by which the container's PID 1 is found
        }
        container = {
            "name": "agent",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": [*NAMED, f"{first}.plain", *program, str(self.shared / "worker.py"), str(self.shared)],
            "env": [{"name": k, "value": v} for k, v in environment.items()],
            "resources": {"limits": {"nvidia.com/gpu": 2}},
            "volumeMounts": [
                {"name": "tmp", "mountPath": "/tmp"},
                {"name": "shared", "mountPath": str(self.shared)},
                {"name": "shm", "mountPath": "/dev/shm"},
            ],
        }
        spread = {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"app": "plain"}},
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "plain"}},
            "spec": {
                "restartPolicy": "Never",
                "hostname": name,
                "subdomain": "plain",
                "enableServiceLinks": False,
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 20,
                "topologySpreadConstraints": [spread],
                "containers": [container],
                "volumes": [
                    {"name": "shared", "hostPath": {"path": str(self.shared), "type": "Directory"}},
                    {"name": "shm", "emptyDir": {"medium": "Memory"}},
                    {"name": "tmp", "emptyDir": {}},
                ],
            },
        }

    def generation(self) -> int:
        path = self.shared / "generation"
        return int(path.read_text() or 0) if path.exists() else 0

    def folder(self, rank: int, generation: int) -> GenerationFolder:
        return GenerationFolder(self.shared / "runs" / str(rank) / f"gen-{generation}")

    def furthest(self, generation: int) -> int:
        return max(self.folder(rank, generation).furthest_step(1) for rank in range(MEMBERS))

    def progress(self) -> Progress | None:
        return self.folder(0, self.generation()).progress()

    def until_beyond(self, step: int, after: int, seconds: float = 300) -> float:
        """When a generation later than `after` has done more than `step` steps."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            number = self.generation()
            if number > after and self.furthest(number) > step:
                return time.monotonic()
            time.sleep(0.005)
        raise AssertionError(f"no step beyond {step} within {seconds:.0f} s; see the logs in {self.job.namespace}")

    def mend(self, rank: int, began: float) -> dict[str, float]:
        """What the controller does once it sees that the pod of `rank` goes or has gone."""
        lost = self.made[rank]

        def goes(s: Sight) -> bool:
            gone = s.kind == "DELETED" or "deletionTimestamp" in s.body["metadata"]
            return s.body["metadata"]["name"] == lost and (gone or s.body["status"].get("phase") == "Failed")

        until = time.monotonic() + 120
        while (detected := self.job.sighted.first(goes, began)) is None:
            assert time.monotonic() < until, f"{lost}: its end was not seen"
            time.sleep(0.01)
        ranks = [rank] if self.elastic else range(MEMBERS)
        old = [self.made[r] for r in ranks]
        if not self.elastic:
            self.job.kubectl("delete", "pod", *old, "--wait=false", "--force", "--grace-period=0")
        self.create(ranks)
        new = {self.made[r] for r in ranks}
        seen = {"detected": detected}
        waited_for("the new pods", lambda: all(self._added(name) for name in new))
        seen["pods created"] = max(self._added(name) or 0.0 for name in new)
        pids = [waited_for("a container", lambda n=name: _pid_of(n)) for name in new]
        seen["containers up"] = max(faults.started_at(pid) for pid in pids if pid)
        return seen

    def _added(self, name: str) -> float | None:
        return self.job.sighted.first(lambda s: s.body["metadata"]["name"] == name)


def _pid_of(pod: str) -> int | None:
    try:
        return faults.first_process(f"RELIGHT_UID={pod}", "torch.distributed.run")
    except ProcessLookupError:
        return None


def _kill(job: Job, pod: str) -> None:
    del job
    pid = _pid_of(pod)
    assert pid is not None, f"{pod} does not run"
    os.kill(pid, signal.SIGKILL)


def plain(
    operator: Operator, image: str, elastic: bool, plan: Sequence[str], rng: random.Random
) -> Iterator[dict[str, Any]]:
    with shared_folder() as folder, _cluster.watched(operator, "plain") as job:
        pods = Plain(job, image, folder / "shared", elastic)
        pods.begin()
        pods.until_beyond(INTERVAL, 0)
        for name in plan:
            time.sleep(rng.uniform(1.0, 4.0))
            act, _, through_api = FAULTS[name]
            rank = rng.randrange(1 if elastic else 0, MEMBERS)
            generation, lost = pods.generation(), pods.made[rank]
            began = time.monotonic()
            (_kill if name == "SIGKILL" else act)(job, lost)
            seen = pods.mend(rank, began)
            waited_for("a new world", lambda old=generation: pods.generation() > old, 240)
            # Those of the old world stand still by now.
            furthest = pods.furthest(generation)
            first = pods.until_beyond(furthest, generation)
            progress = pods.progress()
            assert progress is not None
            assert progress.formed_at is not None
            assert progress.restored_at is not None
            instants = {
                "fault": seen["detected"] if through_api else began,
                **seen,
                "process group formed": progress.formed_at,
                "restored": progress.restored_at,
                "first step": first,
            }
            lost_steps = furthest - progress.resumed_from
            found = {"fault": name, "slot": rank, "lost steps": lost_steps, STILL: round(first - instants["fault"], 3)}
            yield {**found, "instants": _relative(instants)}


def _relative(instants: dict[str, float]) -> dict[str, float]:
    return {moment: round(at - instants["fault"], 3) for moment, at in instants.items()}


def image_of(operator: Operator) -> str:
    """The trainer's image, as a member of a job has it."""
    with _cluster.applied(operator, _cluster.spec_of(10)) as job:
        job.until_ended()
        image: str = job.pods()[0]["spec"]["containers"][0]["image"]
    return image


def knows_spares(operator: Operator) -> bool:
    """The server drops what its resource does not have; what it has and cannot do yet is Invalid."""
    with shared_folder() as folder, _cluster.applied(operator, spec_of(folder, 1)) as job:
        kept = job.cluster.get("trainingjob", job.name, f"-n={job.namespace}")["spec"].get("spares")
        waited_for("a phase", lambda: job.status().get("phase"))
        time.sleep(2.0)  # an earlier phase may come first
        return bool(kept) and job.status()["phase"] != "Invalid"


def runs_of(operator: Operator, variant: str, image: str, plan: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(f"{seed}/{variant}")
    if variant.startswith("relight"):
        return relight(operator, int(variant == "relight+spare"), plan, rng)
    return plain(operator, image, variant == "torchrun-elastic", plan, rng)


def moments_of(variant: str) -> tuple[str, ...]:
    return MOMENTS if variant.startswith("relight") else PLAIN_MOMENTS


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per variant and fault: how many, the total's percentiles, and the median of each part."""
    rows = []
    for variant, fault in itertools.product(VARIANTS, FAULTS):
        those = [r for r in runs if (r["variant"], r["fault"]) == (variant, fault)]
        if not those:
            continue
        total = [r[STILL] for r in those]
        parts = {}
        for before, after in itertools.pairwise(moments_of(variant)):
            took = [
                r["instants"][after] - r["instants"][before]
                for r in those
                if before in r["instants"] and after in r["instants"]
            ]
            parts[f"-> {after}"] = round(_runs.percentile(took, 0.5), 3) if took else None
        rows.append(
            {
                "variant": variant,
                "fault": fault,
                "n": len(those),
                "p50": _runs.percentile(total, 0.5),
                "p95": _runs.percentile(total, 0.95),
                "most lost steps": max(r["lost steps"] for r in those),
                "parts, p50": parts,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    shown = ("variant", "fault", "n", "p50", "p95", "most lost steps")
    print(_runs.table([shown, *([row[k] for k in shown] for row in rows)]))
    for kind in ("relight", "torchrun"):
        those = [row for row in rows if row["variant"].startswith(kind)]
        if those:
            parts = list(those[0]["parts, p50"])
            text = [[row["variant"], row["fault"], *(_cell(row["parts, p50"][p]) for p in parts)] for row in those]
            print(_runs.table([("seconds, p50", "", *parts), *text]))
    print(f"torchrun-anew: {BACK_OFF}")


def _cell(value: float | None) -> object:
    return "?" if value is None else value


def main() -> int:
    parser = _cluster.arguments(__doc__, times=10, what="each fault for each variant", draws="members and moments")
    parser.add_argument("--only", action="append", choices=VARIANTS, help="this variant; may be repeated")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="this fault; may be repeated")
    arguments = parser.parse_args()
    plan = [name for _ in range(arguments.times) for name in (arguments.fault or FAULTS)]
    runs: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    with _cluster.installed(arguments.set) as operator:
        image = image_of(operator)
        for variant in arguments.only or VARIANTS:
            if variant == "relight+spare" and not knows_spares(operator):
                left_out[variant] = "this Relight has no spares"
                continue
            found_all = runs_of(operator, variant, image, plan, arguments.seed)
            for number, found in enumerate(found_all, start=1):
                runs.append({"variant": variant, **found})
                _runs.say(
                    f"{variant} {number}/{len(plan)} {found['fault']} of {found['slot']}: "
                    f"{found[STILL]:.2f} s, {found['lost steps']} steps lost"
                )
                rows = summary(runs)
                result = {
                    "members": MEMBERS, "interval steps": INTERVAL, "not measured": left_out, "note": BACK_OFF,
                    "summary": rows, "runs": runs,
                }  # fmt: skip
                # After each: an hour of measuring must not hang on its last minute.
                _runs.write(arguments.results, "recovery", result, quiet=True)
    show(summary(runs))
    for variant, why in left_out.items():
        print(f"{variant}: not measured, {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
