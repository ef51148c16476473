from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class Together(Optimizer):
    """Optimizers of different kinds, each for its own parameters, as one. A GradScaler skips all of them or none."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        # Not the base's: the parts have checked their parameters and keep their states.
        self._parts = parts
        self.defaults: dict[str, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]  # read-only here
        return [group for part in self._parts for group in part.param_groups]

    @property
    def state(self) -> Mapping[Tensor, Any]:  # type: ignore[override]  # read-only here
        return ChainMap(*(part.state for part in self._parts))

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
