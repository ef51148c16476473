"""Numbers that the device will have computed some time: taken now, read in another thread, and nobody waits."""

from collections.abc import Callable

import torch
from torch import Tensor


def later(value: Tensor) -> Callable[[], Tensor]:
    """A function that gives `value` as it is now, on the CPU and without its graph; it waits until the device is there.

    Costs the caller a copy on the device at most. What is taken on a CUDA stream is read after that stream's work.
    """
    value = value.detach()
    if value.device.type == "cpu":
        kept = value.clone()
        return lambda: kept
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.device.type == "cuda")
    if value.device.type != "cuda":
        host.copy_(value)
        return lambda: host
    host.copy_(value, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # the reader sleeps instead of spinning
    copied.record()

    def read() -> Tensor:
        copied.synchronize()
        return host

    return read
