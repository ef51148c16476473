"""`env[].valueFrom` and `envFrom`: Kubernetes' own fields, frozen as references, in words where one is missing."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from kube_world import SPEC, World, scenario

from relight_agent.reserved import leave_out
from relight_operator.again import Way, judge
from relight_operator.api.job import API_VERSION, KIND, TrainingJob
from relight_operator.api.status import JobStatus
from relight_operator.api.validate import parse_job
from relight_operator.errors import InvalidJob, InvalidUsage
from relight_operator.frozen import config_hash, job_file
from relight_operator.kube.missing import in_words
from relight_operator.local.environment import Given, paths_of, resolve

pytestmark = pytest.mark.timeout(30)

KEY = {"secretKeyRef": {"name": "api", "key": "token"}}


def job(env: list[dict[str, Any]] | None = None, env_from: list[dict[str, Any]] | None = None) -> TrainingJob:
    trainer = {"module": ["train"], **({"env": env} if env else {}), **({"envFrom": env_from} if env_from else {})}
    return parse_job({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "x"}, "spec": {"trainer": trainer}})


@pytest.mark.parametrize(
    "source",
    [
        KEY,
        {"secretKeyRef": {"name": "api", "key": "a.b-c_D", "optional": True}},
        {"configMapKeyRef": {"name": "c", "key": "k", "optional": True}},
        {"fieldRef": {"fieldPath": "spec.nodeName"}},
        {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels['example.com/team']"}},
        {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}},
        {"resourceFieldRef": {"resource": "requests.cpu", "containerName": "agent"}},
    ],
    ids=lambda s: next(iter(s)),
)
def test_the_fields_of_kubernetes_are_taken(source: dict[str, Any]) -> None:
    assert job([{"name": "A", "valueFrom": source}]).spec.trainer.env[0].value_from is not None


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"env": [{"name": "A", "valueFrom": {"secretRef": {"name": "a"}}}]}, "did you mean .*secretKeyRef"),
        ({"env": [{"name": "A", "valueFrom": {"secret": {"name": "a"}}}]}, "did you mean .*secretKeyRef"),
        ({"env": [{"name": "A", "valueFrom": {"configMapRef": {"name": "a"}}}]}, "did you mean .*configMapKeyRef"),
        ({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "a"}}}]}, r"secretKeyRef\.key: missing"),
        ({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"secretName": "a", "key": "k"}}}]}, "allowed: key, name"),
        ({"env": [{"name": "A", "valueFrom": {}}]}, "exactly one of these is wanted"),
        ({"env": [{"name": "A", "value": "hunter2", "valueFrom": KEY}]}, "one of value and valueFrom"),
        ({"env": [{"name": "RANK", "valueFrom": KEY}]}, "set by Relight"),
        ({"env": [{"name": "PYTHONPATH", "valueFrom": KEY}]}, "not for PYTHONPATH"),
        ({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.nam"}}}]}, "did you mean .*metadata.name"),
        ({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}]}, "not a field"),
        ({"env": [{"name": "A", "valueFrom": {"fieldRef": {"apiVersion": "v2", "fieldPath": "spec.nodeName"}}}]}, "allowed: v1"),
        ({"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limit.cpu"}}}]}, "did you mean .*limits.cpu"),
        ({"env": [{"name": "A", "valueFrom": {"fileKeyRef": {}}}]}, "not supported yet"),
        ({"envFrom": [{"secretKeyRef": {"name": "a"}}]}, "did you mean .*secretRef"),
        ({"envFrom": [{"secret": {"name": "a"}}]}, "did you mean .*secretRef"),
        ({"envFrom": [{"configMap": {"name": "a"}}]}, "did you mean .*configMapRef"),
        ({"envFrom": [{"secretRef": {"name": "a"}, "configMapRef": {"name": "a"}}]}, "exactly one of these is wanted"),
        ({"envFrom": [{"prefix": "RELIGHT_", "secretRef": {"name": "a"}}]}, "set by Relight"),
        ({"envFrom": [{"prefix": "9", "secretRef": {"name": "a"}}]}, "no digit first"),
        ({"template": {"spec": {"containers": [{"name": "agent", "env": []}]}}}, r"spec\.trainer\.env"),
        ({"template": {"spec": {"containers": [{"name": "agent", "envFrom": []}]}}}, r"spec\.trainer\.envFrom"),
    ],
    ids=range(22),
)  # fmt: skip
def test_a_wrong_reference_is_refused_with_the_right_name(trainer: dict[str, Any], words: str) -> None:
    spec = {"trainer": {"module": ["train"], **trainer}}
    with pytest.raises(InvalidJob, match=f"(?s){words}") as error:
        parse_job({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "x"}, "spec": spec})
    assert "hunter2" not in str(error.value)


def test_a_changed_reference_is_a_changed_environment() -> None:
    one = job([{"name": "LR", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "a"}}}])
    other = job([{"name": "LR", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "b"}}}])
    literal = job([{"name": "LR", "value": "a"}])
    whole, further = job(env_from=[{"secretRef": {"name": "a"}}]), job(env_from=[{"secretRef": {"name": "b"}}])
    hashes = {config_hash(j.spec) for j in (one, other, literal, whole, further, job())}
    assert len(hashes) == 6
    begun = JobStatus.model_validate({"checkpoint": {"step": 3}}, by_alias=True, by_name=False)
    assert judge(one.spec, other.spec, begun).way is Way.REFUSED
    assert judge(whole.spec, further.spec, begun).way is Way.REFUSED
    assert judge(one.spec, one.spec, begun).way is Way.AS_BEFORE


def test_credentials_may_move_to_another_secret() -> None:
    begun = JobStatus.model_validate({"checkpoint": {"step": 3}}, by_alias=True, by_name=False)
    for old, new in (
        (job([{"name": "WANDB_API_KEY", "valueFrom": KEY}]), job([{"name": "WANDB_API_KEY", "value": "k"}])),
        (job(env_from=[{"prefix": "AWS_", "secretRef": {"name": "a"}}]), job(env_from=[{"prefix": "AWS_", "secretRef": {"name": "b"}}])),
    ):  # fmt: skip
        assert config_hash(old.spec) == config_hash(new.spec)
        assert judge(old.spec, new.spec, begun).way is Way.ON


def test_a_job_without_references_is_what_it_was() -> None:
    plain = job([{"name": "LR", "value": "1"}])
    assert "env_from" not in str(plain.dump())
    assert "envFrom" not in str(plain.dump())
    assert job_file(plain, uid="u", created=1.0, workdir=".", checkpoint_dir="").env == {"LR": "1"}


def test_the_job_file_holds_references_and_no_place_for_their_values() -> None:
    made = job([{"name": "A", "valueFrom": KEY}, {"name": "B", "value": "b"}], [{"secretRef": {"name": "all"}}])
    file = asdict(job_file(made, uid="u", created=1.0, workdir=".", checkpoint_dir=""))
    assert file["env"] == {"B": "b"}
    assert json.loads(file["env_references"]["A"]) == KEY
    assert json.loads(file["env_references"]["envFrom-0"]) == {"secretRef": {"name": "all"}}


@scenario
async def test_the_kubelet_resolves_them_and_relight_s_own_variables_win(w: World) -> None:
    env = [{"name": "A", "valueFrom": KEY}, {"name": "HOME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    sources = [{"prefix": "P_", "secretRef": {"name": "all", "optional": True}}, {"configMapRef": {"name": "c"}}]
    await w.apply(
        {**SPEC, "trainer": {"module": ["train"], "env": [*env, {"name": "B", "value": "b"}], "envFrom": sources}}
    )
    await w.settle()
    container = w.client.named("pods", "digits-0-0")["spec"]["containers"][0]
    assert container["envFrom"] == sources
    assert {"name": "A", "valueFrom": KEY} in container["env"]
    names = [e["name"] for e in container["env"]]
    assert len(names) == len(set(names))
    assert "B" not in names, "its value is in the job file"
    assert {"RELIGHT_TERMINATION_LOG", "RELIGHT_CHAOS_FILE", "RELIGHT_UID"} <= set(names)


WAITING = "CreateContainerConfigError"


def config_error(w: World, message: str) -> None:
    waiting = {"waiting": {"reason": WAITING, "message": message}}
    status = {"phase": "Pending", "containerStatuses": [{"name": "agent", "state": waiting}]}
    for name in w.pods():
        w.client.edit("pods", name, {"status": status})


@scenario
async def test_status_says_which_secret_is_missing_and_the_job_goes_on_when_it_is_there(w: World) -> None:
    await w.apply({**SPEC, "trainer": {"module": ["train"], "env": [{"name": "A", "valueFrom": KEY}]}})
    await w.settle()
    config_error(w, 'secret "api" not found')
    await w.settle()
    [said] = [c.message for c in w.status.conditions if c.type == "ReferenceMissing"]
    assert said.startswith("Secret api does not exist in namespace ml (spec.trainer.env[0].valueFrom.secretKeyRef)")
    assert "create it with key token" in said
    assert w.reason("ReferenceMissing") == "NotFound"
    config_error(w, "couldn't find key token in Secret ml/api")
    await w.settle()
    [said] = [c.message for c in w.status.conditions if c.type == "ReferenceMissing"]
    assert said.startswith("Secret api in namespace ml has no key token")
    for name in w.pods():
        w.client.edit("pods", name, {"status": {"containerStatuses": [{"name": "agent", "state": {"running": {}}}]}})
        w.run(name)
    await w.settle()
    assert w.reason("ReferenceMissing") is None
    assert w.status.world is not None
    assert not w.status.restarts.total


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('configmap "c" not found', "config map c does not exist in namespace ml: create it"),
        ("couldn't find key k in ConfigMap ml/c", "config map c in namespace ml has no key k: add the key"),
        ("container has runAsNonRoot and image will run as root", None),
    ],
)
def test_what_the_kubelet_says_is_put_into_words(said: str, words: str | None) -> None:
    found = in_words(said, job().spec, "ml")
    assert found is None if words is None else (found or "").startswith(words)


def test_a_key_of_a_secret_under_a_reserved_name_reaches_nobody() -> None:
    environment = {"RANK": "9", "PET_RDZV_BACKEND": "c10d", "RELIGHT_TRACEBACK": "1", "RELIGHT_SLOT": "0", "A": "1"}
    assert leave_out(environment) == ["PET_RDZV_BACKEND", "RANK", "RELIGHT_TRACEBACK"]
    assert environment == {"RELIGHT_SLOT": "0", "A": "1"}


def test_here_folders_and_files_take_the_place_of_secrets(tmp_path: Path) -> None:
    folder = tmp_path / "api"
    folder.mkdir()
    (folder / "token").write_text("s3cr3t\n")
    (tmp_path / "c.env").write_text("# a comment\nX=1=2\n\nRANK=7\n")
    made = job(
        [
            {"name": "A", "valueFrom": KEY},
            {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "no-such", "key": "k", "optional": True}}},
            {"name": "P_X", "valueFrom": {"secretKeyRef": {"name": "api", "key": "no-such", "optional": True}}},
        ],
        [{"prefix": "P_", "configMapRef": {"name": "c"}}, {"configMapRef": {"name": "c"}}],
    )
    given = Given(paths_of("--secret", [f"api={folder}"]), paths_of("--config-map", [f"c={tmp_path / 'c.env'}"]))
    values = resolve(made, given)
    assert values.of("x-0-0", "uid", "slot-0", "127.0.0.1") == {
        "A": "s3cr3t\n", "N": "x-0-0", "P_X": "1=2", "P_RANK": "7", "X": "1=2",
    }  # fmt: skip
    assert "s3cr3t" not in repr(values)


@pytest.mark.parametrize(
    ("env", "given", "words"),
    [
        (KEY, {}, r"env\[0\]\.valueFrom\.secretKeyRef: without a cluster .* add --secret api=PATH"),
        (KEY, {"other": "A=1"}, "has no key token"),
        (KEY, {"other": "hunter2 is no pair"}, "line 1 is not KEY=VALUE"),
        (KEY, {"other": "token=\0"}, "NUL"),
        (KEY, {"other": "token=" + "x" * 1_048_576}, "allowed: 1 MiB"),
        ({"resourceFieldRef": {"resource": "limits.cpu"}}, {}, "give a value instead"),
        ({"fieldRef": {"fieldPath": "spec.serviceAccountName"}}, {}, "give a value instead"),
    ],
    ids=range(7),
)
def test_what_is_missing_here_is_named_before_anything_starts(
    tmp_path: Path, env: dict[str, Any], given: dict[str, str], words: str
) -> None:
    paths = {}
    for name, text in given.items():
        paths["api"] = tmp_path / name
        paths["api"].write_text(text)
    with pytest.raises(InvalidUsage, match=words) as error:
        resolve(job([{"name": "A", "valueFrom": env}]), Given(paths))
    assert "hunter2" not in str(error.value)


def test_what_stands_behind_the_equals_sign_is_not_repeated() -> None:
    with pytest.raises(InvalidUsage, match="no such folder or file") as error:
        paths_of("--secret", ["api=hunter2"])
    assert "hunter2" not in str(error.value)


STORE = {"uri": "s3://bucket/x", "secretRef": {"name": "s3"}}


@scenario
async def test_the_store_s_secret_reaches_the_workers_container_alone(w: World) -> None:
    git = {"git": {"url": "https://host/x.git", "secretRef": {"name": "git"}}}
    await w.apply({**SPEC, "trainer": {"module": ["train"], "image": "mine:1"}, "checkpoint": STORE, "code": git})
    await w.settle()
    spec = w.client.named("pods", "digits-0-0")["spec"]
    (container,) = spec["containers"]
    assert container["envFrom"] == [{"prefix": "RELIGHT_STORAGE_", "secretRef": {"name": "s3"}}]
    assert len(spec["initContainers"]) == 2
    assert all("envFrom" not in init for init in spec["initContainers"])
    config_error(w, 'secret "s3" not found')
    await w.settle()
    [said] = [c.message for c in w.status.conditions if c.type == "ReferenceMissing"]
    assert said.startswith("Secret s3 does not exist in namespace ml (spec.checkpoint.secretRef)")


@pytest.mark.parametrize(
    "where",
    [{"persistentVolumeClaim": {"claimName": "c"}}, {"hostPath": {"path": "/x"}}, {"uri": "file:///x"}],
    ids=range(3),
)
def test_credentials_of_what_is_no_store_are_refused(where: dict[str, Any]) -> None:
    spec = {"trainer": {"module": ["train"]}, "checkpoint": {**where, "secretRef": {"name": "s3"}}}
    with pytest.raises(InvalidJob, match=r"spec\.checkpoint\.secretRef: only for an object store"):
        parse_job({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "x"}, "spec": spec})


def test_the_store_s_secret_may_change_between_two_runs() -> None:
    def stored(name: str) -> TrainingJob:
        spec = {"trainer": {"module": ["train"]}, "checkpoint": {**STORE, "secretRef": {"name": name}}}
        return parse_job({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "x"}, "spec": spec})

    begun = JobStatus.model_validate({"checkpoint": {"step": 3}}, by_alias=True, by_name=False)
    assert judge(stored("a").spec, stored("b").spec, begun).way is Way.ON
    with pytest.raises(InvalidUsage, match=r"spec\.checkpoint\.secretRef: without a cluster .* --secret a=PATH"):
        resolve(stored("a"), Given())
