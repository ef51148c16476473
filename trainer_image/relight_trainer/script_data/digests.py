"""A short digest of a batch: of its indices, or of some of its values."""

import ctypes
import hashlib
from array import array
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

UNKNOWN = ""  # of what cannot be read at little cost: it is compared with nothing
_LEAVES = 8  # looked at in one batch
_VALUES = 64  # of one tensor
_PLAIN = (int, float, str, bytes, bool, type(None))


def of_indices(indices: Any) -> str:
    """16 hexadecimal digits; UNKNOWN where the indices are objects.

    >>> of_indices([1, 2]) == of_indices((1, 2)) != of_indices([2, 1])
    True
    >>> of_indices([object()])
    ''
    """
    try:
        data = array("q", indices).tobytes()
    except (TypeError, OverflowError, ValueError):
        if not _is_plain(indices):
            return UNKNOWN
        data = repr(indices).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def of_batch(batch: Any) -> str:
    """16 hexadecimal digits of the shapes, and of up to 64 values of each of the first 8 tensors, numbers and texts.

    Values on a device are not waited for: there the shapes alone tell.
    """
    total = hashlib.blake2b(digest_size=8)
    for leaf in _leaves(batch):
        if isinstance(leaf, Tensor):
            total.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            if leaf.device.type == "cpu" and leaf.layout is torch.strided and leaf.numel():
                total.update(_values(leaf))
        elif isinstance(leaf, _PLAIN):
            total.update(repr(leaf).encode("utf-8", "surrogatepass"))
        elif hasattr(leaf, "tobytes") and hasattr(leaf, "ravel"):
            total.update(f"{leaf.dtype}{leaf.shape}".encode())
            total.update(leaf.ravel()[:: max(1, leaf.size // _VALUES)][:_VALUES].tobytes())
        else:
            total.update(type(leaf).__name__.encode())
    return total.hexdigest()


def _values(tensor: Tensor) -> bytes:
    tensor = tensor.detach()
    if not tensor.is_contiguous():
        while tensor.dim() and tensor.numel() > _VALUES:
            tensor = tensor[: max(1, _VALUES // max(1, tensor[0].numel()))] if tensor.shape[0] > 1 else tensor[0]
        tensor = tensor.contiguous()
    flat = tensor.view(-1)
    picked = flat[:: max(1, flat.numel() // _VALUES)][:_VALUES].contiguous()
    return ctypes.string_at(picked.data_ptr(), picked.numel() * picked.element_size())


def _leaves(batch: Any) -> list[Any]:
    found: list[Any] = []
    waiting = [batch]
    while waiting and len(found) < _LEAVES:
        value = waiting.pop()
        if isinstance(value, Mapping):
            waiting.extend(reversed(list(value.values())[:_LEAVES]))
        elif isinstance(value, (list, tuple)):
            waiting.extend(reversed(value[:_LEAVES]))
        else:
            found.append(value)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
