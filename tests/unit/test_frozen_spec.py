"""The frozen spec is ours, or nothing is run of it: whoever may create ConfigMaps knows its name beforehand."""

import json
import time
from typing import Any

import pytest
from kube_fake import FakeClient
from kube_world import SPEC, World, refuse, scenario

from relight_operator.api.validate import parse_job
from relight_operator.kube import checking
from relight_operator.kube.checking import Checker
from relight_operator.kube.client import CONFIG_MAPS, JOBS
from relight_operator.kube.errors import Forbidden, Invalid, QuotaExceeded
from relight_operator.kube.names import Owner
from relight_operator.kube.spec import Frozen, freeze, manifest

pytestmark = pytest.mark.timeout(30)


async def applied(w: World) -> tuple[Frozen, Owner]:
    """The job, and what it is frozen to, before the operator has seen it."""
    await w.apply()
    body = w.client.named("trainingjobs", "digits")
    owner = Owner("ml", "digits", body["metadata"]["uid"])
    return freeze(parse_job(body), owner, w.backend.defaults), owner


def forged(frozen: Frozen, owner: Owner, **change: Any) -> dict[str, Any]:
    """A ConfigMap with the right name that runs something else."""
    made: dict[str, Any] = json.loads(json.dumps(manifest(frozen, owner)))
    kept = json.loads(made["data"]["spec.json"])
    kept["spec"]["trainer"]["template"] = {"spec": {"nodeName": "control-plane"}}
    kept["pods"]["image"] = "evil:1"
    made["data"]["spec.json"] = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return {**made, **change}


async def put(client: FakeClient, body: dict[str, Any]) -> None:
    await client.create(CONFIG_MAPS, "ml", body)


@pytest.mark.parametrize("what", ["data", "owner", "mutable"])
def test_a_config_map_that_was_there_before_the_job_s_is_refused_and_named(what: str) -> None:
    async def body(w: World) -> None:
        frozen, owner = await applied(w)
        ours = json.loads(json.dumps(manifest(frozen, owner)))
        if what == "data":
            ours = forged(frozen, owner)
        elif what == "owner":
            ours["metadata"]["ownerReferences"][0]["uid"] = "another"
        else:
            del ours["immutable"]
        await put(w.client, ours)
        await w.settle()
        assert w.pods() == []
        assert w.reason("FrozenSpecRefused") is not None
        (event,) = [e for e in w.client.all("events") if e["reason"] == "FrozenSpecRefused"]
        assert f"ConfigMap {frozen.config_map}" in event["message"]
        w.client.remove("configmaps", frozen.config_map)
        await w.settle()
        assert w.pods() == ["digits-0-0", "digits-1-0"]
        assert w.reason("FrozenSpecRefused") is None

    scenario(body)()


@scenario
async def test_the_same_config_map_made_by_an_operator_that_died_is_taken(w: World) -> None:
    frozen, owner = await applied(w)
    await put(w.client, json.loads(json.dumps(manifest(frozen, owner))))
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0"]


@scenario
async def test_a_config_map_that_was_replaced_later_is_refused_at_the_next_load(w: World) -> None:
    await w.formed()
    body = w.client.named("trainingjobs", "digits")
    owner = Owner("ml", "digits", body["metadata"]["uid"])
    frozen = freeze(parse_job({k: v for k, v in body.items() if k != "status"}), owner, w.backend.defaults)
    w.client.remove("configmaps", frozen.config_map)
    await put(w.client, forged(frozen, owner))
    w.start()
    phase = w.status.phase
    w.client.remove("pods", "digits-1-0")
    await w.settle()
    assert w.pods() == ["digits-0-0"], "nothing new is run"
    assert (w.reason("FrozenSpecRefused"), w.status.phase) == ("FrozenSpecRefused", phase)
    w.client.remove("configmaps", frozen.config_map)
    await w.settle()
    assert w.reason("FrozenSpecRefused") is None
    assert len(w.pods()) == 2


@pytest.mark.parametrize(
    ("error", "condition"),
    [
        (QuotaExceeded("exceeded quota: no-more", status=403), "QuotaExceeded"),
        (Invalid("Too long: must have at most 1048576 bytes", status=422), "CreateForbidden"),
        (Forbidden("no", status=403), "CreateForbidden"),
    ],
    ids=["quota", "too-long", "forbidden"],
)
def test_a_config_map_that_cannot_be_made_is_told(error: Exception, condition: str) -> None:
    async def body(w: World) -> None:
        await w.apply()
        w.client.before = refuse(error, "create", "configmaps")
        await w.settle()
        assert (w.pods(), w.status.phase) == ([], "Pending")
        (said,) = [c for c in w.status.conditions if c.status == "True"]
        assert said.type == condition
        assert said.message.startswith("ConfigMap digits-spec-")
        assert str(error) in said.message
        assert condition in {e["reason"] for e in w.client.all("events")}
        w.client.before = lambda *_: None
        await w.settle()
        assert w.pods() == ["digits-0-0", "digits-1-0"]

    scenario(body)()


