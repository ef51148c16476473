"""The store, the machines, the status on the wire, the frozen spec, the metrics, the command line."""

import json
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from kube_fake import _merge

from relight_operator.__main__ import main
from relight_operator.api.bounds import MAX_BYTES
from relight_operator.api.job import ElasticSpec, TrainingJob
from relight_operator.api.status import Condition, JobStatus, ProgressStatus, RecoveryRecord, RecoveryStatus, Restarts
from relight_operator.api.template import Template, TemplateMetadata
from relight_operator.api.validate import parse_job
from relight_operator.frozen import frozen_changes
from relight_operator.kube import status as wire
from relight_operator.kube.machines import Machines
from relight_operator.kube.names import Owner
from relight_operator.kube.pods import INSTALLED, PodDefaults
from relight_operator.kube.spec import NotOurs, effective, freeze, load, manifest
from relight_operator.kube.store import Store
from relight_operator.metrics import Metrics

JOB = TrainingJob.model_validate(
    {
        "metadata": {"name": "d", "namespace": "ml", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {
            "nodes": 2,
            "trainer": {"module": ["train"]},
            "checkpoint": {"persistentVolumeClaim": {"claimName": "c"}},
        },
    }
)
OWNER = Owner("ml", "d", "u")
DEFAULTS = PodDefaults(image="trainer:1", resources={"limits": {"nvidia.com/gpu": 8}}, image_pull_secrets=("s",))


def pod(version: int, uid: str = "p", *, deleting: bool = False, phase: str = "Running") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "d-0-0", "namespace": "ml", "uid": uid, "resourceVersion": str(version)}
    metadata["labels"] = {"relight.dev/job": "d"}
    if deleting:
        metadata |= {"deletionTimestamp": "2023-11-14T22:13:50Z", "deletionGracePeriodSeconds": 30}
    return {"metadata": metadata, "spec": {"nodeName": "n", "containers": []}, "status": {"phase": phase}}


# -- the store


def test_an_older_state_does_not_replace_a_newer_one() -> None:
    store = Store()
    store.put_pod(pod(10), 1.0)
    store.put_pod(pod(9, phase="Pending"), 2.0)
    assert store.pods("ml/d")["p"].body["status"]["phase"] == "Running"


def test_the_first_sign_of_an_end_is_when_it_was_seen() -> None:
    store = Store()
    store.put_pod(pod(1), 1.7e9)
    store.put_pod(pod(2, deleting=True), 1.7e9 + 3.25)
    store.put_pod(pod(3, deleting=True, phase="Failed"), 1.7e9 + 9)
    assert store.pods("ml/d")["p"].first_sign == 1.7e9 + 3.25


def test_an_end_that_was_not_seen_live_counts_from_the_objects_own_times() -> None:
    store = Store()
    store.put_pod(pod(2, deleting=True), 1.7e9 + 500)
    assert store.pods("ml/d")["p"].first_sign == 1.7e9


def test_what_a_removed_pod_said_last_is_kept() -> None:
    store = Store()
    store.put_pod(pod(1), 1.0)
    assert store.remove_pod(pod(2, phase="Failed"), 2.0) == "ml/d"
    record = store.pods("ml/d")["p"]
    assert (record.gone, record.body["status"]["phase"], record.first_sign) == (True, "Failed", 2.0)


def test_a_job_that_was_made_anew_survives_the_deletion_of_the_old_one() -> None:
    store = Store()
    new = {"metadata": {"namespace": "ml", "name": "d", "uid": "new", "resourceVersion": "9"}}
    store.put_job(new)
    store.remove_job({"metadata": {"namespace": "ml", "name": "d", "uid": "old"}})
    assert store.job("ml/d") == new


def test_a_strangers_pod_is_nobodys() -> None:
    assert Store().put_pod({"metadata": {"name": "x", "namespace": "ml", "uid": "y"}}, 0.0) is None


# -- machines

UNREACHABLE = 30.0  # seconds


