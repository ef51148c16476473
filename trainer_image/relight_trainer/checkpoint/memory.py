"""Tensors as bytes and bytes as tensors, without a copy and without numpy."""

import ctypes
import mmap
import sys
from typing import Any

import torch

if sys.byteorder != "little":
    raise ImportError("Relight's files and digests are little-endian, and so must the machine be")


Buffer = bytes | bytearray | memoryview | mmap.mmap


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a dense CPU tensor, in the order in which it lies there. It must outlive the view."""
    return _view(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The memory of a dense tensor as flat uint8, on its own device."""
    size = tensor.element_size()
    memory = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return memory.set_(tensor.untyped_storage(), tensor.storage_offset() * size, (tensor.numel() * size,), (1,))


def owned(data: Buffer) -> torch.Tensor:
    """A copy of `data` as a flat uint8 tensor that owns its memory, aligned as torch's allocator aligns."""
    source = memoryview(data).cast("B")
    copy = torch.empty(len(source), dtype=torch.uint8)
    bytes_of(copy)[:] = source
    return copy


def in_memory(data: memoryview) -> torch.Tensor:
    """`data`, which is writable, as a flat uint8 tensor: the same memory."""
    return torch.frombuffer(data, dtype=torch.uint8) if len(data) else torch.empty(0, dtype=torch.uint8)


def _view(address: int, size: int) -> memoryview:
    if size == 0:
        return memoryview(bytearray())
    array: Any = (ctypes.c_char * size).from_address(address)
    return memoryview(array).cast("B")
