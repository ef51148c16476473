"""Numbers that are not finite: found before they are kept, named by their step, at no wait for the device."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from relight_agent.exits import ExitCode


class NonFiniteLoss(Exception):
    """The loss or its gradient is NaN or infinite."""

    exit_code = ExitCode.NON_FINITE_LOSS


class FiniteWatch:
    """Watches the loss and the gradient of each step.

    On the CPU a number is looked at as it comes, before the step changes anything. On a GPU it is looked at by
    `settle`, which belongs right before the state is copied to the host, for that waits for the same things.
    """

    def __init__(self, device: torch.device, cause: Callable[[], None] | None = None) -> None:
        """`cause` raises what explains a number that is not finite, where it knows that."""
        self._cause = cause
        self.later = device.type != "cpu"
        self._noted: list[tuple[str, int, Tensor]] = []

    def note(self, what: str, value: Tensor, step: int) -> None:
        """`value` (one number) is the `what` of the step after `step` done ones. Raises NonFiniteLoss."""
        if self.later:
            self._noted.append((what, step, value.detach()))
        else:
            self.number(what, value, step)

    @staticmethod
    def number(what: str, value: Tensor, step: int) -> float:
        """What is noted, looked at now. Raises NonFiniteLoss."""
        number = value.item()
        _check(what, number, step)
        return number

    def note_found(self, what: str, found: Tensor, step: int) -> None:
        """`found` (0 or 1) says whether there are such numbers in the `what` of that step. Raises NonFiniteLoss."""
        if self.later:
            self._noted.append((what, step, found / (1 - found)))  # 0, or infinite
        elif found.item():
            _check(what, math.inf, step)

    def settle(self) -> None:
        """Look at everything noted; the device is waited for. Raises NonFiniteLoss."""
        if self._noted:
            noted, self._noted = self._noted, []
            values = torch.stack([value.double() for _, _, value in noted]).tolist()
            for (what, step, _), value in zip(noted, values, strict=True):
                if self._cause is not None and not math.isfinite(value):
                    self._cause()
                _check(what, value, step)


def _check(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise NonFiniteLoss(f"the {what} is {'infinite' if math.isinf(value) else value} in step {step + 1}")
