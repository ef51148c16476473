"""Weights out of a file of training state, for others to load."""

import contextlib
import hashlib
import json
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from relight_agent.durable import sync
from relight_trainer.inspect.contents import Contents, TensorRef, Unreadable, WrongInput
from relight_trainer.inspect.dtypes import ITEM_SIZES, SAFETENSORS
from relight_trainer.inspect.folders import damage
from relight_trainer.inspect.statistics import Bytes
from relight_trainer.inspect.weights import weights

_SUFFIXES = (".safetensors", ".pt", ".pth")
_ALIGNMENT = 8
_CHUNK = 1 << 24  # bytes written at once
_NAMES = {name: short for short, name in SAFETENSORS.items()}


def export(
    contents: Contents, out: Path, *, ema: bool = False, key: str | None = None, force: bool = False
) -> dict[str, Any]:
    """Write the weights of `contents` to `out`, which appears whole or not at all.

    Returns {out, tensors, elements, weightsDigest}, the digest as `checkpoint.weights_digest` says it. Tensors are
    row-major in the file; tied ones are written as often as they are named, for plain loaders want each.
    Raises WrongInput, Unreadable where the source is damaged, OSError.
    """
    check_out(out, force=force)
    named = weights(contents, key=key, ema=ema)
    wrong = damage(contents)
    if wrong:
        raise Unreadable(f"{contents.path}: {'; '.join(wrong)}: nothing was exported")
    with Bytes() as data:
        digest = _digest(named, data)
        metadata = {"format": "pt", "relight.weightsDigest": digest}
        with appearing(out) as file:
            (_write_safetensors if out.suffix == ".safetensors" else _write_torch)(file, named, data, metadata)
    return {
        "out": str(out),
        "tensors": len(named),
        "elements": sum(ref.elements for _, ref in named),
        "weightsDigest": digest,
    }


def check_out(out: Path, *, force: bool) -> None:
    """Raises WrongInput where weights cannot go to `out`: known before anything is computed."""
    if out.suffix not in _SUFFIXES:
        raise WrongInput(f'"{out}": the name says the format; allowed: {", ".join(f"*{s}" for s in _SUFFIXES)}')
    if out.exists() and not force:
        raise WrongInput(f'"{out}" exists; --force replaces it')
    if not out.parent.is_dir():
        raise WrongInput(f'"{out}": there is no folder "{out.parent}"')


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[IO[bytes]]:
    """A file that is `out` once the block has ended without an error, and nothing otherwise."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            sync(file.fileno(), temporary)
        temporary.replace(out)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _digest(named: list[tuple[str, TensorRef]], data: Bytes) -> str:
    digest = hashlib.sha256()
    for name, ref in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name}\0{ref.dtype}\0{','.join(map(str, ref.shape))}\0".encode())
        for part in _row_major(ref, data):
            digest.update(part)
    return digest.hexdigest()


def _row_major(ref: TensorRef, data: Bytes) -> Iterator[bytes]:
    array = data.whole(ref)
    if array.size == 0:
        return
    count = max(1, _CHUNK // ITEM_SIZES[ref.dtype])
    parts: Any = np.nditer(array, ["external_loop", "buffered"], order="C", buffersize=count)
    for part in parts:
        yield part.tobytes()
        data.read(part.nbytes)


def _write_safetensors(
    file: IO[bytes], named: list[tuple[str, TensorRef]], data: Bytes, metadata: dict[str, str]
) -> None:
    # The widest items first, and a file has no holes: each tensor is aligned.
    ordered = sorted(named, key=lambda pair: (-ITEM_SIZES[pair[1].dtype], pair[0]))
    head: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, ref in ordered:
        if ref.dtype not in _NAMES:
            raise WrongInput(f"{name}: safetensors has no dtype {ref.dtype}; write a .pt")
        size = ref.elements * ITEM_SIZES[ref.dtype]
        head[name] = {"dtype": _NAMES[ref.dtype], "shape": list(ref.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, ref in ordered:
        for part in _row_major(ref, data):
            file.write(part)


def save_torch(state: dict[str, Any], file: IO[bytes]) -> None:
    """torch.save, whose complaint about the end of a file that could not be written hides why it could not."""
    import torch

    try:
        torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _write_torch(file: IO[bytes], named: list[tuple[str, TensorRef]], data: Bytes, _: dict[str, str]) -> None:
    import torch

    state = {}
    for name, ref in named:
        raw = np.array(data.whole(ref), order="C", copy=True)
        state[name] = torch.from_numpy(raw.reshape(-1).view(np.uint8)).view(getattr(torch, ref.dtype)).view(ref.shape)
    save_torch(state, file)
