"""Folders of training state: Relight's checkpoints, torch's distributed checkpoints, sharded safetensors."""

import datetime as dt
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relight_trainer.inspect.contents import Contents, Piece, TensorRef, Unreadable
from relight_trainer.inspect.pickles import no_storage, read_zip, unpickled
from relight_trainer.inspect.tagged_tree import tree_of

MANIFEST, STATE = "manifest.json", "state.json"
Entries = Callable[[Path], tuple[dict[str, TensorRef], dict[str, str]]]


def read_checkpoint(path: Path, entries_of: Entries) -> Contents:
    """One of Relight's checkpoints."""
    manifest, document = _json(path / MANIFEST), _json(path / STATE)
    try:
        entries: dict[str, TensorRef] = {}
        for name in manifest["files"]:
            if name != STATE and not name.startswith("own-"):  # of one rank alone
                entries |= entries_of(_inside(path, name))[0]
        tree = tree_of(document["state"], document["views"], entries)
        order, final = manifest["order"], manifest["final"]
        dt.datetime.fromtimestamp(order["created"], dt.UTC)
        if not isinstance(manifest["cursor"], dict):
            raise TypeError("cursor is no object")
        facts = {
            "step": order["step"],
            "generation": order["generation"],
            "created": order["created"],
            "final": final,
            "world": manifest["world"],
            "configHash": manifest["config_hash"],
            "config": manifest.get("config"),
            "jobUid": manifest["job_uid"],
            "versions": manifest["versions"],
            "cursor": manifest["cursor"],
            "files": manifest["files"],
        }
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise Unreadable(f"{MANIFEST} or {STATE} is damaged ({type(error).__name__}: {error})") from None
    return Contents(path, "Relight checkpoint" + (" (final)" if final else ""), tree, facts)


def damage(contents: Contents) -> list[str]:
    """What is wrong with the files of one of Relight's checkpoints, whose checksums its manifest has."""
    wrong = []
    for name, record in contents.facts.get("files", {}).items():
        path = contents.path / name
        with path.open("rb") as file:
            if path.stat().st_size != record["bytes"]:
                wrong.append(f"{name} has {path.stat().st_size} bytes instead of {record['bytes']}")
            elif hashlib.file_digest(file, "sha256").hexdigest() != record["sha256"]:
                wrong.append(f"{name} does not match its checksum")
    return wrong


def newest_checkpoint(path: Path) -> Path | None:
    """The newest by (job created, generation, step) of the committed checkpoints in a job's folder."""

    def order(folder: Path) -> tuple[float, int, int]:
        said = _json(folder / MANIFEST)["order"]
        return said["created"], said["generation"], said["step"]

    found = []
    for manifest in path.glob(f"step-*/{MANIFEST}"):
        try:
            found.append((order(manifest.parent), manifest.parent))
        except (Unreadable, KeyError, TypeError):
            continue  # damaged: inspected by its own name, it says so
    return max(found)[1] if found else None


def read_safetensors_folder(path: Path, indices: list[Path], weights: list[Path], entries_of: Entries) -> Contents:
    """Weights sharded as Hugging Face does it."""
    files = weights
    if indices:
        try:
            files = sorted({_inside(path, name) for name in _json(indices[0])["weight_map"].values()})
        except (KeyError, AttributeError, TypeError) as error:
            raise Unreadable(f"{indices[0].name} is damaged ({type(error).__name__}: {error})") from None
    tree: dict[str, TensorRef] = {}
    for file in files:
        if not file.exists():
            raise Unreadable(f"{file.name} is missing")
        tree |= entries_of(file)[0]
    return Contents(path, f"safetensors folder ({len(files)} files)", tree)


def read_dcp(path: Path) -> Contents:
    """A folder of torch.distributed.checkpoint."""
    named: set[str] = set()
    metadata = unpickled((path / ".metadata").read_bytes(), no_storage, named)
    try:
        said = metadata.attributes()
        places = {}
        for key, info in said["storage_data"].items():
            index, place = key.attributes(), info.attributes()
            at = tuple(index["offset"]) if index.get("offset") is not None else None
            places[index["fqn"], at] = (place["relative_path"], int(place["offset"]), int(place["length"]))
        tree: dict[Any, Any] = {}
        for name, entry in said["state_dict_metadata"].items():
            where = (said.get("planner_data") or {}).get(name) or (name,)
            _put(tree, where, _dcp_item(path, name, entry, places))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise Unreadable(f".metadata is damaged, or of an unknown version ({type(error).__name__}: {error})") from None
    return Contents(path, "DCP folder", tree)


def _dcp_item(path: Path, name: str, entry: Any, places: dict[Any, tuple[str, int, int]]) -> Any:
    said = entry.attributes()
    if "size" not in said:
        relative, offset, length = places[name, None]
        return read_zip(_inside(path, relative), set(), offset, length)
    shape = tuple(map(int, said["size"]))
    pieces: list[Piece] = []
    dtype = ""
    for chunk in said["chunks"]:
        at = tuple(map(int, chunk.attributes()["offsets"]))
        relative, offset, length = places[name, at] if (name, at) in places else places[name, None]
        file = _inside(path, relative)
        stored = read_zip(file, set(), offset, length)
        if not isinstance(stored, TensorRef):
            raise Unreadable(f"{name} is stored in a way that is not known here")
        dtype = stored.dtype
        pieces += [piece._replace(at=at) for piece in stored.pieces]
    whole = TensorRef(dtype, shape, tuple(pieces))
    if sum(math.prod(piece.shape) for piece in pieces) != whole.elements:
        raise Unreadable(f"{name} is not whole: its parts have not as many elements as its shape {list(shape)}")
    return whole


def _put(tree: dict[Any, Any], where: tuple[Any, ...], value: Any) -> None:
    """`value` at its place in the nested state that DCP had flattened."""
    for key in where[:-1]:
        tree = tree.setdefault(key, {})
    tree[where[-1]] = value


def _inside(folder: Path, name: Any) -> Path:
    """A file that a folder's own index names: it must not lead out of the folder."""
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise Unreadable(f"it refers to {name!r}, outside the folder")
    return folder / name


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Unreadable(f"{path.name} is missing") from None
    except ValueError:
        raise Unreadable(f"{path.name} is not JSON") from None
