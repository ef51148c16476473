"""`trainer.template`: what a job puts over its pods, and that nothing of Relight's gives way to it."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_kube_pods import CODE, COORDINATOR, DEFAULTS, JOB, OWNER, THEIRS, TRAINER, made

from relight_operator.api.job import CheckpointSpec, JobSpec, PersistentVolumeClaim, TrainerSpec
from relight_operator.api.template import (
    METRICS_PORT,
    OWN_INIT_CONTAINERS,
    OWN_PATHS,
    OWN_VOLUMES,
    POD_LISTS,
    Template,
)
from relight_operator.core.actions import CreateMember
from relight_operator.kube.overlay import dropped, overlaid
from relight_operator.kube.pods import pod, pod_affinity

EFA = {"name": "agent", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}


def with_template(spec: Mapping[str, Any], *, trainer: TrainerSpec = TRAINER, **metadata: Any) -> dict[str, Any]:
    template = Template.model_validate({"spec": spec, "metadata": metadata})
    return made(trainer.model_copy(update={"template": template}))


def test_what_a_spot_pool_needs_comes_to_what_is_there() -> None:
    spot = {"key": "spot", "operator": "Exists", "effect": "NoSchedule"}
    body = with_template(
        {"tolerations": [spot], "nodeSelector": {"pool": "spot"}, "priorityClassName": "research"},
        labels={"team": "vision"},
        annotations={"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
    )
    plain = made()
    assert body["spec"]["tolerations"] == [*plain["spec"]["tolerations"], spot]
    assert body["spec"]["nodeSelector"] == {"pool": "spot"}
    assert body["spec"]["priorityClassName"] == "research"
    assert body["metadata"]["labels"] == {**plain["metadata"]["labels"], "team": "vision"}
    assert body["metadata"]["annotations"].items() > plain["metadata"]["annotations"].items()


def test_volumes_init_containers_and_mounts_come_to_ours() -> None:
    data = {"name": "data", "persistentVolumeClaim": {"claimName": "imagenet", "readOnly": True}}
    sidecar = {"name": "proxy", "image": "proxy", "restartPolicy": "Always"}
    mount = {"name": "data", "mountPath": "/data", "readOnly": True}
    container = {
        "name": "agent",
        "volumeMounts": [mount],
        "ports": [{"containerPort": 6006}],
        "workingDir": "/workspace",
    }
    body = with_template({"volumes": [data], "initContainers": [sidecar], "containers": [container]}, trainer=THEIRS)
    plain = made(THEIRS)
    assert body["spec"]["volumes"] == [*plain["spec"]["volumes"], data]
    assert body["spec"]["initContainers"] == [*plain["spec"]["initContainers"], sidecar]
    [ours], [theirs] = plain["spec"]["containers"], body["spec"]["containers"]
    assert theirs == {
        **ours,
        "volumeMounts": [*ours["volumeMounts"], mount],
        "ports": [*ours["ports"], {"containerPort": 6006}],
        "workingDir": "/workspace",
    }


def test_a_security_context_is_merged_and_a_spread_replaced() -> None:
    spread = {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
    strict = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    body = with_template({
        "containers": [EFA], "securityContext": {"runAsUser": 4711}, "topologySpreadConstraints": [spread, strict],
    })  # fmt: skip
    context = body["spec"]["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert context["allowPrivilegeEscalation"] is False
    assert body["spec"]["securityContext"] == {**made()["spec"]["securityContext"], "runAsUser": 4711}
    assert body["spec"]["topologySpreadConstraints"] == [spread, strict]


@pytest.mark.parametrize("effect", [{"effect": "NoExecute"}, {}], ids=["of the effect", "of any effect"])
def test_one_s_own_patience_with_a_dead_machine_takes_the_place_of_ours(effect: dict[str, str]) -> None:
    mine = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", **effect}
    tolerations = with_template({"tolerations": [mine]})["spec"]["tolerations"]
    assert [t for t in tolerations if t["key"] == mine["key"]] == [mine]
    assert len(tolerations) == 2


def test_on_the_machine_s_own_network_the_operator_is_still_found_and_no_port_is_taken() -> None:
    spec = with_template({"hostNetwork": True})["spec"]
    assert spec["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert spec["containers"][0]["ports"] == []
    assert with_template({"hostNetwork": True, "dnsPolicy": "Default"})["spec"]["dnsPolicy"] == "Default"
    assert with_template({"hostNetwork": False})["spec"]["containers"] == made()["spec"]["containers"]


def test_null_takes_a_field_away() -> None:
    """OpenShift gives each namespace users of its own."""
    spec = with_template({"securityContext": {"runAsUser": None, "fsGroup": None}, "topologySpreadConstraints": None})[
        "spec"
    ]
    ours = made()["spec"]["securityContext"]
    assert spec["securityContext"] == {k: v for k, v in ours.items() if k not in {"runAsUser", "fsGroup"}}
    assert "topologySpreadConstraints" not in spec


def test_claims_of_devices_are_the_container_s_beside_its_resources() -> None:
    claims = [{"name": "channel"}]
    body = with_template({
        "resourceClaims": [{"name": "channel", "resourceClaimTemplateName": "nvlink"}],
        "containers": [{"name": "agent", "resources": {"claims": claims}}],
    })  # fmt: skip
    ours = made()["spec"]["containers"][0]["resources"]
    assert body["spec"]["containers"][0]["resources"] == {**ours, "claims": claims}


@pytest.mark.parametrize(
    "path", ["/data", "/checkpoints/more", "/tmp/cache", "/dev/infiniband", "/opt/relight-code/source/data"]
)
def test_data_may_be_mounted(path: str) -> None:
    container = {"name": "agent", "volumeMounts": [{"name": "data", "mountPath": path}]}
    assert with_template({"containers": [container]})


@pytest.mark.parametrize(
    "path",
    ["/", "/dev", "dev/shm", "/dev/../tmp/", "/var/run/relight/token", "/opt/relight-agent/x", "/dev/shm/relight", "/dev/termination-log",
     "/run", "/run/relight", "/run/relight/token", "/var/run", "/run/shm", "/run/shm/relight/x", "/var/run/shm/relight", "/run/../run/relight",
     "/proc/self/root/var/run/relight", "/sys/fs"],
)  # fmt: skip
def test_what_relight_uses_may_not_be_mounted_over(path: str) -> None:
    container = {"name": "agent", "volumeMounts": [{"name": "data", "mountPath": path}]}
    with pytest.raises(ValidationError, match="used by Relight"):
        Template.model_validate({"spec": {"containers": [container]}})


@pytest.mark.parametrize("volume", ["relight", "code-secret", "agent"])
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
@pytest.mark.parametrize("field", ["volumeMounts", "volumeDevices"])
def test_a_container_of_the_job_s_own_sees_none_of_the_sealed_volumes(volume: str, kind: str, field: str) -> None:
    name = "agent" if kind == "containers" else "mine"
    container = {"name": name, field: [{"name": volume, "mountPath": "/mine", "devicePath": "/mine"}]}
    with pytest.raises(ValidationError, match="used by Relight"):
        Template.model_validate({"spec": {kind: [container]}})


TERMS = ("nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")


@pytest.mark.parametrize(
    "odd", ["x", 7, ["x"], [None], [{"matchFields": "x"}], [{"matchExpressions": {}}], {"a": 1}], ids=str
)
@pytest.mark.parametrize("depth", range(len(TERMS) + 1))
def test_an_affinity_of_odd_types_is_refused(odd: Any, depth: int) -> None:
    affinity: Any = odd
    for name in reversed(TERMS[:depth]):
        affinity = {name: affinity}
    try:
        template = Template.model_validate({"spec": {"affinity": affinity}})
    except ValidationError:
        return
    assert depth < len(TERMS), "the list that is put together with Relight's own"
    assert odd == {"a": 1}, "a mapping may hold what only a newer server knows"
    overlaid({"spec": pod_affinity(["n1"]), "metadata": {}}, template)


def test_the_file_systems_that_relight_gives_a_pod_have_a_limit() -> None:
    body = with_template({}, trainer=THEIRS)
    empty = {v["name"]: v["emptyDir"] for v in body["spec"]["volumes"] if "emptyDir" in v}
    assert {name for name, source in empty.items() if "sizeLimit" not in source} <= {"shm"}, "counts as memory"
    assert {"tmp", "agent"} <= set(empty)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
LISTS = st.sampled_from([*POD_LISTS, "affinity", "securityContext", "nodeSelector", "other"])


@given(
    st.dictionaries(
        LISTS, JSON | st.lists(st.dictionaries(st.sampled_from(["name", "key", "volumeMounts", "ports"]), JSON))
    )
)
def test_whatever_is_in_a_template_is_refused_by_name_or_makes_a_pod(spec: dict[str, Any]) -> None:
    try:
        template = Template.model_validate({"spec": spec})
    except ValidationError:
        return
    body = overlaid(made(THEIRS), template)
    assert dropped(template, body) == []


def test_what_is_too_deep_is_refused_as_such() -> None:
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"x": deep}
    with pytest.raises(ValidationError, match="too deep"):
        Template.model_validate({"spec": deep})


def test_machines_are_avoided_in_each_of_the_terms_that_would_do() -> None:
    def term(zone: str) -> dict[str, Any]:
        return {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}

    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term("a"), term("b")]}}}  # fmt: skip
    template = Template.model_validate({"spec": {"affinity": affinity}})
    spec = JobSpec(trainer=TRAINER.model_copy(update={"template": template}))
    body = pod(OWNER, CreateMember(1, 3, avoid=("bad-1",)), JOB, spec, DEFAULTS, "c", COORDINATOR)
    required = body["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    avoided = [{"key": "metadata.name", "operator": "NotIn", "values": ["bad-1"]}]
    assert required["nodeSelectorTerms"] == [
        {**term("a"), "matchFields": avoided},
        {**term("b"), "matchFields": avoided},
    ]


def test_every_name_and_path_of_a_pod_of_ours_is_known_to_be_ours() -> None:
    claim = CheckpointSpec(persistent_volume_claim=PersistentVolumeClaim(claim_name="c"))
    spec = JobSpec(trainer=THEIRS, code=CODE, checkpoint=claim)
    whole = pod(OWNER, CreateMember(0, 0), JOB, spec, DEFAULTS, "c", COORDINATOR)["spec"]
    assert {v["name"] for v in whole["volumes"]} == OWN_VOLUMES
    assert {c["name"] for c in whole["initContainers"]} == OWN_INIT_CONTAINERS
    [container] = whole["containers"]
    assert {m["mountPath"] for m in container["volumeMounts"]} == set(OWN_PATHS)
    assert [p["containerPort"] for p in container["ports"]] == [METRICS_PORT]


# What Template lets through: fields that Relight sets too, and others, with values of the shapes that they have.
_NAMES = st.text("abc", min_size=1, max_size=3)
_SPECS = st.fixed_dictionaries(
    {},
    optional={
        "tolerations": st.lists(st.fixed_dictionaries({"key": _NAMES, "effect": st.sampled_from(["NoSchedule", "NoExecute"])})),
        "nodeSelector": st.dictionaries(_NAMES, _NAMES),
        "volumes": st.lists(st.fixed_dictionaries({"name": _NAMES, "emptyDir": st.just({})})),
        "initContainers": st.lists(st.fixed_dictionaries({"name": _NAMES, "image": _NAMES})),
        "securityContext": st.dictionaries(st.sampled_from(["runAsUser", "fsGroup"]), st.integers(1, 9)),
        "containers": st.lists(
            st.fixed_dictionaries(
                {"name": st.just("agent")},
                optional={"volumeMounts": st.lists(st.fixed_dictionaries({"name": _NAMES, "mountPath": _NAMES.map(lambda n: f"/{n}")}))},
            ),
            max_size=1,
        ),
        "hostNetwork": st.booleans(),
    },
)  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "paths"),
    [
        ({"frobnicate": {"a": "b"}}, ["spec.frobnicate"]),
        ({"tolerations": [{"key": "a"}, {"key": "b", "secs": 5}]}, ["spec.tolerations[1].secs"]),
        (
            {"containers": [{"name": "agent", "securityContext": {"seccomp": "x"}}]},
            ["spec.containers[0].securityContext.seccomp"],
        ),
        ({"dnsConfig": {"options": [{"name": "a", "val": "1"}]}}, ["spec.dnsConfig.options[0].val"]),
        (
            {"tolerations": [{"key": "d", "effect": "E"}, {"key": "d", "effect": "E", "secs": 1}]},
            ["spec.tolerations[1].secs"],
        ),
        ({"hostUsers": False}, ["spec.hostUsers"]),
        ({"hostNetwork": False, "hostAliases": [], "nodeSelector": {"a": ""}}, []),
        ({"initContainers": [{"name": "a", "image": "x"}], "volumes": [{"name": "v", "emptyDir": {}}]}, []),
    ],
    ids=str,
)
def test_a_field_that_a_server_leaves_out_is_found(spec: dict[str, Any], paths: list[str]) -> None:
    known = {"nodeSelector", "tolerations", "key", "containers", "name", "securityContext", "dnsConfig", "options", "image",
             "initContainers", "volumes", "emptyDir", "a", "effect"}  # fmt: skip

    def answer(value: Any) -> Any:
        """As a server answers that knows these fields, leaves out what is empty, and has a webhook that adds to lists."""
        if isinstance(value, dict):
            return {k: answer(v) for k, v in value.items() if k in known and (v or v == {})}
        return [answer(v) for v in value] if isinstance(value, list) else value

    template = Template.model_validate({"spec": spec})
    made = answer(spec)
    for name in ("tolerations", "initContainers"):
        if name in made:
            made[name].insert(0, {"name": "first", "key": "first"})
    assert dropped(template, {"spec": made}) == paths


@given(_SPECS)
def test_what_is_ours_stays_whatever_is_put_over_it(spec: dict[str, Any]) -> None:
    template = Template.model_validate({"spec": spec})
    ours = made(THEIRS)
    body = overlaid(ours, template)
    assert overlaid(body, template) == body  # nothing is added twice
    [container], [before] = body["spec"]["containers"], ours["spec"]["containers"]
    for name in ("name", "image", "command", "env", "resources"):
        assert container[name] == before[name]
    for kind in ("volumes", "initContainers"):
        assert body["spec"][kind][: len(ours["spec"][kind])] == ours["spec"][kind]
    assert container["volumeMounts"][: len(before["volumeMounts"])] == before["volumeMounts"]
    for name in ("restartPolicy", "hostname", "subdomain", "terminationGracePeriodSeconds"):
        assert body["spec"][name] == ours["spec"][name]
    assert body["metadata"] == ours["metadata"]


def test_a_job_without_a_template_is_frozen_as_before_there_were_any() -> None:
    spec = JobSpec(trainer=TRAINER).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert "template" not in spec["trainer"]
