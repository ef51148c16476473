"""The CRD: generated, structural, and of one mind with the models."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relight_operator.api import reference
from relight_operator.api.crd import crd, object_schema, render
from relight_operator.api.validate import load_job, parse_job
from relight_operator.cli.validate import crd_command
from relight_operator.errors import InvalidJob
from relight_trainer.yaml_loader import load_documents

ROOT = Path(__file__).parents[2]
GOLDEN = {
    cel: ROOT / f"charts/relight/files/trainingjobs.relight.dev{suffix}.yaml"
    for cel, suffix in ((False, ""), (True, "-cel"))
}
EXAMPLE = ROOT / "examples/digits.yaml"
# What apiextensions/v1 takes below openAPIV3Schema, of those that Kubernetes 1.20 knows.
KEYS = {
    "type", "description", "default", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "minProperties", "maxProperties", "required", "oneOf", "properties", "additionalProperties", "items",
    "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-int-or-string",
}  # fmt: skip


def example() -> dict[str, Any]:
    (document,) = load_documents(EXAMPLE.read_bytes())
    return copy.deepcopy(document.value)


def accepts(value: Any) -> bool:
    return jsonschema.Draft202012Validator(object_schema()).is_valid(value)


@pytest.mark.parametrize("cel", [False, True])
def test_the_files_in_the_chart_are_what_the_models_say(cel: bool) -> None:
    assert GOLDEN[cel].read_text() == render(cel=cel), "regenerate: make crd"


def test_the_command_prints_it() -> None:
    result = CliRunner().invoke(crd_command)
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout) == crd()


def test_the_schema_is_structural_for_every_server_since_1_20() -> None:
    def check(schema: dict[str, Any], path: str) -> None:
        assert set(schema) <= KEYS, path
        if schema.get("x-kubernetes-int-or-string"):
            assert "type" not in schema, path
            return
        assert schema["type"] in {"object", "array", "string", "integer", "number", "boolean"}, path
        assert not ({"properties", "additionalProperties"} <= set(schema)), path
        if schema["type"] == "object":
            assert {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"} & set(schema), path
        assert (schema["type"] == "array") == ("items" in schema), path
        for branch in schema.get("oneOf", ()):
            assert set(branch) == {"required"}, path
        assert set(schema.get("required", ())) <= set(schema.get("properties", ())), path
        if "default" in schema:
            assert jsonschema.Draft202012Validator(schema).is_valid(schema["default"]), path
        for name, below in schema.get("properties", {}).items():
            # YAML 1.1 would turn such a field into a boolean.
            assert name.lower() not in {"y", "n", "yes", "no", "on", "off"}
            check(below, f"{path}.{name}")
        for key in ("items", "additionalProperties"):
            if key in schema:
                check(schema[key], f"{path}[]")

    check(object_schema(), "")


def test_cel_rules_come_only_when_asked_for() -> None:
    assert "x-kubernetes-validations" not in render()
    with_rules = render(cel=True)
    assert "x-kubernetes-validations" in with_rules
    assert "TORCHELASTIC_" in with_rules


def test_scale_columns_and_short_name() -> None:
    spec = crd()["spec"]
    version = spec["versions"][0]
    assert spec["names"]["shortNames"] == ["tj"]
    assert set(version["subresources"]) == {"status", "scale"}
    assert [c["name"] for c in version["additionalPrinterColumns"] if "priority" not in c] == [
        "Phase", "Nodes", "Progress", "Loss", "Restarts", "Age",
    ]  # fmt: skip
    assert [c["name"] for c in version["additionalPrinterColumns"] if c.get("priority")] == [
        "Checkpoint",
        "Goodput",
        "Reason",
    ]


def test_the_schema_accepts_the_example_and_its_dump() -> None:
    assert accepts(example())
    assert accepts(load_job(EXAMPLE).dump())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.nodes", 0), ("spec.nodes", "2"), ("spec.nodes", 1001), ("spec.nodes", 1.5), ("spec.suspend", "true"),
        ("spec.procPerNode", 0), ("spec.trainer", {}), ("spec.trainer", {"config": {}, "script": ["a"]}),
        ("spec.trainer", {"command": []}), ("spec.trainer", {"config": 5}), ("spec.trainer.env", [{"value": "a"}]),
        ("spec.trainer.env", [{"name": "a b"}]), ("spec.trainer.env", [{"name": "A", "value": 5}]),
        ("spec.trainer.image", ""), ("spec.trainer.image", "a b"), ("spec.trainer.imagePullSecrets", ["a"]),
        ("spec.trainer.imagePullSecrets", [{}]), ("spec.trainer.resources", {"limits": {"cpu": "1GB"}}), ("spec.trainer.resources", {"limits": {"cpu": "-1"}}),
        ("spec.trainer.sharedMemory", "1gi"), ("spec.trainer.sharedMemory", -1), ("spec.trainer.sharedMemory", ""),
        ("spec.checkpoint", {}), ("spec.checkpoint", {"uri": "file:///a", "hostPath": {"path": "/a"}}),
        ("spec.checkpoint", {"uri": "s3://key:secret@a"}), ("spec.checkpoint", {"hostPath": {"path": "a"}}),
        ("spec.checkpoint.keep", 1), ("spec.checkpoint.interval", {"time": "5min"}), ("spec.checkpoint.interval", {}),
        ("spec.retry", {"failures": -1}), ("spec.retry", {"window": "1d"}), ("spec.disruption", {"gracePeriod": 5}),
        ("spec.activeDeadlineSeconds", 0), ("spec.activeDeadlineSeconds", None), ("metadata.name", "A"), ("metadata.name", "a" * 41),
    ],
)  # fmt: skip
def test_schema_and_models_refuse_the_same(path: str, value: object) -> None:
    job = example()
    *above, last = path.split(".")
    place = job
    for key in above:
        place = place[key]
    place[last] = value
    assert not accepts(job)
    with pytest.raises(InvalidJob):
        parse_job(job)


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-1, 1002)
    | st.sampled_from(["5s", "1h", "/a", "file:///a", "", "a", 1.5, {}, [], ["a"]])
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("suspend", "nodes", "procPerNode", "activeDeadlineSeconds"), VALUES),
        "trainer": st.fixed_dictionaries({}, optional=dict.fromkeys(("script", "module", "command", "python", "env", "image", "imagePullSecrets", "resources", "sharedMemory"), VALUES)),
        "checkpoint": st.fixed_dictionaries(
            {}, optional={**dict.fromkeys(("uri", "keep", "hostPath"), VALUES), "interval": st.fixed_dictionaries({}, optional=dict.fromkeys(("time", "steps", "epochs"), VALUES))}
        ),
        "retry": st.fixed_dictionaries({}, optional=dict.fromkeys(("failures", "window", "resetOnProgress", "noProgressLimit", "backoff"), VALUES)),
        "disruption": st.fixed_dictionaries({}, optional={"gracePeriod": VALUES}),
    },
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(FIELDS)
def test_what_the_models_accept_the_schema_accepts(spec: dict[str, Any]) -> None:
    spec.setdefault("trainer", {"command": ["a"]})
    job = {**example(), "spec": spec}
    try:
        parse_job(job)
    except InvalidJob:
        return
    assert accepts(job)


def test_the_reference_page_is_what_the_models_say() -> None:
    page = ROOT / "docs/trainingjob.md"
    assert page.read_text() == reference.render(), (
        "regenerate: python -m relight_operator.api.reference > docs/trainingjob.md"
    )


def test_everything_in_a_spec_has_a_bound_that_the_server_knows() -> None:
    def unbounded(schema: dict[str, Any], path: str) -> list[str]:
        found = []
        if schema.get("type") == "string" and not schema.keys() & {"maxLength", "enum"}:
            found.append(path)
        if schema.get("type") == "array" and "maxItems" not in schema:
            found.append(path)
        if "properties" not in schema and schema.get("type") == "object" and "maxProperties" not in schema:
            found.append(path)
        for name, inner in schema.get("properties", {}).items():
            found += unbounded(inner, f"{path}.{name}")
        for name in ("items", "additionalProperties"):
            if isinstance(schema.get(name), dict):
                found += unbounded(schema[name], f"{path}[]")
        return found

    assert unbounded(object_schema()["properties"]["spec"], "spec") == []
