"""What Helm makes of the chart, for old servers and new ones."""

import json
import runpy
import tomllib

import pytest
import yaml
from charting import CHART, NAMESPACE, ROOT, Helm, Object, ObjectSchemas, Refused

from relight_operator.api.crd import crd
from relight_operator.kube import names
from relight_operator.kube.names import Owner
from relight_operator.kube.network import NetworkDefaults, network_policy

VALUES: dict[str, Object] = {
    "defaults": {},
    "one replica": {"replicaCount": 1},
    "nothing shared": {"crds.enabled": False, "rbac.create": False, "serviceAccount.create": False},
    "names": {"nameOverride": "train", "fullnameOverride": "trainer", "serviceAccount.name": "runner"},
    "images": {
        "image": {"repository": "registry.example.com/op", "tag": "7", "digest": f"sha256:{'0' * 64}"},
        "trainer.image": {"repository": "registry.example.com/t", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "here"}],
        "trainer.imagePullSecrets": [{"name": "there"}],
    },
    "placement": {
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "pool", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
    },
    "network": {
        "networkPolicy.scrapers": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "networkPolicy.jobs.egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
    },
    "no network policy": {"networkPolicy.enabled": False, "networkPolicy.jobs.enabled": False},
    "words of others": {
        "podAnnotations": {"a": "1"},
        "podLabels": {"b": "2"},
        "serviceAccount.annotations": {"c": "3"},
        "metrics.annotations": True,
        "resources": {"requests": {"cpu": 1}, "limits": {"nvidia.com/gpu": 0}},
        "trainer.resources": {"limits": {"nvidia.com/gpu": 8}},
        "logLevel": "debug",
    },
}


def test_helm_finds_nothing_to_say(helm: Helm) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_every_object_is_right_whatever_the_values(helm: Helm, schemas: ObjectSchemas, values: Object) -> None:
    for value in helm.render(values).objects:
        if value["kind"] != "CustomResourceDefinition":  # slow, and no value changes its schema
            assert schemas.problems(value, "1.31") == []


@pytest.mark.parametrize("version", ["1.25", "1.28", "1.31", "1.34", "1.37"])
def test_every_object_is_right_for_its_server(helm: Helm, schemas: ObjectSchemas, version: str) -> None:
    for value in helm.render(kube=f"{version}.0").objects:
        assert schemas.problems(value, version) == []


def test_kubernetes_1_20_gets_the_apis_that_it_has(helm: Helm, schemas: ObjectSchemas) -> None:
    rendered = helm.render(kube="1.20.2")
    for value in rendered.objects:
        if value["kind"] != "PodDisruptionBudget":
            assert schemas.problems(value, "1.25") == []  # nothing older is at hand; the cluster's tests apply it there
    assert rendered.one("PodDisruptionBudget")["apiVersion"] == "policy/v1beta1"
    assert helm.render(kube="1.21.0").one("PodDisruptionBudget")["apiVersion"] == "policy/v1"


