# ruff: noqa: SLF001  # torch's operations on lists have no public names
from typing import Any

import torch
from torch import Tensor

from relight_trainer.optimizers.scaled import SkippingOptimizer, commit, gradients, taken, working


class Lars(SkippingOptimizer):
    """Layer-wise adaptive rate scaling: SGD with momentum whose rate is, for each tensor w with gradient g,
    lr * trust * |w| / (|g| + weight_decay * |w| + eps). You, Gitman and Ginsburg 2017, arXiv:1708.03888, algorithm 1.

    Where w or g is all zeros, or `adapt` is false, the rate is lr: plain SGD. Nothing waits for the host, also under
    GradScaler.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 1e-4,
        trust: float = 1e-3,
        eps: float = 1e-8,
        adapt: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "trust": trust,
            "eps": eps,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        decay, momentum = group["weight_decay"], group["momentum"]
        grads = gradients(self, parameters)
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]

        decayed = list(torch._foreach_add(grads, parameters, alpha=decay))
        if group["adapt"]:
            weight, gradient = (torch.stack(torch._foreach_norm(tensors)) for tensors in (parameters, grads))
            rates = group["trust"] * weight / (gradient + decay * weight + group["eps"])
            rates = torch.where((weight > 0) & (gradient > 0), rates, 1.0) * group["lr"]
            torch._foreach_mul_(decayed, rates.unbind())
        else:
            torch._foreach_mul_(decayed, group["lr"])

        where = taken(self, parameters[0].device)
        moved, weights = working(buffers, where), working(parameters, where)
        torch._foreach_mul_(moved, momentum)
        torch._foreach_add_(moved, decayed)
        if group["nesterov"]:
            torch._foreach_add_(decayed, moved, alpha=momentum)
        torch._foreach_sub_(weights, decayed if group["nesterov"] else moved)
        commit([*buffers, *parameters], [*moved, *weights], where)