@scenario
async def test_an_error_that_nobody_foresaw_becomes_a_condition_without_its_words(w: World) -> None:
    await w.apply({**SPEC, "nodes": 1})

    def broken(verb: str, plural: str, _: str) -> None:
        if (verb, plural) == ("create", "services"):
            raise ZeroDivisionError("hunter2 is the password")

    w.client.before = broken
    with pytest.raises(ZeroDivisionError):
        await w.settle()
    (said,) = [c for c in w.status.conditions if c.status == "True"]
    assert (said.type, said.reason) == ("ReconcileFailed", "Unexpected")
    assert said.message.startswith("ZeroDivisionError at test_frozen_spec.py:")
    assert "hunter2" not in json.dumps([*w.client.all("events"), w.client.named("trainingjobs", "digits")])
    before = len(w.client.all("events"))
    with pytest.raises(ZeroDivisionError):
        await w.settle()
    assert len(w.client.all("events")) == before, "said once"
    w.client.before = lambda *_: None
    await w.settle()
    assert w.reason("ReconcileFailed") is None
    assert w.pods() == ["digits-0-0"]


@pytest.mark.parametrize(
    "status",
    [
        {"phase": {}},
        {"slots": "x"},
        {"conditions": 7},
        {"startTime": "yesterday"},
        {"goodput": []},
        [],
        {"startTime": 1e300},
        {"activeSince": "nan"},
        {"slots": [{"slot": 0, "notBefore": "inf"}]},
    ],
)
def test_a_status_that_is_not_ours_is_told_and_stops_its_own_job_alone(status: Any) -> None:
    async def body(w: World) -> None:
        await w.apply()
        found = w.client._live("trainingjobs", "digits")
        found["status"] = status
        w.backend.store.put_job(w.client.named("trainingjobs", "digits"))
        with pytest.raises(Invalid, match="not one of Relight's"):
            await w.reconciler.reconcile("ml/digits")
        if status:
            told = w.client.named("trainingjobs", "digits")["status"]["conditions"]
            assert [c["type"] for c in told] == ["ReconcileFailed"]
        assert w.pods() == []

    scenario(body)()


@scenario
async def test_what_does_not_fit_the_caches_is_read_again(w: World) -> None:
    w.reconciler._caches.known._limit = w.reconciler._caches.frozen._limit = 1
    await w.formed()
    for name in ("b", "c"):
        made = {"apiVersion": "relight.dev/v1alpha1", "kind": "TrainingJob", "spec": SPEC}
        await w.client.create(JOBS, "ml", {**made, "metadata": {"name": name, "namespace": "ml"}})
    for _ in range(3):
        for job in w.client.all("trainingjobs"):
            key = w.backend.store.put_job(job)
            await w.reconciler.reconcile(key)
    assert len(w.reconciler._caches.known) == 1
    assert w.reason("ReconcileFailed") is None
    assert {"b-0-0", "c-1-0", "digits-0-0"} <= set(w.pods())


@scenario
async def test_a_check_that_takes_too_long_is_said_and_tried_again(w: World) -> None:
    w.reconciler._caches.checker = Checker(seconds=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "parse_job", lambda _: time.sleep(0.3))
        await w.apply()
        await w.settle()
        assert w.status.phase == "Invalid"
        (said,) = [c.message for c in w.status.conditions if c.status == "True"]
        assert said.startswith("to check it takes longer than")
    w.reconciler._caches.checker = Checker()
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0"]


@scenario
async def test_a_refused_frozen_spec_of_a_job_that_was_edited_wrongly_is_told_once(w: World) -> None:
    await w.formed()
    body = w.client.named("trainingjobs", "digits")
    owner = Owner("ml", "digits", body["metadata"]["uid"])
    frozen = freeze(parse_job({k: v for k, v in body.items() if k != "status"}), owner, w.backend.defaults)
    w.client.remove("configmaps", frozen.config_map)
    await put(w.client, forged(frozen, owner))
    w.client.edit("trainingjobs", "digits", {"metadata": {"generation": 2}, "spec": {"nodes": 0}})
    w.start()
    await w.settle()
    before = [r for r in w.client.requests if r[0] == "patch"]
    await w.settle()
    assert [r for r in w.client.requests if r[0] == "patch"] == before
    assert w.reason("FrozenSpecRefused") is not None
