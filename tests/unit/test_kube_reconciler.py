"""The reconciler on a fake client, with agents that report into the mailbox: its decisions, not the server's."""

import asyncio
from typing import Any

import pytest
from kube_world import KEY, SPEC, World, refuse, scenario

from relight_operator.core.actions import WriteStatus
from relight_operator.kube import reconciler
from relight_operator.kube.backend import Backend
from relight_operator.kube.client import EVENTS
from relight_operator.kube.errors import Conflict, Forbidden, Invalid, PodSecurity, QuotaExceeded, Unavailable, error_of
from relight_operator.kube.observe import HINT_SECONDS
from relight_operator.kube.pods import PodDefaults
from relight_operator.kube.reconciler import Reconciler

pytestmark = pytest.mark.timeout(30)


@scenario
async def test_a_new_job_gets_its_frozen_spec_its_service_and_its_pods(w: World) -> None:
    await w.apply()
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0"]
    (config_map,) = w.client.all("configmaps")
    assert config_map["immutable"] is True
    assert len(w.client.all("services")) == 1
    job = w.client.named("trainingjobs", "digits")
    assert job["status"]["spec"]["configMap"] == config_map["metadata"]["name"]
    for made in (*w.client.all("pods"), config_map, *w.client.all("services")):
        assert made["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]


@scenario
async def test_no_pod_is_created_before_the_status_announces_it(w: World) -> None:
    await w.apply()
    await w.settle()
    asked = [(verb, plural) for verb, plural, _ in w.client.requests if (verb, plural) != ("create", "events")]
    assert asked.index(("patch", "trainingjobs")) < asked.index(("create", "pods"))


@scenario
async def test_ready_members_form_a_generation(w: World) -> None:
    await w.formed()
    world = w.status.world
    assert world is not None
    assert [(m.slot, m.address) for m in world.members] == [(0, "10.0.0.1"), (1, "10.0.0.2")]
    assert world.master_port == 4000
    assert w.reason("PodsReady") == "AllRunning"


@scenario
async def test_an_agent_that_is_heard_before_its_pods_address_is_known_waits_for_it(w: World) -> None:
    await w.apply({**SPEC, "nodes": 1})
    await w.settle()
    w.client.edit("pods", "digits-0-0", {"status": {"phase": "Running"}, "spec": {"nodeName": "n0"}})
    w.report("digits-0-0", state="Ready", port=4000)
    await w.settle()
    assert w.status.world is None
    w.run("digits-0-0")
    await w.settle()
    assert w.status.world is not None
    assert w.status.world.master_address == "10.0.0.1"


@scenario
async def test_a_settled_job_is_not_written_again(w: World) -> None:
    await w.formed()
    before = len(w.client.requests)
    await w.settle()
    await w.settle()
    assert [r for r in w.client.requests[before:] if r[0] != "list"] == []


@scenario
async def test_a_pod_that_was_deleted_is_replaced_and_counted_once(w: World) -> None:
    await w.formed()
    gone = w.client.remove("pods", "digits-1-0")
    gone["metadata"]["deletionTimestamp"] = "2023-11-14T22:13:20Z"
    w.backend.store.remove_pod(gone, w.now)
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-1"]
    assert (w.status.restarts.disruptions, w.status.restarts.by_cause) == (1, {"Deleted": 1})


def saved(step: int = 5) -> dict[str, Any]:
    outcome = {"generation": 1, "kind": "stopped", "step": step, "saved": True}
    return {"state": "Ready", "port": 4000, "generation": 1, "outcome": outcome}


def training(step: int = 5) -> dict[str, Any]:
    progress = {"generation": 1, "step": step, "resumedFrom": 0, "firstStepAge": 1.0}
    return {"state": "Running", "generation": 1, "furthest_step": step, "progress": progress}


@scenario
async def test_a_pod_in_its_grace_period_has_a_successor_that_takes_over_before_it_has_ended(w: World) -> None:
    await w.formed()
    target = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
    told = {"metadata": {"deletionTimestamp": "2023-11-14T22:13:20Z"}, "status": {"conditions": target}}
    uid = w.client.edit("pods", "digits-1-0", told)["metadata"]["uid"]
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0", "digits-1-1"]
    assert w.status.slots[1].uid == uid
    w.run("digits-1-1")
    for name in ("digits-0-0", "digits-1-0"):
        w.report(name, **saved())
    await w.settle()
    world = w.status.world
    assert world is not None
    assert world.generation == 2
    assert w.status.slots[1].incarnation == 1
    assert w.status.restarts.by_cause == {"Evicted": 1}
    w.end("digits-1-0", 75)
    await w.settle()
    assert w.status.restarts.by_cause == {"Evicted": 1}


@scenario
async def test_the_clusters_events_tell_why_a_member_leaves_while_it_still_lives(w: World) -> None:
    """A server before 1.26 says so nowhere else, and a member that hands over is counted before its pod has ended."""
    await w.formed()
    told = {"metadata": {"deletionTimestamp": "2023-11-14T22:13:20Z"}}
    about = {"kind": "Pod", "uid": w.client.edit("pods", "digits-1-0", told)["metadata"]["uid"]}
    await w.settle()
    for seconds in (HINT_SECONDS, 2 * HINT_SECONDS):  # an event may be late
        w.now += seconds
        await w.settle()
    preempted = {"metadata": {"name": "e", "namespace": "ml"}, "reason": "Preempted", "involvedObject": about}
    await w.client.create(EVENTS, "ml", preempted)
    w.now += 4 * HINT_SECONDS
    w.run("digits-1-1")
    for name in ("digits-0-0", "digits-1-0"):
        w.report(name, **saved())
    await w.settle()
    assert w.status.slots[1].incarnation == 1
    assert w.status.restarts.by_cause == {"Preempted": 1}


@scenario
async def test_a_taint_that_announces_a_machines_end_and_is_taken_back(w: World) -> None:
    await w.formed()
    node: dict[str, Any] = {"metadata": {"name": "n1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    w.backend.machines.put({**node, "spec": {"taints": [{"key": "karpenter.sh/disrupted"}]}}, w.now)
    for name in ("digits-0-0", "digits-1-0"):
        w.report(name, **training())
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0", "digits-1-1"]
    assert (w.status.handover, w.status.recovery) == (None, None), "training goes on"
    w.backend.machines.put(node, w.now)
    await w.settle()
    assert w.client.named("pods", "digits-1-1")["metadata"]["deletionTimestamp"]
    assert w.status.restarts.total == 0
    w.backend.machines.put({**node, "spec": {"taints": [{"key": "karpenter.sh/disrupted"}]}}, w.now)
    await w.settle()
    w.run("digits-1-2")
    w.client.edit("pods", "digits-1-2", {"spec": {"nodeName": "n2"}})
    await w.settle()
    assert w.status.handover == 1
    for name in ("digits-0-0", "digits-1-0"):
        w.report(name, **saved())
    await w.settle()
    assert w.status.slots[1].incarnation == 2
    assert w.status.restarts.by_cause == {"MachineLeaving": 1}
    assert w.client.named("pods", "digits-1-0")["metadata"]["deletionTimestamp"]


@scenario
async def test_a_quota_that_the_leaving_pod_still_fills_is_waited_for_quietly(w: World) -> None:
    await w.formed()
    w.client.edit("pods", "digits-1-0", {"metadata": {"deletionTimestamp": "2023-11-14T22:13:20Z"}})
    w.client.before = refuse(QuotaExceeded("exceeded quota", status=403), "create", "pods")
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0"]
    assert w.reason("QuotaExceeded") is None
    # ... but it is told once nobody is there any more whose place it could be.
    w.end("digits-1-0", 75)
    await w.settle()
    assert w.reason("QuotaExceeded") == "QuotaExceeded"
    w.client.before = lambda *_: None
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0", "digits-1-1"]


@scenario
async def test_a_successor_that_vanished_is_found_missing(w: World) -> None:
    await w.formed()
    w.client.edit("pods", "digits-1-0", {"metadata": {"deletionTimestamp": "2023-11-14T22:13:20Z"}})
    await w.settle()
    gone = w.client.remove("pods", "digits-1-1")
    w.backend.store.remove_pod(gone, w.now)
    await w.settle()
    assert w.status.slots[1].successor is not None
    assert w.status.slots[1].successor.incarnation == 2
    w.now += 11
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0", "digits-1-2"]


@scenario
async def test_a_pod_that_vanished_unseen_is_found_missing(w: World) -> None:
    """The watch never said a word: a recovering or suspect job is listed live."""
    await w.formed()
    w.client.remove("pods", "digits-1-0")
    await w.settle()
    assert w.pods() == ["digits-0-0"]
    w.backend.store.suspect(KEY)
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-1"]
    assert w.status.restarts.by_cause == {"Vanished": 1}


@scenario
async def test_what_went_while_no_operator_looked_is_told_by_the_clusters_events(w: World) -> None:
    await w.formed()
    gone = w.client.remove("pods", "digits-1-0")
    about = {"kind": "Pod", "uid": gone["metadata"]["uid"]}
    killing = {"metadata": {"name": "e", "namespace": "ml"}, "reason": "Killing", "involvedObject": about}
    await w.client.create(EVENTS, "ml", killing)
    w.start()
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-1"]
    assert w.status.restarts.by_cause == {"Deleted": 1}


@scenario
async def test_a_deletion_that_never_happened_is_looked_up_before_it_is_believed(w: World) -> None:
    """A label taken from a pod looks like its deletion to a watch that selects by it."""
    await w.formed()
    body = w.client.edit("pods", "digits-1-0", {"metadata": {"labels": {"relight.dev/job": None}}})
    w.backend.store.lose_pod(KEY, body["metadata"]["uid"], w.now)
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0"]
    assert w.status.restarts.total == 0


@scenario
async def test_a_new_operator_goes_on_from_status_alone(w: World) -> None:
    await w.formed()
    world = w.status.world
    w.start()
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0"]
    assert w.status.world == world
    assert w.status.restarts.total == 0


@scenario
async def test_an_operator_that_died_after_a_create_adopts_what_it_made(w: World) -> None:
    await w.apply()
    await w.settle()
    uids = {p["metadata"]["uid"] for p in w.client.all("pods")}
    w.client.edit("trainingjobs", "digits", {"status": {"slots": [{"slot": 0}, {"slot": 1}]}})
    w.start()
    await w.settle()
    assert {p["metadata"]["uid"] for p in w.client.all("pods")} == uids
    assert {s.uid for s in w.status.slots} == uids


@scenario
async def test_a_create_whose_answer_was_lost_is_asked_for_again_by_name(w: World) -> None:
    await w.apply()
    w.client.before = refuse(Unavailable("timed out"), "create", "pods", times=1)
    with pytest.raises(Unavailable):
        await w.settle()
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0"]


@scenario
async def test_a_stale_status_write_is_refused_and_the_job_read_anew(w: World) -> None:
    await w.apply()
    await w.settle()
    w.client.edit("trainingjobs", "digits", {"metadata": {"labels": {"a": "b"}}})
    for name in w.pods():
        w.run(name)
    for pod in w.client.all("pods"):
        w.backend.store.put_pod(pod, w.now)
    with pytest.raises(Conflict):
        await w.reconciler.reconcile(KEY)
    again = await w.reconciler.reconcile(KEY)
    assert again == 0.0
    assert w.status.world is not None


@scenario
async def test_a_failure_uses_up_the_budget_and_a_disruption_does_not(w: World) -> None:
    await w.formed()
    w.end("digits-1-0", 75, '{"exitCode": 75, "message": "saved"}')
    await w.settle()
    assert (w.status.restarts.disruptions, w.status.restarts.counted) == (1, 0)
    w.now += 60
    w.run("digits-1-1")
    await w.settle()
    w.end("digits-1-1", 64, '{"exitCode": 64, "message": "no such model"}')
    await w.settle()
    assert w.status.phase == "Failed"
    assert w.status.last_failure is not None
    assert w.status.last_failure.cause == "BadConfig"


@scenario
async def test_a_job_that_cannot_run_is_invalid_and_gets_no_pods(w: World) -> None:
    await w.apply({"nodes": 0, "trainer": {"module": ["train"]}})
    await w.settle()
    assert (w.status.phase, w.pods()) == ("Invalid", [])
    condition = w.status.conditions[0]
    assert (condition.type, condition.status) == ("Invalid", "True")
    assert "spec.nodes" in condition.message
    assert [e["reason"] for e in w.client.all("events")] == ["Invalid"]


@scenario
async def test_an_invalid_job_that_is_mended_starts(w: World) -> None:
    await w.apply({"nodes": 0, "trainer": {"module": ["train"]}})
    await w.settle()
    w.client.edit("trainingjobs", "digits", {"spec": SPEC, "metadata": {"generation": 2}})
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0"]
    assert w.reason("Invalid") is None


@scenario
async def test_a_local_path_is_no_place_for_checkpoints_in_a_cluster(w: World) -> None:
    await w.apply({**SPEC, "checkpoint": {"uri": "file:///tmp/x"}})
    await w.settle()
    assert w.status.phase == "Invalid"
    assert "spec.checkpoint.uri" in w.status.conditions[0].message


TEMPLATE = {**SPEC, "trainer": {**SPEC["trainer"], "template": {"spec": {"nodeSelector": {"pool": "spot"}}}}}


@scenario
async def test_a_server_is_asked_whether_it_takes_what_a_template_makes_of_a_pod(w: World) -> None:
    await w.apply(TEMPLATE)
    w.client.before = refuse(error_of(400, {"message": 'unknown field "spec.nodeSelektor"'}), "try", "pods")
    await w.settle()
    assert (w.status.phase, w.pods()) == ("Invalid", [])
    assert w.client.all("configmaps") == []  # it may still be edited
    [condition] = [c for c in w.status.conditions if c.type == "Invalid"]
    assert condition.message == (
        'the server does not take a pod as spec.trainer.template makes it: unknown field "spec.nodeSelektor"'
    )
    w.client.before = lambda *_: None
    w.client.edit("trainingjobs", "digits", {"metadata": {"generation": 2}})
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0"]
    assert w.reason("Invalid") is None
    assert all(p["spec"]["nodeSelector"] == {"pool": "spot"} for p in w.client.all("pods"))


@pytest.mark.parametrize(
    "error",
    [
        QuotaExceeded("exceeded quota: q"),
        error_of(400, {"message": 'admission webhook "x" does not support dry run'}),
    ],
    ids=["quota", "a webhook with side effects"],
)
def test_what_may_pass_or_cannot_be_asked_keeps_no_template_from_being_tried(error: Exception) -> None:
    async def body() -> None:
        w = World()
        await w.apply(TEMPLATE)
        w.client.before = refuse(error, "try", "pods")
        await w.settle()
        assert w.pods() == ["digits-0-0", "digits-1-0"]

    asyncio.run(body())


@pytest.mark.parametrize(
    ("error", "condition"),
    [
        (PodSecurity("violates PodSecurity"), "PodSecurity"),
        (Forbidden("no PriorityClass with name reserch was found"), "CreateForbidden"),
        (error_of(400, {"message": 'admission webhook "images" denied the request'}), "PodRefused"),
    ],
    ids=["pod security", "a class that is not there", "a webhook"],
)
def test_a_job_whose_pods_are_forbidden_may_be_edited_until_it_starts(error: Exception, condition: str) -> None:
    async def body() -> None:
        w = World()
        await w.apply(TEMPLATE)
        w.client.before = refuse(error, "try", "pods")
        await w.settle()
        assert (w.status.phase, w.pods(), w.client.all("configmaps")) == ("Pending", [], [])
        assert w.reason(condition) == condition
        w.client.before = lambda *_: None
        w.client.edit("trainingjobs", "digits", {"spec": SPEC, "metadata": {"generation": 2}})
        await w.settle()
        assert w.pods() == ["digits-0-0", "digits-1-0"]
        assert w.reason(condition) is None
        assert w.reason("SpecChangeIgnored") is None

    asyncio.run(body())


@scenario
async def test_a_template_that_is_refused_by_a_later_server_does_not_undo_a_running_job(w: World) -> None:
    await w.apply(TEMPLATE)
    await w.settle()
    w.client.before = refuse(error_of(422, {"message": "no"}), "try", "pods")
    w.client.edit("trainingjobs", "digits", {"metadata": {"labels": {"a": "b"}}})
    await w.settle()
    assert w.status.phase != "Invalid"


@scenario
async def test_a_job_without_a_template_asks_nothing(w: World) -> None:
    await w.apply()
    await w.settle()
    assert not [r for r in w.client.requests if r[0] == "try"]


@scenario
async def test_an_edit_of_a_frozen_field_is_ignored_and_said(w: World) -> None:
    await w.formed()
    w.client.edit("trainingjobs", "digits", {"spec": {"nodes": 5}, "metadata": {"generation": 2}})
    await w.settle()
    assert w.reason("SpecChangeIgnored") == "Frozen"
    assert w.pods() == ["digits-0-0", "digits-1-0"]
    assert w.status.observed_generation == 2
    w.client.edit("trainingjobs", "digits", {"spec": {"nodes": 2}, "metadata": {"generation": 3}})
    await w.settle()
    assert w.reason("SpecChangeIgnored") is None


@scenario
async def test_a_job_that_failed_before_its_first_step_and_is_edited_starts_again_as_it_is_now(w: World) -> None:
    await w.formed()
    before, pods = w.client.named("trainingjobs", "digits")["status"]["spec"]["configMap"], w.pods()
    for pod in pods:
        w.end(pod, 64, "BadConfig")
    await w.settle()
    assert w.status.phase == "Failed"
    w.client.edit("trainingjobs", "digits", {"spec": {"nodes": 3}, "metadata": {"generation": 2}})
    await w.settle()
    assert w.status.phase != "Failed"
    assert w.reason("SpecChangeIgnored") is None
    new = set(w.pods()) - set(pods)
    assert sorted(name.split("-")[1] for name in new) == ["0", "1", "2"]
    assert w.client.named("trainingjobs", "digits")["status"]["spec"]["configMap"] != before


@scenario
async def test_a_job_that_failed_after_its_first_step_stays_what_it_was(w: World) -> None:
    await w.formed()
    did = {"step": 3, "generation": 1, "resumed_from": 0, "first_step_age": 1.0}
    w.report("digits-0-0", state="Running", generation=1, progress=did)
    await w.settle()
    for pod in w.pods():
        w.end(pod, 64, "BadConfig")
    await w.settle()
    assert w.status.phase == "Failed"
    w.client.edit("trainingjobs", "digits", {"spec": {"nodes": 3}, "metadata": {"generation": 2}})
    await w.settle()
    assert w.status.phase == "Failed"


@scenario
async def test_how_patient_a_job_is_may_be_edited_while_it_runs(w: World) -> None:
    await w.formed()
    w.client.edit("trainingjobs", "digits", {"spec": {"health": {"onStall": "Report"}}, "metadata": {"generation": 2}})
    await w.settle()
    assert w.reason("SpecChangeIgnored") is None


@scenario
async def test_a_void_edit_of_a_running_job_leaves_it_running(w: World) -> None:
    await w.formed()
    w.client.edit("trainingjobs", "digits", {"spec": {"nodes": -1}, "metadata": {"generation": 2}})
    await w.settle()
    assert w.reason("SpecChangeIgnored") == "Invalid"
    assert w.status.world is not None
    assert w.status.phase != "Invalid"


@scenario
async def test_pods_stay_what_they_were_at_the_first_start(w: World) -> None:
    """A new operator brings a new default image: the job keeps its own."""
    await w.formed()
    w.start()
    w.reconciler = Reconciler(
        Backend(
            client=w.client, mailbox=w.backend.mailbox, defaults=PodDefaults(image="trainer:2"),
            coordinator=w.backend.coordinator, clock=lambda: w.now, store=w.backend.store,
        )
    )  # fmt: skip
    w.client.remove("pods", "digits-1-0")
    w.backend.store.suspect(KEY)
    await w.settle()
    assert w.client.named("pods", "digits-1-1")["spec"]["containers"][0]["image"] == "trainer:1"


@pytest.mark.parametrize(
    ("error", "condition"),
    [
        (QuotaExceeded("exceeded quota: q"), "QuotaExceeded"),
        (PodSecurity("violates PodSecurity"), "PodSecurity"),
        (Forbidden("no"), "CreateForbidden"),
        (error_of(422, {"message": "spec.x: invalid"}), "PodRefused"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_what_is_in_the_way_of_a_pod_is_said_and_tried_again(error: Exception, condition: str) -> None:
    async def body() -> None:
        w = World()
        await w.apply()
        w.client.before = refuse(error, "create", "pods")
        await w.settle()
        assert w.reason(condition) == condition
        assert condition in {e["reason"] for e in w.client.all("events")}
        w.client.before = lambda *_: None
        await w.settle()
        assert w.pods() == ["digits-0-0", "digits-1-0"]
        assert w.reason(condition) is None

    asyncio.run(body())


@pytest.mark.parametrize(
    ("owner", "condition"),
    [
        ({"kind": "TrainingJob", "name": "digits", "uid": "old", "controller": True}, "WaitingForOldPods"),
        ({"kind": "ReplicaSet", "name": "web", "uid": "x", "controller": True}, "NameConflict"),
        (None, "NameConflict"),
    ],
    ids=["an earlier job's", "somebody's", "nobody's"],
)
def test_a_pod_name_that_is_taken_is_waited_for(owner: dict[str, Any] | None, condition: str) -> None:
    async def body() -> None:
        w = World()
        metadata = {"name": "digits-1-0", "namespace": "ml", "ownerReferences": [owner] if owner else []}
        metadata["labels"] = {"relight.dev/job": "digits"}
        from relight_operator.kube.client import PODS

        await w.client.create(PODS, "ml", {"metadata": metadata, "status": {"phase": "Running"}})
        await w.apply()
        await w.settle()
        assert w.reason(condition) == condition
        assert [s.uid is None for s in w.status.slots] == [False, True]
        w.client.remove("pods", "digits-1-0")
        await w.settle()
        assert w.reason(condition) is None
        assert all(s.uid is not None for s in w.status.slots)

    asyncio.run(body())


@scenario
async def test_a_status_that_is_refused_is_written_without_what_is_only_told(w: World) -> None:
    await w.formed()
    w.client.before = refuse(error_of(500, {"message": "NaN"}), "patch", "trainingjobs", times=1)
    for name in w.pods():
        w.report(name, state="Running", generation=1, port=1, progress={"generation": 1, "step": 3, "total_steps": 9})
    await w.settle()
    # The first write was refused, its repetition without progress taken, and the next one carries it.
    assert w.status.phase == "Running"


@scenario
async def test_old_ended_pods_are_removed_but_for_the_last(w: World) -> None:
    await w.formed()
    for incarnation in range(3):
        w.end(f"digits-1-{incarnation}", 75, '{"exitCode": 75}')
        await w.settle()
        w.now += 120
        w.report("digits-0-0", state="Ready", port=4000)
        w.run(f"digits-1-{incarnation + 1}")
        await w.settle()
    living = [p["metadata"]["name"] for p in w.client.all("pods") if "deletionTimestamp" not in p["metadata"]]
    assert sorted(living) == ["digits-0-0", "digits-1-2", "digits-1-3"]


@scenario
async def test_members_on_a_dead_machine_are_replaced_after_the_wait(w: World) -> None:
    await w.formed()
    from relight_operator.kube.client import NODES

    node = {"metadata": {"name": "n1"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
    await w.client.create(NODES, None, node)
    w.backend.machines.put(node, w.now)
    w.now += 5
    w.report("digits-1-0", state="Running", generation=1)
    w.now += 29
    await w.settle()
    assert w.pods() == ["digits-0-0", "digits-1-0"]
    w.now += 1
    await w.settle()
    assert "digits-1-1" in w.pods()
    assert w.status.restarts.by_cause == {"MachineLost": 1}
    assert "digits-1-0" not in w.pods()  # by force: nobody is there to say that it has ended


@scenario
async def test_a_machine_that_answers_again_is_not_given_up(w: World) -> None:
    await w.formed()
    from relight_operator.kube.client import NODES

    node = {"metadata": {"name": "n1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    await w.client.create(NODES, None, node)
    silent = {"metadata": {"name": "n1"}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
    w.backend.machines.put(silent, w.now)
    w.now += 100
    await w.settle()
    assert w.status.restarts.total == 0


@scenario
async def test_a_new_certificate_reaches_running_pods(w: World) -> None:
    await w.formed()
    w.bundle = "CA 2 CA 1"
    await w.settle()
    bundles = {p["metadata"]["annotations"]["relight.dev/coordinator-ca"] for p in w.client.all("pods")}
    assert bundles == {"CA 2 CA 1"}


@scenario
async def test_a_job_that_is_gone_is_forgotten(w: World) -> None:
    await w.formed()
    body = w.client.remove("trainingjobs", "digits")
    w.backend.store.remove_job(body)
    assert await w.reconciler.reconcile(KEY) is None
    assert w.backend.store.jobs() == {}


@scenario
async def test_a_job_that_is_being_deleted_gets_nothing_new(w: World) -> None:
    await w.formed()
    w.client.edit("trainingjobs", "digits", {"metadata": {"deletionTimestamp": "2023-11-14T22:13:20Z"}})
    w.client.remove("pods", "digits-1-0")
    w.backend.store.suspect(KEY)
    await w.settle()
    assert w.pods() == ["digits-0-0"]


@scenario
async def test_events_follow_only_what_the_server_has_taken(w: World) -> None:
    await w.apply()
    w.client.before = refuse(Unavailable("down"), "patch", "trainingjobs")
    with pytest.raises(Unavailable):
        await w.settle()
    assert w.client.all("events") == []


@scenario
async def test_a_status_that_could_not_be_read_again_is_never_written(w: World) -> None:
    await w.formed()
    before = w.client.named("trainingjobs", "digits")
    broken = w.status.model_copy(update={"world": w.status.world.model_copy(update={"master_address": ""})})  # type: ignore[union-attr]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconciler, "plan", lambda *_: [WriteStatus(broken)])
        with pytest.raises(Invalid, match="masterAddress"):
            await w.settle()
    after = w.client.named("trainingjobs", "digits")
    assert w.reason("ReconcileFailed") == "Invalid"
    assert {**after["status"], "conditions": []} == {**before["status"], "conditions": []}
    await w.settle()
    assert w.reason("ReconcileFailed") is None
