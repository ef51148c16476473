"""What a file or folder of training state is, told by what is in it and never by its name."""

import difflib
import json
import struct
from pathlib import Path
from typing import Any

from relight_trainer.inspect import folders
from relight_trainer.inspect.contents import Contents, OutOfMemory, TensorRef, Unreadable, WrongInput
from relight_trainer.inspect.dtypes import ITEM_SIZES, SAFETENSORS
from relight_trainer.inspect.pickles import read_legacy, read_zip
from relight_trainer.inspect.tagged_tree import tree_of

_LENGTH = struct.Struct("<Q")
_MAX_HEAD = 1 << 28  # bytes; safetensors' own bound is 100 MB
_SHOWN_FILES = 8


def read(path: str | Path) -> Contents:
    """The content of a file or folder; the tensors' bytes are not read.

    Raises WrongInput where there is nothing at `path`, Unreadable where it is damaged, dangerous or unknown.
    """
    path = Path(path)
    if not path.exists():
        raise WrongInput(_missing(path))
    try:
        return _read_folder(path) if path.is_dir() else _read_file(path)
    except Unreadable as error:
        raise Unreadable(f"{path}: {error}") from None
    except OSError:
        raise
    except MemoryError:
        raise OutOfMemory(f"{path}: it asks for more memory than there is") from None
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise Unreadable(f"{path}: damaged ({type(error).__name__}: {error})") from None


def _missing(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f'; did you mean "{path.parent / near[0]}"?' if near else ""
    return f'no such file or folder: "{path}"{hint}'


def _read_file(path: Path) -> Contents:
    with path.open("rb") as file:
        head = file.read(16)
    named: set[str] = set()
    if head[:4] == b"PK\x03\x04":
        contents = Contents(path, "torch file", read_zip(path, named))
    elif head[:1] == b"\x80":
        contents = Contents(path, "torch file (written by torch < 1.6)", read_legacy(path, named))
    elif head[8:9] == b"{":
        return _read_safetensors(path)
    elif not head:
        raise Unreadable("the file is empty")
    else:
        raise Unreadable("neither a torch file nor safetensors")
    if named:
        contents.notes.append(
            f"holds objects that were not loaded: {', '.join(sorted(named))}; torch.load with weights_only=True refuses it"
        )
    return contents


def _read_safetensors(path: Path) -> Contents:
    tensors, metadata = safetensors_entries(path)
    if "relight.state" in metadata and "relight.views" in metadata:
        tree = tree_of(json.loads(metadata["relight.state"]), json.loads(metadata["relight.views"]), tensors)
        return Contents(path, "Relight snapshot", tree)
    facts = {"metadata": metadata} if metadata else {}
    return Contents(path, "safetensors", dict(tensors), facts)


def safetensors_entries(path: Path) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """(tensors by name, metadata) of a safetensors file. Raises Unreadable."""
    try:
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > _MAX_HEAD:
                raise Unreadable("damaged: its header cannot be that long")
            head = json.loads(file.read(length))
        metadata = head.pop("__metadata__", {})
        start = _LENGTH.size + length
        tensors = {}
        for name, entry in head.items():
            dtype, shape = SAFETENSORS[entry["dtype"]], tuple(map(int, entry["shape"]))
            begin, end = map(int, entry["data_offsets"])
            ref = TensorRef.dense(dtype, path, start + begin, shape)
            if (
                begin < 0
                or min(shape, default=0) < 0
                or end - begin != ref.elements * ITEM_SIZES[dtype]
                or start + end > path.stat().st_size
            ):
                raise Unreadable(f"damaged: {name} lies beyond the end of the file, or has a wrong size")
            tensors[name] = ref
    except KeyError as error:
        raise Unreadable(f"holds a dtype that is not known here: {error}") from None
    except (struct.error, ValueError, TypeError, AttributeError) as error:
        raise Unreadable(f"not a safetensors file: {error}") from None
    return tensors, metadata


def _read_folder(path: Path) -> Contents:
    own = [name for name in (folders.MANIFEST, folders.STATE) if (path / name).exists()]
    if len(own) == 2 or (own and any(path.glob("shard-*-of-*.safetensors"))):  # with one of them it is a damaged one
        return folders.read_checkpoint(path, safetensors_entries)
    if (path / ".metadata").exists():
        return folders.read_dcp(path)
    indices = sorted(path.glob("*.safetensors.index.json"))
    weights = sorted(path.glob("*.safetensors"))
    if indices or weights:
        return folders.read_safetensors_folder(path, indices, weights, safetensors_entries)
    newest = folders.newest_checkpoint(path)
    if newest is not None:
        contents = folders.read_checkpoint(newest, safetensors_entries)
        contents.notes.insert(
            0, f"the newest of the checkpoints in {path}; the others are inspected by their own names"
        )
        return contents
    names: list[Any] = sorted(p.name for p in path.iterdir())
    shown = ", ".join(names[:_SHOWN_FILES]) + (", ..." if len(names) > _SHOWN_FILES else "")
    raise Unreadable(f"no checkpoint, DCP folder or safetensors in it; found {shown or 'nothing'}")