def node(name: str, ready: str = "True", taint: str | None = None) -> dict[str, Any]:
    spec = {"taints": [{"key": taint}]} if taint else {}
    return {"metadata": {"name": name}, "spec": spec, "status": {"conditions": [{"type": "Ready", "status": ready}]}}


@pytest.mark.parametrize(
    "silent", [node("n", "Unknown"), node("n", "False"), node("n", taint="node.kubernetes.io/unreachable")]
)
def test_a_machine_is_dead_once_neither_it_nor_its_agent_has_been_heard(silent: dict[str, Any]) -> None:
    machines = Machines()
    machines.put(node("n"), 0.0)
    assert machines.dead_at("n", 0.0, 1000.0, UNREACHABLE) is None
    machines.put(silent, 100.0)
    machines.put(silent, 120.0)
    assert machines.dead_at("n", None, 121.0, UNREACHABLE) == 100.0 + UNREACHABLE
    assert machines.dead_at("n", 115.0, 121.0, UNREACHABLE) == 115.0 + UNREACHABLE
    machines.put(node("n"), 125.0)
    assert machines.dead_at("n", None, 500.0, UNREACHABLE) is None


def test_many_machines_that_go_silent_together_are_not_dead() -> None:
    machines = Machines()
    for name in "abcde":
        machines.put(node(name), 0.0)
    for name in "abc":
        machines.put(node(name, "Unknown"), 100.0)
    at = machines.dead_at("a", None, 200.0, UNREACHABLE)
    assert at is not None
    assert at > 200.0
    machines.put(node("c"), 201.0)
    assert machines.dead_at("a", None, 202.0, UNREACHABLE) == 100.0 + UNREACHABLE


@pytest.mark.parametrize(
    ("taint", "watched", "leaving"),
    [
        ("cloud.google.com/impending-node-termination", [], True),
        ("aws-node-termination-handler/spot-itn", [], True),
        ("ToBeDeletedByClusterAutoscaler", [], True),
        ("karpenter.sh/disrupted", [], True),
        ("karpenter.sh/nodepool", [], False),
        ("node.kubernetes.io/memory-pressure", [], False),
        ("node.kubernetes.io/unreachable", [], False),
        ("example.com/maintenance", [], False),
        ("example.com/maintenance", ["example.com/maintenance"], True),
        ("example.com/maintenance-soon", ["example.com/maintenance"], False),
        ("example.com/maintenance-soon", ["example.com/*"], True),
    ],
)
def test_a_taint_that_announces_a_machines_end(taint: str, watched: list[str], leaving: bool) -> None:
    machines = Machines()
    machines.put(node("n"), 0.0)
    assert not machines.put(node("n"), 1.0)
    assert not machines.is_leaving("n", watched)
    assert machines.put(node("n", taint=taint), 2.0), "whoever has a pod there is to look again"
    assert machines.is_leaving("n", watched) == leaving
    assert machines.put(node("n"), 3.0)
    assert not machines.is_leaving("n", watched)


# -- the status on the wire


def full_status() -> JobStatus:
    return JobStatus(
        phase="Recovering",
        start_time=1.7e9 + 0.123456,
        conditions=[Condition(type="T", status="True", reason="R", last_transition_time=1.7e9)],
        recovery=RecoveryStatus(generation=1, since=1.7e9 + 0.5, cause="Deleted"),
        progress=ProgressStatus(step=3, metrics={"loss": "nan", "old": "1"}),
    )


def test_a_status_survives_the_wire() -> None:
    status = full_status()
    there = json.loads(json.dumps(wire.dump(status), allow_nan=False))
    again = wire.parse(there)
    assert wire.dump(again) == there
    assert again.start_time == pytest.approx(status.start_time, abs=1e-6)
    assert again.model_copy(update={"start_time": status.start_time}) == status


