"""What is compared of an object: its state's tensors as digests, everything else as the text that checkpoints use."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from relight_trainer.checkpoint import tagged
from relight_trainer.checkpoint.container import flatten
from relight_trainer.equality.compare import ObjectDigest, TensorDigest
from relight_trainer.equality.digest import LANES, digests


def compared_state(stateful: Any) -> Any:
    """The part of `stateful`'s state that must be equal on all ranks.

    An object whose state is partly each rank's own (measured seconds, say) says by a method `compared_state` what
    must be equal. Of others it is all of `state_dict()`; of a GradScaler its tensors, because its `state_dict()` waits for the device.
    """
    if hasattr(stateful, "compared_state"):
        return stateful.compared_state()
    if isinstance(stateful, nn.Module) and type(stateful).state_dict is nn.Module.state_dict:
        return stateful.state_dict(keep_vars=True)
    if type(stateful) is GradScaler and stateful.is_enabled() and stateful._scale is not None:  # noqa: SLF001
        return {"scale": stateful._scale, "growth_tracker": stateful._growth_tracker}  # noqa: SLF001  # no public name
    return stateful.state_dict()


def with_own_notes(objects: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `objects` whose state is partly each rank's own."""
    return {name: o for name, o in objects.items() if hasattr(o, "compared_state")}


class _Described(NamedTuple):
    text: str
    tensors: list[tuple[str, str]]  # name, dtype and shape


class Reading:
    """The digests of some objects at one moment. Made without a wait for a device; `result` may wait."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        """Raises UnsupportedState where a checkpoint could not hold an object's state."""
        began = time.perf_counter()
        self._described: dict[str, _Described] = {}
        every: list[Tensor] = []
        for name, stateful in objects.items():
            text, paths, tensors = flatten({"": compared_state(stateful)})
            spelled = [tagged.spell(path).removeprefix(".") for path in paths]
            kinds = [f"{tagged.dtype_name(t.dtype)} {tuple(t.shape)}" for t in tensors]
            self._described[name] = _Described(text, list(zip(spelled, kinds, strict=True)))
            every += tensors
        self._size = len(every)
        before = _now_on_devices(every)
        self._parts = [_OnItsWay(group.indices, group.digests, before) for group in digests(every)]
        self.seconds = (
            time.perf_counter() - began
        )  # that the training stood still for it; the device's part comes with `result`

    def result(self) -> dict[str, ObjectDigest]:
        """The digests, by object. Waits for the device's part of the work."""
        found: list[tuple[int, ...]] = [()] * self._size
        for part in self._parts:
            for i, lanes in zip(part.indices, part.wait(), strict=True):
                found[i] = tuple(lanes)
        self.seconds = max(self.seconds, *(part.seconds for part in self._parts), 0.0)
        result = {}
        at = 0
        for name, (text, tensors) in self._described.items():
            digested = [TensorDigest(*t, *found[at + i]) for i, t in enumerate(tensors)]
            at += len(tensors)
            result[name] = ObjectDigest(_short(text, digested), text, digested)
        return result


class _OnItsWay:
    """Digests that are being copied from their device."""

    def __init__(self, indices: Sequence[int], values: Tensor, before: Mapping[torch.device, torch.cuda.Event]) -> None:
        """`before`: by device, when work on the digests began there."""
        self.indices = indices
        self.seconds = 0.0  # of the device, once it is known
        self._event: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            self._event = _recorded(values.device)
            self._before = before[values.device]
            self._host, self._values = host, values  # the source lives until it has been copied
        else:
            self._host = values.cpu()

    def wait(self) -> list[list[int]]:
        if self._event is not None:
            self._event.synchronize()
            self.seconds = self._before.elapsed_time(self._event) / 1000
        lanes: list[list[int]] = self._host.tolist()
        assert all(len(one) == LANES for one in lanes)
        return lanes


def _now_on_devices(tensors: Sequence[Tensor]) -> dict[torch.device, torch.cuda.Event]:
    return {device: _recorded(device) for device in {t.device for t in tensors} if device.type == "cuda"}


def _recorded(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's stub has none
    event.record(torch.cuda.current_stream(device))
    return event


def _short(text: str, tensors: Sequence[TensorDigest]) -> str:
    return hashlib.sha256(json.dumps([text, tensors]).encode()).hexdigest()[:32]
