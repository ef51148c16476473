# ruff: noqa: SLF001  # torch's operations on lists have no public names
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from relight_trainer.optimizers.scaled import SkippingOptimizer, commit, gradients, taken, working


class Lamb(SkippingOptimizer):
    """Layer-wise Adam: for each tensor w, Adam's bias-corrected update plus weight_decay * w, call it r, is taken at the
    rate lr * min(|w|, max_norm) / |r|. You et al. 2019, arXiv:1904.00962, algorithm 2.

    Where w or r is all zeros, or `adapt` is false, the rate is lr: AdamW, but for eps. Nothing waits for the host, also
    under GradScaler.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_norm: float = 10.0,
        adapt: bool = True,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_norm": max_norm,
            "adapt": adapt,
        }
        super().__init__(params, defaults)

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        grads = gradients(self, parameters)
        for p in parameters:
            if not self.state[p]:
                # not float32: 1 - 0.999 would be off by 6e-5 of itself
                zero = torch.zeros((), dtype=torch.float64, device=p.device)
                self.state[p] = {"step": zero, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        states = [self.state[p] for p in parameters]
        old = [[s[name] for s in states] for name in ("step", "exp_avg", "exp_avg_sq")]

        where = taken(self, parameters[0].device)
        steps, first, second = (working(tensors, where) for tensors in old)
        weights = working(parameters, where)
        torch._foreach_add_(steps, 1.0)
        torch._foreach_lerp_(first, grads, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1.0 - beta2)
        corrections = [torch._foreach_pow(beta, steps) for beta in (beta1, beta2)]  # 1 - beta ** step
        for correction in corrections:
            torch._foreach_mul_(correction, -1.0)
            torch._foreach_add_(correction, 1.0)
        updates = torch._foreach_div(first, corrections[0])
        denominators = torch._foreach_div(second, corrections[1])
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_div_(updates, denominators)
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        if group["adapt"]:
            weight, update = (torch.stack(torch._foreach_norm(tensors)) for tensors in (parameters, updates))
            rates = weight.clamp(max=group["max_norm"]) / update
            rates = torch.where((weight > 0) & (update > 0), rates, 1.0) * group["lr"]
            torch._foreach_mul_(updates, rates.unbind())
        else:
            torch._foreach_mul_(updates, group["lr"])
        torch._foreach_sub_(weights, updates)
        commit([*chain(*old), *parameters], [*steps, *first, *second, *weights], where)