def test_times_that_others_read_are_rfc_3339() -> None:
    there = wire.dump(full_status())
    assert there["conditions"][0]["lastTransitionTime"] == "2023-11-14T22:13:20.000000Z"
    assert there["startTime"] == "2023-11-14T22:13:20.123456Z"
    assert there["recovery"]["since"] == 1.7e9 + 0.5


def test_what_is_cleared_is_removed_and_what_is_not_known_stays() -> None:
    raw = {**wire.dump(full_status()), "fromTheFuture": 1}
    old = wire.parse(raw)
    new = old.model_copy(update={"recovery": None, "progress": ProgressStatus(step=4, metrics={"loss": "0.1"})})
    patch = wire.merge_patch(raw, wire.dump(old), wire.dump(new))
    assert patch["recovery"] is None
    assert patch["progress"] == {"step": 4, "metrics": {"loss": "0.1", "old": None}}
    assert "fromTheFuture" not in patch
    _merge(raw, patch)
    assert wire.parse(raw) == new


JSON = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_makes_the_new_from_the_old(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = wire.merge_patch(old, old, new)
    made = json.loads(json.dumps(old))
    _merge(made, patch)
    assert made == new
    assert (patch == {}) == (old == new)


def test_control_needs_nothing_that_is_only_told() -> None:
    patch = {"phase": "Running", "progress": {"metrics": {}}, "result": {"weightsDigest": "d", "metrics": {"a": "b"}}}
    assert wire.control_only(patch) == {"phase": "Running", "result": {"weightsDigest": "d"}}


# -- the frozen spec


def test_a_frozen_spec_comes_back_from_its_config_map() -> None:
    frozen = freeze(JOB, OWNER, DEFAULTS)
    kept = json.loads(json.dumps(manifest(frozen, OWNER)))
    again = load(kept, OWNER, frozen.hash)
    assert (again.spec, again.job_file, again.hash) == (frozen.spec, frozen.job_file, frozen.hash)
    assert again.defaults.resources == DEFAULTS.resources
    assert kept["metadata"]["name"] == f"d-spec-{frozen.hash[:10]}"
    assert load(kept, OWNER, frozen.hash[:10]).hash == frozen.hash, "statuses of earlier versions hold ten digits"


def test_members_find_their_checkpoints_below_the_mount() -> None:
    file = freeze(JOB, OWNER, DEFAULTS).job_file
    assert file.checkpoint_dir == "/checkpoints/ml/d"
    assert (file.uid, file.nodes, file.entry) == ("u", 2, {"kind": "module", "argv": ["train"]})
    assert file.created == 1767323045.0


def test_the_name_tells_the_content() -> None:
    first = freeze(JOB, OWNER, DEFAULTS)
    assert freeze(JOB, OWNER, DEFAULTS).hash == first.hash
    assert freeze(JOB, OWNER, PodDefaults(image="trainer:2")).hash != first.hash
    assert freeze(JOB, Owner("ml", "d", "another uid"), DEFAULTS).hash != first.hash


def job_with(**trainer: Any) -> TrainingJob:
    value = JOB.dump()
    value["spec"]["trainer"] |= trainer
    return TrainingJob.model_validate(value)


def test_the_gpus_of_a_member_say_how_many_workers_it_has() -> None:
    gpus = {"limits": {"nvidia.com/gpu": 8}}
    installation = PodDefaults(image="i", resources=gpus)
    assert freeze(JOB, OWNER, PodDefaults(image="i")).job_file.proc_per_node == 1
    assert freeze(job_with(resources=gpus), OWNER, PodDefaults(image="i")).job_file.proc_per_node == 8
    assert freeze(JOB, OWNER, installation).job_file.proc_per_node == 8
    assert freeze(job_with(resources={"limits": {"cpu": "2"}}), OWNER, installation).job_file.proc_per_node == 1
    # What the installation adds is no edit of the job.
    assert frozen_changes(freeze(JOB, OWNER, installation).spec, JOB.spec) == []


def test_a_pythonpath_of_the_job_does_not_hide_the_client_beside_an_own_image() -> None:
    env = [{"name": "PYTHONPATH", "value": "/workspace"}]
    own = freeze(job_with(image="own:1", env=env), OWNER, DEFAULTS).job_file
    assert own.env == {"PYTHONPATH": f"{INSTALLED}:/workspace"}
    assert freeze(job_with(env=env), OWNER, DEFAULTS).job_file.env == {"PYTHONPATH": "/workspace"}


def test_an_amount_in_quotes_is_the_same_amount() -> None:
    first, quoted = (job_with(resources={"limits": {"nvidia.com/gpu": n}}) for n in (8, "8"))
    assert freeze(first, OWNER, DEFAULTS).hash == freeze(quoted, OWNER, DEFAULTS).hash
    assert frozen_changes(first.spec, quoted.spec) == []


def test_an_image_and_its_resources_survive_the_config_map() -> None:
    job = job_with(
        image="own:1", imagePullSecrets=[{"name": "s"}], sharedMemory="1Gi", resources={"requests": {"cpu": 1}}
    )
    frozen = freeze(job, OWNER, DEFAULTS)
    assert load(json.loads(json.dumps(manifest(frozen, OWNER))), OWNER, frozen.hash).spec == job.spec


def test_what_may_change_is_taken_from_the_live_spec_and_the_rest_is_named() -> None:
    live = JOB.spec.model_copy(update={"suspend": True, "nodes": 7})
    spec, late = effective(JOB.spec, live), frozen_changes(JOB.spec, live)
    assert (spec.suspend, spec.nodes, late) == (True, 2, ["spec.nodes"])


@pytest.mark.parametrize(("nodes", "late"), [(4, []), (5, ["spec.nodes"]), (1, ["spec.nodes"])])
def test_an_elastic_jobs_nodes_may_change_inside_the_bounds_of_its_start(nodes: int, late: list[str]) -> None:
    elastic = ElasticSpec(min_nodes=2, max_nodes=4)
    frozen = JOB.spec.model_copy(update={"elastic": elastic})
    live = frozen.model_copy(update={"nodes": nodes})
    spec, found = effective(frozen, live), frozen_changes(frozen, live)
    assert (spec.nodes, found) == (2 if late else nodes, late)
    # Moving the bounds afterwards does not help.
    wider = ElasticSpec(min_nodes=1, max_nodes=9)
    live = frozen.model_copy(update={"nodes": nodes, "elastic": wider})
    spec, found = effective(frozen, live), frozen_changes(frozen, live)
    assert spec.elastic == elastic
    assert set(late) < set(found)
    job = JOB.model_copy(update={"spec": frozen})
    assert freeze(job, OWNER, DEFAULTS).job_file.nodes == 4, "a step is divided as the largest world would"


@pytest.mark.parametrize(
    "letter", ["a", "\u00e9", "\x01", '"', "\\"], ids=["ascii", "wide", "control", "quote", "backslash"]
)
def test_the_largest_spec_fits_into_a_config_map(letter: str) -> None:
    """A server takes 1 MiB of names and values; the spec stands there as it is, and in what members are given."""
    each = len(json.dumps(letter)) - 2
    words = [letter * (30_000 // each)] * 8
    body = {
        "apiVersion": "relight.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": JOB.metadata.model_dump(by_alias=True, exclude_none=True),
    }
    spec = {"nodes": 1, "trainer": {"script": ["train.py", *words]}}
    assert 0.9 * MAX_BYTES < len(json.dumps(spec)) < MAX_BYTES
    data = manifest(freeze(parse_job({**body, "spec": spec}), OWNER, DEFAULTS), OWNER)["data"]
    assert sum(len(k.encode()) + len(v.encode()) for k, v in data.items()) < 0.75 * 2**20


@pytest.mark.parametrize("data", [{}, {"job.json": "{}", "spec.json": "{}"}, {"job.json": "x", "spec.json": "y"}])
def test_another_config_map_is_no_frozen_spec(data: dict[str, str]) -> None:
    frozen = freeze(JOB, OWNER, DEFAULTS)
    with pytest.raises(NotOurs):
        load({**manifest(frozen, OWNER), "data": data}, OWNER, frozen.hash)


def test_a_template_that_is_refused_today_is_not_run_though_it_was_accepted_once() -> None:
    template = Template.model_construct(metadata=TemplateMetadata(), spec={"nodeName": "control-plane"})
    trainer = JOB.spec.trainer.model_copy(update={"template": template})
    job = JOB.model_copy(update={"spec": JOB.spec.model_copy(update={"trainer": trainer})})
    frozen = freeze(job, OWNER, DEFAULTS)
    with pytest.raises(NotOurs, match=r"spec\.trainer\.template\.spec\.nodeName: not to be set here"):
        load(json.loads(json.dumps(manifest(frozen, OWNER))), OWNER, frozen.hash)


# -- metrics


def sample(metrics: Metrics, line: str) -> str | None:
    found = [x.rpartition(" ")[2] for x in metrics.exposition().decode().splitlines() if x.rpartition(" ")[0] == line]
    return found[0] if found else None


def test_series_of_jobs_end_with_the_job() -> None:
    goodput = {"ratio": "0.750", "buckets": {"productive": 6.0, "start": 2.0, "of a newer version": 1.0}}
    jobs = {"ml/d": {"status": {"phase": "Running", "progress": {"step": 7}, "goodput": goodput}}}
    metrics = Metrics(lambda: jobs)
    assert sample(metrics, 'relight_jobs{phase="Running"}') == "1.0"
    assert sample(metrics, 'relight_job_step{name="d",namespace="ml"}') == "7.0"
    assert sample(metrics, 'relight_job_goodput_ratio{name="d",namespace="ml"}') == "0.75"
    assert sample(metrics, 'relight_job_seconds_total{bucket="productive",name="d",namespace="ml"}') == "6.0"
    assert "of a newer version" not in metrics.exposition().decode()
    jobs.clear()
    assert sample(metrics, 'relight_jobs{phase="Running"}') == "0.0"
    assert sample(metrics, 'relight_job_step{name="d",namespace="ml"}') is None
    assert b"relight_job_seconds_total{" not in metrics.exposition()


def test_counters_move_by_what_a_write_changed() -> None:
    metrics = Metrics(dict)
    old = JobStatus(restarts=Restarts(by_cause={"Deleted": 1}))
    new = JobStatus(restarts=Restarts(by_cause={"Deleted": 2, "Preempted": 1, "Exception": 1}))
    new.history = [RecoveryRecord(generation=1, since=0.0, cause="Preempted")]
    new.goodput.lost_steps, new.goodput.recoveries, new.goodput.last_recovery_seconds = 4, 1, "2.5"
    metrics.on_write(None, old, new)
    metrics.on_write(None, new, new)
    assert sample(metrics, 'relight_disruptions_total{cause="Deleted"}') == "1.0"
    assert sample(metrics, 'relight_disruptions_total{cause="Preempted"}') == "1.0"
    assert sample(metrics, 'relight_failures_total{cause="Exception"}') == "1.0"
    assert sample(metrics, "relight_lost_steps_total") == "4.0"
    assert sample(metrics, 'relight_recovery_seconds_sum{cause="Preempted"}') == "2.5"


# -- the command line


def test_the_operator_says_what_it_wants() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "--trainer-image" in result.output


@pytest.mark.parametrize("wrong", ["{", "[]", '{"limit": {}}', '{"limits": {"memory": "64GB"}}'])
def test_wrong_resources_are_refused_in_words(wrong: str) -> None:
    given_options = ["--trainer-image", "x", "--coordinator", "c", "--trainer-resources", wrong]
    result = CliRunner().invoke(main, given_options)
    assert result.exit_code == 2
    assert "--trainer-resources" in result.output
