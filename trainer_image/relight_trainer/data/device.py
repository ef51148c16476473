"""Getting a batch onto the device while the step before it is computed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor


def each_tensor(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`batch`, nested tuples, lists and mappings of tensors, with `change` made to each tensor; the rest as it is."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: each_tensor(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(each_tensor(value, change) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(each_tensor(value, change) for value in batch)
    return batch


def moved(batch: Any, device: torch.device) -> Any:
    """`batch` on `device`. The host does not wait for a copy to a GPU."""
    if device.type == "cpu":
        return batch

    def move(tensor: Tensor) -> Tensor:
        pinned = tensor if tensor.device.type != "cpu" or tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(device, non_blocking=True)

    return each_tensor(batch, move)


def on_device(batches: Iterable[Any], device: torch.device, finish: Callable[[Any], Any]) -> Iterator[Any]:
    """Each batch on `device` and then `finish`ed there.

    On a GPU both happen on a stream of their own: as the host runs ahead of the GPU, they overlap with the step before.
    """
    if device.type != "cuda":
        yield from (finish(moved(batch, device)) for batch in batches)
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(copying):
            ready = finish(moved(batch, device))
        using = torch.cuda.current_stream(device)
        using.wait_stream(copying)
        # Memory of one stream that another reads must not be given away before that one is done.
        each_tensor(ready, partial(_keep_for, using))
        yield ready


def _keep_for(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    tensor.record_stream(stream)
    return tensor
