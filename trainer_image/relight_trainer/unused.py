"""Parameters that take no part in a step, which DDP must be told of."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from relight_trainer.settings.ddp import Ddp

_SHOWN = 8


class Unused:
    """Whether DDP is to look for unused parameters in each step, which costs it a walk over the graph.

    `auto` finds out in the very first step of a training: DDP has no part in that one, its gradients are summed here.
    A training that is resumed knows: it is in the checkpoint.
    """

    def __init__(self, settings: Ddp, model: nn.Module, *, always: bool = False) -> None:
        """`always`: the model is known to use a part of itself in each step."""
        self._decides = settings.find_unused_parameters == "auto" and not settings.static_graph and not always
        self._parameters = list(model.named_parameters())
        self.allowed = always or settings.find_unused_parameters is True

    def looks(self, step: int) -> bool:
        """Whether the step after `step` done ones is the one that is looked at."""
        return step == 0 and self._decides and dist.get_world_size() > 1

    def look(self, say: Callable[[str], None]) -> None:
        """Make each rank's gradients their mean over ranks, as DDP would, and see which parameters have none at all."""
        learning = [(name, p) for name, p in self._parameters if p.requires_grad]
        device = learning[0][1].device
        used = torch.tensor([p.grad is not None for _, p in learning], dtype=torch.int32, device=device)
        dist.all_reduce(used)
        names = []
        for (name, parameter), count in zip(learning, used.tolist(), strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad /= dist.get_world_size()
                dist.all_reduce(parameter.grad)
            else:
                names.append(name)
        self.allowed = bool(names)
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            say(
                f"got no gradient in the first step: {', '.join(names[:_SHOWN])}{more}; "
                "ddp.find_unused_parameters is true from now on; freeze what never takes part, for faster steps"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"allowed": self.allowed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._decides:
            self.allowed = state["allowed"]
