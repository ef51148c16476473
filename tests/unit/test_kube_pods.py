"""The pod that a member becomes. The golden file is read by people: look at its diff."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from relight_agent.files import JobFile
from relight_agent.identity import Identity
from relight_operator.api.job import (
    CheckpointSpec,
    CodeSpec,
    GitSource,
    HostPath,
    JobSpec,
    PersistentVolumeClaim,
    Resources,
    SecretReference,
    TrainerSpec,
)
from relight_operator.core.actions import CreateMember
from relight_operator.kube import names
from relight_operator.kube.names import Owner
from relight_operator.kube.pods import INSTALLED, Coordinator, PodDefaults, checkpoint_volume, pod, service

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


TRAINER = TrainerSpec(module=["train"])
THEIRS = TrainerSpec(
    module=["train"],
    image="registry.example.com/team-a/train:7",
    image_pull_secrets=[SecretReference(name="regcred"), SecretReference(name="theirs")],
    python="/opt/conda/bin/python",
    resources=Resources.model_validate(
        {"limits": {"nvidia.com/gpu": 4, "memory": "128Gi", "hugepages-2Mi": "64Mi"}, "requests": {"cpu": "8", "memory": "96Gi"}}
    ),
    shared_memory="32Gi",
)  # fmt: skip


CODE = CodeSpec(git=GitSource(url="https://git.example.com/x.git", ref="main", secret_ref=SecretReference(name="cred")))
COMMIT = "c0ffee" * 6 + "c0ff"


def made(
    trainer: TrainerSpec = TRAINER, *, code: CodeSpec | None = None, commit: str = "", **changes: Any
) -> dict[str, Any]:
    defaults = replace(DEFAULTS, **changes)
    spec = JobSpec(nodes=2, trainer=trainer, code=code, checkpoint=CLAIM)
    return pod(OWNER, CreateMember(1, 3, commit=commit), JOB, spec, defaults, "digits-spec-0123456789", COORDINATOR)


def theirs() -> dict[str, Any]:
    return made(THEIRS, image_pull_secrets=("relight", "regcred"), image_pull_policy="Never")


@pytest.mark.parametrize(
    ("name", "body"),
    [("pod", made()), ("pod-own-image", theirs()), ("pod-git-code", made(code=CODE, commit=COMMIT))],
)
def test_the_pod_is_the_golden_one(name: str, body: dict[str, Any]) -> None:
    golden = GOLDEN / f"{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(yaml.safe_dump(body, sort_keys=False, width=120))
    assert body == yaml.safe_load(golden.read_text())


def test_the_first_member_finds_out_the_commit_and_the_secret_is_the_init_container_s_alone() -> None:
    body = made(code=CODE)["spec"]
    [fetch] = body["initContainers"]
    assert fetch["command"][-3:] == ["https://git.example.com/x.git", "main", "/opt/relight-code/source"]
    assert "code-secret" in [m["name"] for m in fetch["volumeMounts"]]
    assert "code-secret" not in [m["name"] for m in body["containers"][0]["volumeMounts"]]
    public = made(code=CodeSpec(git=GitSource(url="git@host:x", submodules=False)))["spec"]
    assert "code-secret" not in [v["name"] for v in public["volumes"]]
    assert "--no-submodules" in public["initContainers"][0]["command"]


def test_an_image_of_the_users_own_gets_the_agent_from_an_init_container() -> None:
    spec = theirs()["spec"]
    (init,), (main,) = spec["initContainers"], spec["containers"]
    assert (init["image"], main["image"]) == (DEFAULTS.image, THEIRS.image)
    assert init["command"] == ["python3", "-m", "relight_agent.install", INSTALLED]
    assert main["command"] == ["/opt/conda/bin/python", "-m", "relight_agent"]
    assert {"name": "PYTHONPATH", "value": INSTALLED} in main["env"]
    (written,) = init["volumeMounts"]
    (read,) = [m for m in main["volumeMounts"] if m["mountPath"] == INSTALLED]
    assert (written["name"], written.get("readOnly"), read["readOnly"]) == (read["name"], None, True)
    assert {v["name"]: v for v in spec["volumes"]}[read["name"]]["emptyDir"] == {"sizeLimit": "256Mi"}


@pytest.mark.parametrize("image", [None, DEFAULTS.image], ids=["none", "the installation's by its name"])
def test_the_installations_own_image_needs_no_init_container(image: str | None) -> None:
    spec = made(TrainerSpec(module=["train"], image=image, python="/opt/other/python"))["spec"]
    assert "initContainers" not in spec
    assert spec["containers"][0]["command"][0] == "python3"
    assert "PYTHONPATH" not in {e["name"] for e in spec["containers"][0]["env"]}


def test_the_init_container_is_promised_what_the_pod_is_but_no_device() -> None:
    (init,) = theirs()["spec"]["initContainers"]
    assert init["resources"] == {"limits": {"memory": "128Gi"}, "requests": {"cpu": "8", "memory": "96Gi"}}


def test_a_jobs_own_resources_replace_the_installations() -> None:
    resources = {"limits": {"memory": "1Gi"}}
    container = made(TrainerSpec(module=["a"], resources=Resources.model_validate(resources)))["spec"]["containers"][0]
    assert container["resources"] == resources


def test_images_are_pulled_with_the_installations_secrets_and_the_jobs() -> None:
    assert [s["name"] for s in theirs()["spec"]["imagePullSecrets"]] == ["relight", "regcred", "theirs"]
    assert "imagePullSecrets" not in made()["spec"]


def test_the_size_of_shared_memory_is_said_only_where_the_job_says_it() -> None:
    def shm(body: dict[str, Any]) -> dict[str, Any]:
        return next(v["emptyDir"] for v in body["spec"]["volumes"] if v["name"] == "shm")

    assert shm(made()) == {"medium": "Memory"}
    assert shm(theirs()) == {"medium": "Memory", "sizeLimit": "32Gi"}


def test_a_member_is_kept_from_avoided_machines_by_their_names() -> None:
    spec = JobSpec(nodes=2, trainer=TRAINER, checkpoint=CLAIM)
    body = pod(
        OWNER, CreateMember(1, 3, ("gpu-3", "gpu-7")), JOB, spec, DEFAULTS, "digits-spec-0123456789", COORDINATOR
    )
    [term] = body["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    # A server takes one name in each requirement, and all requirements of a term hold.
    assert term == {
        "matchFields": [
            {"key": "metadata.name", "operator": "NotIn", "values": ["gpu-3"]},
            {"key": "metadata.name", "operator": "NotIn", "values": ["gpu-7"]},
        ]
    }
    assert "affinity" not in made()["spec"]


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


@pytest.mark.parametrize("body", [made(), theirs()], ids=["installation's image", "own image"])
def test_every_mount_has_its_volume(body: dict[str, Any]) -> None:
    spec = body["spec"]
    assert {m["name"] for m in spec["containers"][0]["volumeMounts"]} == {v["name"] for v in spec["volumes"]}


@pytest.mark.parametrize("body", [made(), theirs()], ids=["installation's image", "own image"])
def test_the_pod_keeps_to_the_restricted_pod_security_standard(body: dict[str, Any]) -> None:
    spec = body["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
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
