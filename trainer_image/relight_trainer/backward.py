"""The backward pass of one loss, at the cost of the pass.

`loss.backward(gradient)` looks at what it is given in a hundred lines of Python, which take a small step a tenth of its
time, and then makes one call. That call is no public interface: it is tried once, and torch's own way is taken where it
is not what it was, and for a loss that is more than a tensor.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_Engine = Callable[..., Any]


class Backward:
    """`backward(loss, gradient)` is `loss.backward(gradient)`; both are of one shape."""

    def __init__(self) -> None:
        self._run = _engine()

    def __call__(self, loss: Tensor, gradient: Tensor) -> None:
        if self._run is None or type(loss) is not Tensor:
            loss.backward(gradient)  # type: ignore[no-untyped-call]
        else:
            self._run((loss,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _engine() -> _Engine | None:
    """What `loss.backward` calls in the end, where a small sum comes out right."""
    try:
        run: _Engine = torch.autograd.graph._engine_run_backward  # noqa: SLF001
        leaf = torch.ones((), requires_grad=True)
        run((leaf * 2,), (torch.full((), 3.0),), False, False, (), allow_unreachable=True, accumulate_grad=True)
    except (AttributeError, TypeError, RuntimeError):
        return None
    return run if leaf.grad is not None and leaf.grad.item() == 6 else None
