"""The chart as Helm renders it, and Kubernetes' word on what comes out."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry
from referencing.jsonschema import DRAFT202012

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/relight"
NAMESPACE = "relight-system"

Object = dict[str, Any]


class Refused(Exception):
    """Helm's own words."""


@dataclass(frozen=True)
class Rendered:
    objects: list[Object]

    def of(self, kind: str) -> list[Object]:
        return [o for o in self.objects if o["kind"] == kind]

    def one(self, kind: str, name: str = "") -> Object:
        (found,) = (o for o in self.of(kind) if not name or o["metadata"]["name"] == name)
        return found

    def pod(self) -> Object:
        pod: Object = self.one("Deployment")["spec"]["template"]
        return pod

    def container(self) -> Object:
        (container,) = self.pod()["spec"]["containers"]
        return container

    def env(self) -> dict[str, str]:
        return {e["name"]: e["value"] for e in self.container()["env"] if "value" in e}


@dataclass(frozen=True)
class Helm:
    program: Path

    def __call__(self, *words: str) -> str:
        """What Helm prints on stdout. Raises Refused."""
        done = subprocess.run([self.program, *words], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout

    def render(self, values: Object | None = None, *, kube: str = "1.31.0", release: str = "relight") -> Rendered:
        """The chart's objects with `values`, as for a server of version `kube`. Raises Refused."""
        words = ["template", release, str(CHART), "--namespace", NAMESPACE, "--kube-version", kube]
        for key, value in (values or {}).items():
            words += ["--set-json", f"{key}={json.dumps(value)}"]
        return Rendered([o for o in yaml.safe_load_all(self(*words)) if o is not None])


class ObjectSchemas:
    """The strict JSON schemas of Kubernetes 1.25 to 1.37: unknown fields are errors."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._registries: dict[str, Registry[Any]] = {}

    def problems(self, value: Object, version: str) -> list[str]:
        """What a server of `version` ("1.31") would find wrong with an object of a kind of its own."""
        folder = self._folder / f"v{version}.0-local-strict"
        if version not in self._registries:
            definitions = DRAFT202012.create_resource(json.loads((folder / "_definitions.json").read_text()))
            self._registries[version] = Registry().with_resource("/api/_definitions.json", definitions)
        group, _, api_version = value["apiVersion"].rpartition("/")
        words = (value["kind"].lower(), group.partition(".")[0], api_version)
        schema = json.loads((folder / f"{'-'.join(w for w in words if w)}.json").read_text())
        validator = jsonschema.Draft202012Validator(schema, registry=self._registries[version])
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