def test_every_object_but_the_cluster_s_own_names_its_namespace(helm: Helm) -> None:
    for value in helm.render().objects:
        in_cluster = value["kind"] in {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
        assert value["metadata"].get("namespace") == (None if in_cluster else NAMESPACE)


def test_two_releases_share_nothing_but_the_resource(helm: Helm) -> None:
    def identities(release: str) -> set[tuple[str, str]]:
        return {(o["kind"], o["metadata"]["name"]) for o in helm.render(release=release).objects}

    shared = identities("red-relight") & identities("blue-relight")
    assert shared == {("CustomResourceDefinition", "trainingjobs.relight.dev")}


def test_a_release_named_like_a_number_stays_a_text(helm: Helm, schemas: ObjectSchemas) -> None:
    rendered = helm.render({"fullnameOverride": "relight"}, release="123")
    for value in rendered.objects:
        assert schemas.problems(value, "1.31") == []
    assert rendered.pod()["metadata"]["labels"]["app.kubernetes.io/instance"] == "123"


@pytest.mark.parametrize(
    ("kube", "cel"), [("1.20.2", False), ("1.24.17", False), ("1.25.0", True), ("1.33.1-eks-1", True)]
)
def test_the_resource_has_cel_rules_where_the_server_knows_them(helm: Helm, kube: str, cel: bool) -> None:
    (rendered,) = helm.render(kube=kube).of("CustomResourceDefinition")
    assert rendered["spec"] == crd(cel=cel)["spec"]


def test_the_resource_outlives_the_release_unless_told_otherwise(helm: Helm) -> None:
    (kept,) = helm.render().of("CustomResourceDefinition")
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    (removed,) = helm.render({"crds.keep": False}).of("CustomResourceDefinition")
    assert "annotations" not in removed["metadata"]
    assert not helm.render({"crds.enabled": False}).of("CustomResourceDefinition")


def test_chart_and_project_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert chart["version"] == chart["appVersion"] == project


def test_the_default_images_are_those_that_make_image_builds(helm: Helm) -> None:
    images = runpy.run_path(str(ROOT / ".ci/images.py"))
    rendered = helm.render()
    tag = images["project_version"]()
    assert rendered.container()["image"] == f"{images['REPOSITORY']}-operator:{tag}"
    assert rendered.env()["RELIGHT_TRAINER_IMAGE"] == f"{images['REPOSITORY']}-trainer:{tag}"


def test_an_image_is_named_by_tag_and_digest(helm: Helm) -> None:
    rendered = helm.render(VALUES["images"])
    assert rendered.container()["image"] == f"registry.example.com/op:7@sha256:{'0' * 64}"
    assert rendered.env()["RELIGHT_TRAINER_IMAGE"].startswith("registry.example.com/t:0.")


def test_the_operator_s_pod_meets_the_restricted_standard(helm: Helm) -> None:
    pod, container = helm.render().pod()["spec"], helm.render().container()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all(set(volume) <= {"name", "emptyDir"} for volume in pod["volumes"])
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def test_agents_reach_the_leader_and_nobody_else(helm: Helm) -> None:
    rendered = helm.render()
    service = rendered.one("Service", "relight-coordinator")
    pod_labels = rendered.pod()["metadata"]["labels"]
    selector = dict(service["spec"]["selector"])

    assert selector.pop(names.LEADER_LABEL) == "true"
    assert selector.items() <= pod_labels.items()
    assert names.LEADER_LABEL not in pod_labels


def test_services_and_probes_name_ports_that_the_container_has(helm: Helm) -> None:
    rendered = helm.render()
    ports = {port["name"] for port in rendered.container()["ports"]}
    assert {port["targetPort"] for s in rendered.of("Service") for port in s["spec"]["ports"]} <= ports
    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    assert {rendered.container()[probe]["httpGet"]["port"] for probe in probes} <= ports


def test_every_port_names_its_protocol_without_which_1_20_refuses_server_side_apply(helm: Helm) -> None:
    rendered = helm.render()
    ports = [port for s in rendered.of("Service") for port in s["spec"]["ports"]] + rendered.container()["ports"]
    assert {port.get("protocol") for port in ports} == {"TCP"}


def test_one_replica_has_no_disruption_budget_which_would_block_every_drain(helm: Helm) -> None:
    assert helm.render({"replicaCount": 1}).of("PodDisruptionBudget") == []
    assert helm.render({"podDisruptionBudget.enabled": False}).of("PodDisruptionBudget") == []


def test_the_notes_say_what_to_do_next(helm: Helm) -> None:
    said = helm("install", "relight", str(CHART), "--namespace", NAMESPACE, "--dry-run=client")
    notes = said.rpartition("NOTES:")[2]
    assert f"kubectl -n {NAMESPACE} rollout status deployment/relight" in notes
    for word in notes.split():
        assert not word.startswith("examples/") or (ROOT / word).is_file()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replicas": 3}, "replicas"),
        ({"image.tags": "1"}, "tags"),
        ({"trainer.images": {}}, "images"),
        ({"replicaCount": 0}, "replicaCount"),
        ({"replicaCount": "2"}, "replicaCount"),
        ({"logLevel": "trace"}, "logLevel"),
        ({"image.digest": "abc"}, "digest"),
        ({"image.repository": ""}, "repository"),
        ({"image.pullPolicy": "Sometimes"}, "pullPolicy"),
        ({"imagePullSecrets": ["regcred"]}, "imagePullSecrets"),
        ({"resources.limit": {"cpu": 1}}, "limit"),
        ({"fullnameOverride": "Relight"}, "fullnameOverride"),
        ({"crds.keep": "yes"}, "keep"),
        ({"podLabels": {"a": 1}}, "podLabels"),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm: Helm, values: Object, said: str) -> None:
    with pytest.raises(Refused, match=said):
        helm.render(values)


def test_the_operator_accepts_connections_from_training_pods_and_scrapers_alone(helm: Helm) -> None:
    rendered = helm.render({"networkPolicy.scrapers": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]})
    spec = rendered.one("NetworkPolicy")["spec"]
    agents, scrapers = spec["ingress"]
    assert spec["podSelector"]["matchLabels"].items() <= rendered.pod()["metadata"]["labels"].items()
    assert agents["from"] == [
        {"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": names.JOB_LABEL, "operator": "Exists"}]}}
    ]
    assert [p["port"] for p in agents["ports"]] == [8443]
    assert scrapers["from"] == [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]
    assert [p["port"] for p in scrapers["ports"]] == [8080]
    assert len(helm.render({"networkPolicy.scrapers": []}).one("NetworkPolicy")["spec"]["ingress"]) == 1


def test_a_jobs_policy_is_one_that_every_server_takes(helm: Helm, schemas: ObjectSchemas) -> None:
    """With what the chart gives the operator: DNS and the coordinator stay within reach of pods whose egress is limited."""
    storage = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}
    env = helm.render({"networkPolicy.jobs.egress": [storage]}).env()
    network = NetworkDefaults(
        scrapers=json.loads(env["RELIGHT_SCRAPERS"]), egress=json.loads(env["RELIGHT_TRAINING_EGRESS"])
    )
    made = network_policy(Owner("ml", "digits", "u-1"), network)
    for version in ("1.25", "1.31", "1.37"):
        assert schemas.problems(made, version) == []
    members, dns, coordinator, own = made["spec"]["egress"]
    assert {p["port"] for p in dns["ports"]} == {53}
    assert (
        coordinator["to"][0]["podSelector"]["matchLabels"].items() <= helm.render().pod()["metadata"]["labels"].items()
    )
    assert [p["port"] for p in coordinator["ports"]] == [8443]
    assert members["to"] == [{"podSelector": {"matchLabels": {names.JOB_LABEL: "digits"}}}]
    assert own == storage
    assert helm.render().env()["RELIGHT_TRAINING_EGRESS"] == "[]"
