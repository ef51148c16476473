"""Mutated TrainingJobs through all of the intake: no traceback, and the job beside them goes on.

`RELIGHT_MUTATIONS=N` says how many; `--long` are 50,000.
"""

import asyncio
import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kube_world import World

from relight_operator.kube import decode, slim
from relight_operator.kube.errors import KubeError
from relight_operator.metrics import Metrics

FULL: dict[str, Any] = {
    "suspend": False,
    "nodes": 2,
    "elastic": {"minNodes": 1, "maxNodes": 4, "replacementTimeout": "2m", "growCooldown": "10m", "batch": "Exact"},
    "spares": 1,
    "procPerNode": 2,
    "trainer": {
        "image": "registry.example.com/trainer:0.1",
        "imagePullSecrets": [{"name": "regcred"}],
        "config": {
            "model": {"type": "digits_cnn", "width": 16},
            "data": {"type": "digits"},
            "train": {"duration": "15ep", "global_batch": 64, "seed": 0, "device": "cpu"},
            "schedule": {"type": "cosine", "warmup": "1ep", "cycles": 3, "cycle_growth": 2.0},
            "optimizer": {"type": "sgd", "lr": {"value": 0.4, "at_batch": 256, "scale": "linear"}, "groups": [{"match": "*.bias", "lr_scale": 2}]},
            "loader": {"workers": 2},
            "ema": {"decay": 0.99},
        },
        "python": "/opt/conda/bin/python",
        "env": [
            {"name": "A", "value": "b"},
            {"name": "B", "value": ""},
            {"name": "C", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
        ],
        "envFrom": [{"prefix": "P_", "secretRef": {"name": "keys"}}],
        "resources": {"limits": {"nvidia.com/gpu": 2, "cpu": "500m", "memory": "64Gi"}, "requests": {"cpu": "250m"}},
        "sharedMemory": "64Gi",
        "template": {
            "metadata": {"labels": {"team": "vision"}, "annotations": {"a": "b"}},
            "spec": {
                "nodeSelector": {"pool": "spot"},
                "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]
                        }
                    }
                },
                "volumes": [{"name": "data", "emptyDir": {}}],
                "initContainers": [{"name": "download", "image": "a", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "containers": [{"name": "agent", "volumeMounts": [{"name": "data", "mountPath": "/data"}], "ports": [{"containerPort": 80}]}],
                "securityContext": {"runAsUser": 1},
            },
        },
    },
    "code": {"git": {"url": "https://git.example.com/a.git", "ref": "main", "secretRef": {"name": "git"}, "submodules": False}},
    "checkpoint": {
        "persistentVolumeClaim": {"claimName": "ckpt"},
        "interval": {"time": "10m", "steps": 1000},
        "keep": 3,
        "best": {"metric": "accuracy", "mode": "max"},
        "snapshot": {"every": "Auto"},
    },
    "retry": {
        "failures": 3,
        "window": "1h",
        "backoff": {"initial": "5s", "max": "5m"},
        "rules": [{"match": {"exitCodes": [70]}, "action": "Fail"}, {"match": {"cause": "OutOfMemory"}, "action": "Fail", "after": 2}],
        "avoidMachines": {"afterFailures": 2, "for": "1h"},
    },
    "disruption": {"gracePeriod": "2m", "watchTaints": ["example.com/*"], "deadMachine": {"unreachableFor": "30s"}},
    "health": {"startup": "30m", "onStall": "Restart"},
    "activeDeadlineSeconds": 1000,
}  # fmt: skip
STATUS: dict[str, Any] = {
    "phase": "Running",
    "conditions": [{"type": "PodsReady", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}],
    "slots": [{"slot": 0, "incarnation": 1, "uid": "u", "exit": {"incarnation": 0, "cause": "Preempted", "time": "2026-01-02T03:04:05Z"}}],
    "world": {"generation": 1, "runId": "r", "masterSlot": 0, "masterAddress": "10.0.0.1", "masterPort": 1, "members": [{"rank": 0, "slot": 0, "uid": "u", "address": "10.0.0.1"}]},
    "progress": {"step": 1, "metrics": {"loss": "0.2"}, "updated": "2026-01-02T03:04:05Z"},
    "goodput": {"ratio": "0.9", "buckets": {"productive": 3.0}},
    "stragglers": [{"slot": 0, "uid": "u", "share": "0.3", "since": "2026-01-02T03:04:05Z"}],
    "restarts": {"total": 1, "byCause": {"Preempted": 1}},
    "spec": {"hash": "0123456789", "configMap": "evil-spec-0123456789"},
    "startTime": "2026-01-02T03:04:05Z",
}  # fmt: skip
PIECES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**30, 10**300, -(10**18), 0.5, -0.0, 1e300, 1e-300, float("inf"), float("nan"), "", "x",
    "a\0b", "\ud800", "\x1b[2J", "1e99", "-1", "999999999999999999999s", "10%", "15ep", "2026-01-02T03:04:05", "é" * 50, "a" * 70_000,
    "../../x", "{}", "$(A)", "%s{0}", [], {}, [[]], [None], [{}], {"": ""}, {"a": None}, {"type": "x"}, {"type": {}}, {"name": "agent"}, [1] * 300,
    {"relight.dev/x": "y"}, {f"k{i}": i for i in range(300)},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def mutated(value: Any, rng: random.Random) -> Any:
    """`value` with one to four changes: other values, lost and added keys, doubled entries, exchanged parts, deep nests."""
    made = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        every = [p for p in places(made) if p]
        if not every or max(map(len, every)) > 60:  # the fake server copies recursively
            break
        path = rng.choice(every)
        holder, key = at(made, path[:-1]), path[-1]
        _CHANGES[rng.randrange(len(_CHANGES))](
            holder, key, rng, lambda m=made, e=every: copy.deepcopy(at(m, rng.choice(e)))
        )
    return made


