"""The digest by which two trained models are the same, or not."""

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from relight_trainer.checkpoint.memory import bytes_of
from relight_trainer.checkpoint.tagged import dtype_name


def weights_digest(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over parameters and buffers in the order of their names (by code point), as 64 hexadecimal digits.

    For each: name in UTF-8, NUL, dtype as in "float32", NUL, sizes as in "3,4" ("" for a scalar), NUL, then the values
    as little-endian bytes in row-major order, whatever the tensor's strides and device are.
    Raises `ValueError` for two tensors of one name.
    """
    digest = hashlib.sha256()
    before = None
    for name, tensor in sorted(named_tensors, key=lambda pair: pair[0]):
        if name == before:
            raise ValueError(f"two tensors are named {name!r}")
        before = name
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name}\0{dtype_name(tensor.dtype)}\0{shape}\0".encode())
        values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(bytes_of(values))
    return digest.hexdigest()


def weights_of(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and buffers of `module` by name, less buffers that are not persistent: they are no state."""
    yield from module.named_parameters()
    fleeting = {
        f"{name}.{buffer}" if name else buffer
        for name, part in module.named_modules()
        for buffer in part._non_persistent_buffers_set  # noqa: SLF001  # no public name
    }
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name not in fleeting)
