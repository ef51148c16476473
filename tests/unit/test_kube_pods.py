"""The pod that a member becomes. The golden file is read by people: look at its diff."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from relight_agent.files import JobFile
from relight_agent.identity import Identity
from relight_operator.api.job import CheckpointSpec, HostPath, PersistentVolumeClaim
from relight_operator.core.actions import CreateMember
from relight_operator.kube import names
from relight_operator.kube.names import Owner
from relight_operator.kube.pods import Coordinator, PodDefaults, checkpoint_volume, pod, service

GOLDEN = Path(__file__).parent / "golden"
OWNER = Owner("team-a", "digits", "0b6e5a8e-1111-4222-8333-444455556666")
DEFAULTS = PodDefaults(
    image="registry.example.com/relight-trainer:0.1.0",
    resources={"limits": {"nvidia.com/gpu": 8, "memory": "64Gi"}, "requests": {"cpu": "4"}},
)
COORDINATOR = Coordinator("https://relight-coordinator.relight.svc:8443", "-----BEGIN CERTIFICATE-----\n")
JOB = JobFile(
    namespace="team-a",
    name="digits",
    uid=OWNER.uid,
    created=1.7e9,
    nodes=2,
    proc_per_node=8,
    entry={"kind": "module", "argv": ["train"]},
    config_hash="c",
    grace_seconds=90.5,
)
CLAIM = CheckpointSpec(persistent_volume_claim=PersistentVolumeClaim(claim_name="ckpt"))


def made(**changes: Any) -> dict[str, Any]:
    defaults = replace(DEFAULTS, **changes)
    return pod(OWNER, CreateMember(1, 3), JOB, CLAIM, defaults, "digits-spec-0123456789", COORDINATOR)


def test_the_pod_is_the_golden_one() -> None:
    golden = GOLDEN / "pod.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(yaml.safe_dump(made(), sort_keys=False, width=120))
    assert made() == yaml.safe_load(golden.read_text())


def test_the_agent_finds_its_identity_in_the_pods_environment(tmp_path: Path) -> None:
    container = made()["spec"]["containers"][0]
    env = {e["name"]: e.get("value", "from-a-field") for e in container["env"]}
    assert env["RELIGHT_JOB_FILE"] == f"{names.MOUNT}/job.json"
    JOB.write(tmp_path / "job.json")
    me = Identity.from_env({**env, "RELIGHT_JOB_FILE": str(tmp_path / "job.json")})
    assert (me.slot, me.incarnation, me.uid, me.address) == (1, 3, "from-a-field", "from-a-field")
    assert me.coordinator_url == COORDINATOR.url
    fields = {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"] if "valueFrom" in e}
    assert fields == {"RELIGHT_UID": "metadata.uid", "RELIGHT_ADDRESS": "status.podIP"}


def test_each_file_the_agent_is_pointed_at_is_projected() -> None:
    spec = made()["spec"]
    env = {e["name"]: e.get("value", "") for e in spec["containers"][0]["env"]}
    projected = next(v for v in spec["volumes"] if v["name"] == "relight")["projected"]["sources"]
    paths = {projected[0]["configMap"]["items"][0]["path"], projected[1]["downwardAPI"]["items"][0]["path"],
             projected[2]["serviceAccountToken"]["path"]}  # fmt: skip
    pointed = {
        env[n].removeprefix(names.MOUNT + "/") for n in ("RELIGHT_JOB_FILE", "RELIGHT_CA_FILE", "RELIGHT_TOKEN_FILE")
    }
    assert pointed == paths


def test_every_mount_has_its_volume() -> None:
    spec = made()["spec"]
    assert {m["name"] for m in spec["containers"][0]["volumeMounts"]} == {v["name"] for v in spec["volumes"]}


def test_the_pod_keeps_to_the_restricted_pod_security_standard() -> None:
    spec = made()["spec"]
    security = spec["containers"][0]["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    allowed = {"emptyDir", "projected", "persistentVolumeClaim"}
    assert all(set(v) - {"name"} <= allowed for v in spec["volumes"])


@pytest.mark.parametrize(
    ("checkpoint", "volume"),
    [
        (None, None),
        (CLAIM, {"persistentVolumeClaim": {"claimName": "ckpt"}}),
        (CheckpointSpec(host_path=HostPath(path="/mnt/x")), {"hostPath": {"path": "/mnt/x", "type": "Directory"}}),
    ],
    ids=["none", "claim", "hostPath"],
)
def test_the_durable_storage_becomes_a_volume(checkpoint: CheckpointSpec | None, volume: dict[str, Any] | None) -> None:
    assert checkpoint_volume(checkpoint) == volume


def test_the_service_is_headless_and_names_pods_that_are_not_ready_too() -> None:
    spec = service(OWNER)["spec"]
    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"] is True
    assert spec["selector"].items() <= made()["metadata"]["labels"].items()


def test_everything_is_owned_by_the_job_as_its_controller() -> None:
    for body in (made(), service(OWNER)):
        assert names.controller_of(body)["uid"] == OWNER.uid
        assert names.controller_of(body)["blockOwnerDeletion"] is True
