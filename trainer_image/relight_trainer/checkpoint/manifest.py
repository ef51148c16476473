"""What a checkpoint's manifest says, how its folder is named, and whether what is there is what was written."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from relight_trainer.checkpoint import tagged
from relight_trainer.checkpoint.errors import ConfigChanged
from relight_trainer.checkpoint.place import MANIFEST, Place
from relight_trainer.checkpoint.seal import MOST_BYTES, sealed, unsealed

SCHEMA = 1
KIND = "checkpoint manifest"


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Head(_Form):
    """What every version's manifest has."""

    schema_: int = Field(alias="schema")
    versions: dict[str, Any]


class _Order(_Form):
    created: float
    generation: int = Field(ge=0)
    step: int = Field(ge=0)


class _Record(_Form):
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # never a path


class _Manifest(_Form):
    job_uid: str
    order: _Order
    final: bool
    world: int = Field(ge=1)
    cursor: Any
    config_hash: str
    config: dict[str, Any] | None = None
    beside: dict[str, Any] | None = None
    files: dict[_FileName, _Record]


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
    return json.dumps(sealed(KIND, body), indent=1)


def _beside(identity: Mapping[str, Any], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of the identity is not in the configuration, which the manifest has already."""
    return {"beside": {name: value for name, value in identity.items() if config is None or name not in config}}


def read_manifest(place: Place, name: str) -> Checkpoint:
    """Raises as `parse_manifest`, and what the place raises."""
    try:
        return parse_manifest(place.path(name), place.read(f"{name}/{MANIFEST}", MOST_BYTES))
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None


def parse_manifest(folder: PurePath, text: str | bytes) -> Checkpoint:
    """Raises `ValueError` saying what is wrong with it, `ConfigChanged` where a newer Relight wrote it."""
    body, seal = unsealed(KIND, MANIFEST, text)
    try:
        head = _Head.model_validate(body)
        if head.schema_ > SCHEMA:
            raise ConfigChanged(
                f"{folder} was written by Relight {head.versions.get('relight')}, whose checkpoints (schema "
                f"{head.schema_}) this one (schema {SCHEMA}) cannot read; run the job with that version or a newer one"
            )
        said = _Manifest.model_validate(body)
        cursor = tagged.decode(said.cursor)
        if not isinstance(cursor, dict):
            raise TypeError("cursor is no object")
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{MANIFEST} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is damaged ({type(error).__name__}: {error})") from None
    return Checkpoint(
        path=folder,
        job_uid=said.job_uid,
        created=said.order.created,
        position=Position(said.order.generation, said.order.step),
        final=said.final,
        cursor=cursor,
        world=said.world,
        config_hash=said.config_hash,
        files={name: FileRecord(record.bytes, record.sha256) for name, record in said.files.items()},
        seal=seal,
        config=said.config,
        identity={**(said.config or {}), **said.beside} if said.beside is not None else said.config,
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


def _version() -> str:
    try:
        return importlib.metadata.version("relight")
    except importlib.metadata.PackageNotFoundError:  # a user's image, where the package is only a folder
        return "unknown"
