"""The optimizer's step, at the cost of the step.

Around each step torch records its name for profilers, looks for hooks and keeps a compiler out, all of it in Python: for a
small model that takes longer than to move its parameters. Where nobody listens, what is wrapped in that is called by
itself. That it is what is expected is looked at once; torch's own way is taken where it is not, and where anybody listens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as internals  # which torch hides as an attribute

_is_profiled: Any = getattr(torch.autograd, "_profiler_enabled", None)
_LISTENERS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


class Update:
    """`update()` is `optimizer.step()`, to the bit."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._step = _unwrapped(type(optimizer))
        self._no_grad = torch.no_grad()

    def __call__(self) -> None:
        optimizer, step = self._optimizer, self._step
        if step is None or _is_watched(optimizer):
            optimizer.step()
        else:
            with self._no_grad:
                step(optimizer)


def _is_watched(optimizer: Optimizer) -> bool:
    """Whether anybody but the parameters would miss torch's own way."""
    return bool(
        optimizer._optimizer_step_pre_hooks  # noqa: SLF001
        or optimizer._optimizer_step_post_hooks  # noqa: SLF001
        or internals._global_optimizer_pre_hooks  # noqa: SLF001
        or internals._global_optimizer_post_hooks  # noqa: SLF001
        or _is_profiled()
        or "step" in vars(optimizer)  # as torch's schedulers do
        or optimizer.defaults["differentiable"]
    )


def _unwrapped(kind: type[Optimizer]) -> Callable[[Any], Any] | None:
    """The `step` of `kind` as its author wrote it, where it is wrapped in torch's two decorators and nothing else."""
    try:
        recorded: Any = kind.step
        graded = recorded.__wrapped__
        step: Callable[[Any], Any] = graded.__wrapped__
        decorators = Optimizer.profile_hook_step, internals._use_grad_for_differentiable  # noqa: SLF001
    except AttributeError:
        return None
    expected = [decorator(_nothing).__code__ for decorator in decorators]
    known = [recorded.__code__, graded.__code__] == expected and not hasattr(step, "__wrapped__")
    return step if known and _is_profiled and all(hasattr(internals, name) for name in _LISTENERS) else None


def _nothing(*_: Any) -> None: ...
