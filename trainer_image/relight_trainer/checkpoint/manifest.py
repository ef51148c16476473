"""What a checkpoint's manifest says, how its folder is named, and whether what is there is what was written."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

import torch

from relight_trainer.checkpoint import tagged
from relight_trainer.checkpoint.errors import ConfigChanged
from relight_trainer.checkpoint.place import MANIFEST, Place

SCHEMA = 1


class Position(NamedTuple):
    """A state's place in the order of one job."""

    generation: int
    step: int


class FileRecord(NamedTuple):
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint, as its manifest describes it."""

    path: PurePath  # a Path where it is in a folder
    job_uid: str
    created: float  # of the job, unix seconds
    position: Position
    final: bool  # training was complete
    cursor: dict[str, Any]  # what the loop gave to save()
    world: int  # ranks that wrote it
    config_hash: str
    files: dict[str, FileRecord]
    seal: str  # the manifest's own checksum
    config: Mapping[str, Any] | None  # the core's, as it was; own scripts have none
    identity: Mapping[str, Any] | None  # the same of any job, with its variables; None where an older version wrote it

    @property
    def order(self) -> tuple[float, Position, bool]:
        return self.created, self.position, self.final


def folder_name(position: Position, *, final: bool) -> str:
    """The name of a committed checkpoint.

    >>> folder_name(Position(3, 1200), final=True)
    'step-000001200.g3.final'
    """
    return f"step-{position.step:09d}.g{position.generation}" + (".final" if final else "")


def manifest_text(
    *,
    job_uid: str,
    created: float,
    position: Position,
    final: bool,
    cursor: dict[str, Any],
    world: int,
    config_hash: str,
    config: Mapping[str, Any] | None,
    identity: Mapping[str, Any] | None,
    commit: str,
    files: dict[str, FileRecord],
) -> str:
    body = {
        "schema": SCHEMA,
        "job_uid": job_uid,
        "order": {"created": created, "generation": position.generation, "step": position.step},
        "final": final,
        "world": world,
        "cursor": json.loads(tagged.dumps(cursor)),
        "config_hash": config_hash,
        **({"config": config} if config is not None else {}),
        **(_beside(identity, config) if identity is not None else {}),
        "versions": {"torch": torch.__version__, "relight": _version(), **({"code": commit} if commit else {})},
        "files": {name: record._asdict() for name, record in sorted(files.items())},
    }
    return json.dumps(sealed(body), indent=1)


def _beside(identity: Mapping[str, Any], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of the identity is not in the configuration, which the manifest has already."""
    return {"beside": {name: value for name, value in identity.items() if config is None or name not in config}}


def read_manifest(place: Place, name: str) -> Checkpoint:
    """Raises as `parse_manifest`, and what the place raises."""
    try:
        return parse_manifest(place.path(name), place.read(f"{name}/{MANIFEST}"))
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None


def parse_manifest(folder: PurePath, text: str | bytes) -> Checkpoint:
    """Raises `ValueError` saying what is wrong with it, `ConfigChanged` where a newer Relight wrote it."""
    try:
        value = json.loads(text)
    except ValueError:
        raise ValueError(f"{MANIFEST} is not JSON") from None
    body = unsealed(value, MANIFEST)
    if body["schema"] > SCHEMA:
        raise ConfigChanged(
            f"{folder} was written by Relight {body['versions']['relight']}, whose checkpoints (schema {body['schema']}) "
            f"this one (schema {SCHEMA}) cannot read; run the job with that version or a newer one"
        )
    order = body["order"]
    return Checkpoint(
        path=folder,
        job_uid=body["job_uid"],
        created=order["created"],
        position=Position(order["generation"], order["step"]),
        final=body["final"],
        cursor=tagged.decode(body["cursor"]),
        world=body["world"],
        config_hash=body["config_hash"],
        files={name: FileRecord(**record) for name, record in body["files"].items()},
        seal=value["seal"],
        config=body.get("config"),
        identity={**body.get("config", {}), **body["beside"]} if "beside" in body else body.get("config"),
    )


def problem(checkpoint: Checkpoint, place: Place, *, checksums: bool) -> str | None:
    """What is wrong with a checkpoint's files, None if nothing is. `checksums` reads them whole.

    Raises what the place raises.
    """
    sizes = place.sizes(checkpoint.path.name)
    for name, record in checkpoint.files.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != record.bytes:
            return f"{name} has {sizes[name]} bytes instead of {record.bytes}"
        if checksums and hashlib.sha256(place.fetch(checkpoint.path.name, name)).hexdigest() != record.sha256:
            return f"{name} does not match its checksum"
    return None


def sealed(body: dict[str, Any]) -> dict[str, Any]:
    """`body` with a checksum over everything in it."""
    return {**body, "seal": _seal(body)}


def unsealed(value: Any, name: str) -> dict[str, Any]:
    """The body of a sealed object. Raises `ValueError` where it is not as it was sealed."""
    if not isinstance(value, dict) or "seal" not in value:
        raise ValueError(f"{name} has no checksum")
    body = {key: item for key, item in value.items() if key != "seal"}
    if value["seal"] != _seal(body):
        raise ValueError(f"{name} does not match its own checksum")
    return body


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _version() -> str:
    try:
        return importlib.metadata.version("relight")
    except importlib.metadata.PackageNotFoundError:  # a user's image, where the package is only a folder
        return "unknown"
