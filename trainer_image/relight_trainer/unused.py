"""Parameters that take no part in a step, which DDP must be told of."""

from collections.abc import Callable
from typing import Any

from torch import nn

from relight_trainer.settings.ddp import Ddp

_SHOWN = 8


class Unused:
    """Whether DDP is to look for unused parameters in each step, which costs it a walk over the graph.

    `auto` lets it look in the very first step of a training, and only there unless parameters were left without a
    gradient. A training that is resumed knows: it is in the checkpoint.
    """

    def __init__(self, settings: Ddp, model: nn.Module, *, always: bool = False) -> None:
        """`always`: the model is known to use a part of itself in each step."""
        self._decides = settings.find_unused_parameters == "auto" and not settings.static_graph and not always
        self._model = model
        self.allowed = always or self._decides or settings.find_unused_parameters is True

    def look(self, step: int, say: Callable[[str], None]) -> bool:
        """After the step that follows `step` done ones: True where `allowed` has changed."""
        if step or not self._decides:
            return False
        names = [name for name, p in self._model.named_parameters() if p.requires_grad and p.grad is None]
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            say(
                f"{len(names)} parameters got no gradient in the first step: {', '.join(names[:_SHOWN])}{more}; "
                "ddp.find_unused_parameters is true from now on: freeze them, if they never take part, for faster steps"
            )
        self.allowed = bool(names)
        return not self.allowed

    def state_dict(self) -> dict[str, Any]:
        return {"allowed": self.allowed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._decides:
            self.allowed = state["allowed"]
