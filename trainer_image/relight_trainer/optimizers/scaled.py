"""What GradScaler asks of an optimizer that is to skip a step, or to unscale in it, without the host's knowing.

GradScaler sets `grad_scale` and `found_inf` on an optimizer that says `_step_supports_amp_scaling`, calls `step()` and
removes them. With torch's own fused optimizers it does the same.
"""

# ruff: noqa: SLF001  # torch's operations on lists have no public names

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def gradients(optimizer: Optimizer, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of `parameters`, unscaled where GradScaler has left that to the optimizer."""
    found = [p.grad for p in parameters if p.grad is not None]
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if scale is None or not found:
        return found
    return list(torch._foreach_div(found, scale.to(found[0].device).reshape(())))


def taken(optimizer: Optimizer, device: torch.device) -> Tensor | None:
    """Whether this step is to be taken, as a scalar on `device`; None where nobody asks."""
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.to(device).reshape(()) == 0


def working(tensors: Sequence[Tensor], where: Tensor | None) -> list[Tensor]:
    """What a step may write to: the tensors themselves, or copies where the step may yet turn out not to be taken."""
    return list(tensors) if where is None else [t.clone() for t in tensors]


def commit(old: Sequence[Tensor], new: Sequence[Tensor], where: Tensor | None) -> None:
    """Make each of `old` what its working copy has become, or leave all of them as they are where `where` is false."""
    if where is not None:
        torch._foreach_copy_(list(old), [torch.where(where, n, o) for o, n in zip(old, new, strict=True)])


class SkippingOptimizer(Optimizer):
    """One whose `_update` works on the parameters of a group at once, and leaves a step out where GradScaler says so."""

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters)
        return loss

    @abstractmethod
    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Update `parameters`, those of `group` that have gradients."""