def _replace(holder: Any, key: Any, rng: random.Random, _: Callable[[], Any]) -> None:
    holder[key] = copy.deepcopy(rng.choice(PIECES))


def _lose(holder: Any, key: Any, _: random.Random, __: Callable[[], Any]) -> None:
    del holder[key]


def _move(holder: Any, key: Any, _: random.Random, other: Callable[[], Any]) -> None:
    holder[key] = other()


def _add(holder: Any, key: Any, rng: random.Random, _: Callable[[], Any]) -> None:
    piece = copy.deepcopy(rng.choice(PIECES))
    if isinstance(holder, dict):
        names = ["x", "", "valueFrom", "type", "name", "\ud800", f"{key}s", str(key)[:-1], str(key).upper()]
        holder[rng.choice(names)] = piece
    else:
        holder.insert(rng.randrange(len(holder) + 1), piece)


def _double(holder: Any, key: Any, _: random.Random, __: Callable[[], Any]) -> None:
    if isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = [holder[key]]


def _nest(holder: Any, key: Any, rng: random.Random, _: Callable[[], Any]) -> None:
    for _ in range(rng.choice((1, 3, 66))):
        holder[key] = {"a": holder[key]} if rng.random() < 0.5 else [holder[key]]


_CHANGES = (_replace, _replace, _replace, _lose, _move, _add, _double, _nest)


def entries(rng: random.Random) -> dict[str, Any]:
    """A spec, with one of the four kinds of entry."""
    spec = copy.deepcopy(FULL)
    kind = rng.choice(["config", "config", "script", "module", "command"])
    if kind != "config":
        del spec["trainer"]["config"]
        spec["trainer"][kind] = ["train.py", "--lr", "0.1"]
        spec["elastic"]["batch"] = "Flexible"
    if rng.random() < 0.5:
        del spec["code"]
    for field in ("elastic", "template", "image", "resources"):
        holder = spec if field in spec else spec["trainer"]
        if rng.random() < 0.3:
            holder.pop(field, None)
    return spec


async def through(world: World, body: dict[str, Any]) -> None:
    """As it comes from the server: read, stored, looked at, planned, scraped."""
    client, store = world.client, world.backend.store
    client.objects["trainingjobs", "evil", "evil"] = decode.read(json.dumps(body).encode())
    page = decode.read(json.dumps({"items": [body]}).encode(), slim.job)
    (kept,) = page["items"]
    key = store.put_job(kept)
    world.published.clear()
    for _ in range(3):
        try:
            await world.reconciler.reconcile(key)
        except KubeError:
            pass  # told, and tried again
        store.put_job(client.named("trainingjobs", "evil"))
    world.exposed()
    world.reconciler._forget(key)
    for held in [k for k in client.objects if k[1] == "evil"]:
        del client.objects[held]


class Intake(World):
    def __init__(self) -> None:
        super().__init__()
        self.published: dict[str, str] = {}
        self.metrics = Metrics(self.backend.store.jobs)
        self.reconciler._on_write = self.metrics.on_write

    def exposed(self) -> None:
        text = self.metrics.exposition().decode()
        assert 'relight_job_ready_nodes{name="digits",namespace="ml"}' in text
        assert "relight_reconciles" in text


def run(first: int, count: int) -> None:
    async def every() -> None:
        world = Intake()
        await world.formed()
        for seed in range(first, first + count):
            rng = random.Random(seed)
            own = {"name": "evil", "namespace": "evil", "uid": f"uid-{seed}", "resourceVersion": "1", "generation": 1,
                   "creationTimestamp": "2026-01-02T03:04:05Z"}  # fmt: skip
            metadata: dict[str, Any] = {"labels": {"a": "b"}, "annotations": {"relight.dev/profile": "x"}, "finalizers": ["a.b/c"],
                                        "ownerReferences": [{"kind": "X", "name": "x", "uid": "u", "controller": True}]}  # fmt: skip
            body: dict[str, Any] = {"apiVersion": "relight.dev/v1alpha1", "kind": "TrainingJob", "spec": entries(rng)}
            what = rng.choice(["spec", "spec", "spec", "status", "metadata"])
            if what == "spec":
                body = mutated(body, rng)
            elif what == "status":
                body["status"] = mutated(STATUS, rng)
            else:
                metadata = mutated(metadata, rng)
            try:
                await through(world, {**body, "metadata": {**metadata, **own}})  # the server writes its own over it
            except Exception as error:
                error.add_note(f"seed {seed}")
                raise

    asyncio.run(every())


@pytest.mark.timeout(120)
def test_mutated_jobs_raise_nothing() -> None:
    run(0, int(os.environ.get("RELIGHT_MUTATIONS", "150")))


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(50))
def test_fifty_thousand_mutated_jobs_raise_nothing(part: int) -> None:
    run(1000 + 1000 * part, 1000)
