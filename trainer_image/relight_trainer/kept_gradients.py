"""Gradients that a script keeps from one step to the next, to accumulate them by itself.

No state holds gradients. A job that goes on between two batches whose gradients make one update would apply those of the
second batch alone, and end as if nothing had happened. `run.steps(accumulate=...)` makes such batches one step.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from relight_agent.exits import ExitCode

_LOOKED_AT = 8  # parameters of one optimizer


class KeptGradients(Exception):
    """An update would apply gradients that an earlier step has left."""

    exit_code = ExitCode.BAD_CONFIG


class GradientsWatch:
    """Sees whether the gradients of one step are added to those of another one. All optimizers are those of `objects`."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._watched = [_Watched(name, o) for name, o in objects.items() if isinstance(o, Optimizer)]

    def step_done(self) -> None:
        """A step is over: what its gradients are needed for has been done."""
        for watched in self._watched:
            watched.step_done()


class _Watched:
    def __init__(self, name: str, optimizer: Optimizer) -> None:
        self._name = name
        # accelerate's optimizer calls the one that it holds
        inner: Any = getattr(optimizer, "optimizer", optimizer)
        self._optimizer: Optimizer = inner if isinstance(inner, Optimizer) else optimizer
        self._has_stepped = False
        self._left: list[_Left] = []
        self._optimizer.register_step_pre_hook(self._before_step)

    def step_done(self) -> None:
        stepped, self._has_stepped = self._has_stepped, False
        if stepped or self._left:
            return
        # A step without an update: an adversary's turn, a skipped update, or gradients that are kept. Which of them is
        # seen when the next backward pass comes.
        parameters = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._left = [_Left(p) for p in _spread(parameters)]

    def _before_step(self, *_: Any) -> None:
        self._has_stepped = True
        if not self._left:
            return
        left, self._left = self._left, []
        for one in left:
            one.handle.remove()
        if any(one.is_added_to() for one in left):
            raise KeptGradients(
                f"{self._name}.step() would apply gradients of several steps: those of an earlier batch were kept, and "
                "those of this one added. Gradients are not saved, so a job that goes on between the two batches would lose "
                "those of the first. Accumulate with `for batch in run.steps(loader, epochs=..., accumulate=N)`, and call "
                f"{self._name}.step() and {self._name}.zero_grad() only where run.stepping is true"
            )


class _Left:
    """A parameter's gradient that was there when a step had ended without an update."""

    def __init__(self, parameter: Tensor) -> None:
        self._parameter, self._gradient = parameter, parameter.grad
        self._is_added_to = False
        self.handle = parameter.register_hook(self._adding)  # type: ignore[no-untyped-call]

    def is_added_to(self) -> bool:
        """Whether a later gradient has been added to it, and the sum is still there."""
        return self._is_added_to and self._parameter.grad is self._gradient

    def _adding(self, _: Tensor) -> None:
        """A backward pass is going to add to the parameter's gradient."""
        kept = self._gradient
        if not self._is_added_to and kept is not None and self._parameter.grad is kept:
            with torch.no_grad():
                self._is_added_to = bool(
                    (kept.coalesce().values() if kept.is_sparse else kept).any()
                )  # else it has been set to zero


def _spread(parameters: list[Tensor]) -> Iterable[Tensor]:
    """Some of them, the last one too."""
    return parameters[:: -max(1, len(parameters) // _LOOKED_AT)]
