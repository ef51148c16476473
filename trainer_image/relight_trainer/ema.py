"""A moving average of a model's weights, as `torch.optim.swa_utils.AveragedModel` has it, exact across resumes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from relight_trainer.buffers import Places, copy_of, copyable, describe
from relight_trainer.settings.ema import EmaArguments


class Ema:
    """Averages of the parameters and floating-point buffers of `module`; other buffers are copies.

    Part of the checkpoint. Nothing here waits for the host. What does not move keeps its bits in the average too.
    Numbers of fewer than 32 bits are averaged in float32: steps of 1 - decay are too small for them.
    Where the module replaces a parameter or buffer, the average follows the new one; one of another shape, or that is
    new, begins anew with its present value.
    """

    def __init__(self, settings: EmaArguments, module: nn.Module) -> None:
        """Raises UnsupportedBuffer."""
        self._settings = settings
        self._places = Places([module], parameters=True)
        self._version = -1
        self._averages: dict[str, Tensor] = {}
        self._follow()
        self.updates = 0  # steps followed

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew from the module's present weights."""
        self._follow()
        for name, own in self._own.items():
            copyable(self._averages[name]).copy_(copyable(own))
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Follow an optimizer step that was taken; one that was skipped is none."""
        self._follow()
        self.updates += 1
        decay = self._settings.decay
        if self._settings.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        if self._moving:
            torch._foreach_lerp_(self._moving, self._followed, 1.0 - decay)
        if self._wide:
            followed = [own.to(average.dtype) for average, own in zip(self._wide, self._narrow, strict=True)]
            torch._foreach_lerp_(self._wide, followed, 1.0 - decay)
        for copy, own in self._copies:
            copyable(copy).copy_(copyable(own))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The module has the averages inside, and its own weights, bit for bit, again afterwards.

        Tensors that are replaced inside are put back too. Copies nothing but numbers of fewer than 32 bits.
        """
        self._follow()
        put_back = self._places.remember()
        lent = [(own, own.data, self._averages[name]) for name, own in self._own.items()]
        for own, _, average in lent:
            own.data = average.data if average.dtype is own.dtype else average.to(own.dtype)
        try:
            yield
        finally:
            put_back()
            for own, data, _ in lent:
                own.data = data

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": dict(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave. Raises ValueError where it is of another model."""
        self._follow()
        weights = state["weights"]
        if weights.keys() != self._averages.keys():
            odd = sorted(weights.keys() ^ self._averages.keys())
            raise ValueError(f"the saved average is of another model: {', '.join(odd[:5])}")
        for name, average in self._averages.items():
            if weights[name].shape != average.shape:
                saved, here = describe(weights[name]), describe(average)
                raise ValueError(f"the saved average is of another model: {name} is {saved} there and {here} here")
        for name, average in self._averages.items():
            copyable(average).copy_(copyable(weights[name]))
        self.updates = state["updates"]

    @torch.no_grad()
    def _follow(self) -> None:
        """Look which tensors the module has now; what averages there are of them goes on."""
        version = self._places.look()
        if version == self._version:
            return
        self._version = version
        before, self._own = self._averages, self._places.named
        self._averages = {name: _average(own, before.get(name)) for name, own in self._own.items()}
        moving = [name for name, own in self._own.items() if own.dtype in _AVERAGED and own.layout is torch.strided]
        same = [name for name in moving if self._averages[name].dtype is self._own[name].dtype]
        wide = [name for name in moving if self._averages[name].dtype is not self._own[name].dtype]
        self._moving, self._followed = [self._averages[n] for n in same], [self._own[n] for n in same]
        self._wide, self._narrow = [self._averages[n] for n in wide], [self._own[n] for n in wide]
        self._copies = [(self._averages[name], own) for name, own in self._own.items() if name not in set(moving)]


_FLOAT8 = [
    kind for name in dir(torch) if name.startswith("float8_") and isinstance(kind := getattr(torch, name), torch.dtype)
]
# The dtypes that are averaged, and in which. Not float4: it has no conversion to any other.
_AVERAGED = {
    **{kind: kind for kind in (torch.float32, torch.float64, torch.complex64, torch.complex128)},
    **dict.fromkeys([torch.float16, torch.bfloat16, *_FLOAT8], torch.float32),
    torch.complex32: torch.complex64,
}


def _average(own: Tensor, before: Tensor | None) -> Tensor:
    """What `own` is averaged in: where there is an average of such a tensor `before`, that one."""
    dtype = _AVERAGED.get(own.dtype, own.dtype) if own.layout is torch.strided else own.dtype
    if (
        before is not None
        and before.shape == own.shape
        and (before.dtype is dtype or (own.dtype in _AVERAGED and before.dtype in _AVERAGED))
    ):
        return before.to(own.device, dtype)
    begun = own.detach()
    return copy_of(begun) if begun.dtype is dtype else begun.to(dtype)
