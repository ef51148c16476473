"""A moving average of a model's weights, as `torch.optim.swa_utils.AveragedModel` has it, exact across resumes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from relight_trainer.settings.ema import EmaArguments


class Ema:
    """Averages of the parameters and floating-point buffers of `module`; other buffers are copies.

    Part of the checkpoint. Nothing here waits for the host. What does not move keeps its bits in the average too.
    """

    def __init__(self, settings: EmaArguments, module: nn.Module) -> None:
        self._settings = settings
        self._own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._averages = {name: own.detach().clone() for name, own in self._own.items()}
        floating = [name for name, own in self._own.items() if own.is_floating_point() or own.is_complex()]
        self._moving = [self._averages[name] for name in floating]
        self._followed = [self._own[name] for name in floating]
        self._copies = [(self._averages[name], own) for name, own in self._own.items() if name not in set(floating)]
        self.updates = 0  # steps followed

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew from the module's present weights."""
        for name, own in self._own.items():
            self._averages[name].copy_(own)
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Follow an optimizer step that was taken; one that was skipped is none."""
        self.updates += 1
        decay = self._settings.decay
        if self._settings.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._moving, self._followed, 1.0 - decay)
        for copy, own in self._copies:
            copy.copy_(own)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The module has the averages inside, and its own weights, bit for bit, again afterwards. Copies nothing."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, own in self._own.items():
            average = self._averages[name]
            own.data, average.data = average.data, own.data

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": dict(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises ValueError where it is of another model."""
        weights = state["weights"]
        if weights.keys() != self._averages.keys():
            odd = sorted(weights.keys() ^ self._averages.keys())
            raise ValueError(f"the saved average is of another model: {', '.join(odd[:5])}")
        for name, average in self._averages.items():
            average.copy_(weights[name])
        self.updates = state["updates"]
