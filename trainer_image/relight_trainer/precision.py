"""What the forward pass computes in."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

_AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """What to put around each forward pass. For fp32 and tf32 it does nothing, at no cost."""
    dtype = _AUTOCAST[precision]
    return nullcontext if dtype is None else lambda: torch.autocast(device.type, dtype)


def build_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """fp16's loss scaling, on the CPU too; disabled for the others, whose range is fp32's."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def allow_tf32(allowed: bool) -> None:
    """Whether fp32 products on a GPU may be computed in tf32: matrices' and convolutions' alike."""
    # The older of torch's two interfaces: once the newer one is used, user code that reads the older one fails.
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
