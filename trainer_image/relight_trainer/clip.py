"""Gradient clipping. Nothing here waits for the host."""

from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from relight_trainer.globs import chosen
from relight_trainer.patterns import require
from relight_trainer.settings.clip import AnyClip, ClipAgc, ClipNorm, ClipValue

Clip = Callable[[], Tensor]


def build_clip(settings: AnyClip | None, module: nn.Module) -> Clip | None:
    """A function that clips the gradients of `module` in place and returns their norm of before, a scalar tensor.

    Called once per optimizer step, between `scaler.unscale_(optimizer)` and the step. Parameters without a gradient are
    left out. Raises BadConfig where a pattern fits no parameter.
    """
    if settings is None:
        return None
    parameters = dict(module.named_parameters())
    if isinstance(settings, ClipAgc):
        require(parameters, settings.but, "config.clip.but")
        left_alone = set(chosen(parameters, settings.but))
        clipped = [p for name, p in parameters.items() if name not in left_alone]
    order = settings.order if isinstance(settings, ClipNorm) else 2.0

    def clip() -> Tensor:
        with_gradient = [p for p in parameters.values() if p.grad is not None]
        norm = get_total_norm([p.grad for p in with_gradient if p.grad is not None], order)
        if isinstance(settings, ClipNorm):
            clip_grads_with_norm_(with_gradient, settings.max, norm)
        elif isinstance(settings, ClipAgc):
            adaptive_(clipped, settings.factor, settings.eps)
        elif isinstance(settings, ClipValue):
            clip_grad_value_(with_gradient, settings.max)
        else:
            assert_never(settings)
        return norm

    return clip


@torch.no_grad()
def adaptive_(parameters: list[nn.Parameter], factor: float, eps: float) -> None:
    """Scale each unit's gradient to at most `factor` times the norm of its weights, which counts as at least `eps`.

    A unit is a row of a matrix or an output channel of a convolution; of a vector or scalar, the whole.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        limit = _unit_norms(parameter).clamp_(min=eps).mul_(factor)
        norm = _unit_norms(gradient)
        gradient.mul_(torch.where(norm > limit, limit / norm, 1.0))


def _unit_norms(tensor: Tensor) -> Tensor:
    dims = tuple(range(1, tensor.ndim)) or None
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True)
    return norms
