"""Modules that a script has not given to `client.start`, and that its steps change: an average, a momentum teacher, the
center of a loss. Each process would begin them anew.
"""

import gc
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from relight_trainer.given import NotGiven, tensors_of

_VALUES = 64  # of a tensor that are looked at


class _Watched(NamedTuple):
    module: "weakref.ref[nn.Module]"
    values: dict[str, Tensor]  # by the name of a tensor, bytes of some of its values


class OtherModules:
    """The modules of this process, as far as their tensors are not in the objects of the job's state."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        """Raises NotGiven for an average, which is there to be changed."""
        saved = {_place(t) for stateful in objects.values() for t in tensors_of(stateful)}
        self._watched: list[_Watched] = []
        self._steps = 0
        if not objects:
            return
        modules = [o for o in gc.get_objects() if issubclass(type(o), nn.Module)]
        inner = {id(child) for module in modules for child in module.children()}
        for module in modules:
            if id(module) in inner:
                continue
            tensors = {name: t for name, t in _tensors(module) if _place(t) not in saved}
            if not tensors:
                continue
            if isinstance(module, AveragedModel):
                raise NotGiven(_words(module, "is an average of weights"))
            self._watched.append(_Watched(weakref.ref(module), {name: _some(t) for name, t in tensors.items()}))

    def step_done(self) -> None:
        """A step is over. Looks after 1, 2, 4, 8, ... of them. Raises NotGiven where a module has changed."""
        self._steps += 1
        if not self._watched or self._steps & (self._steps - 1):
            return
        for reference, values in self._watched:
            module = reference()
            if module is None:
                continue
            for name, tensor in _tensors(module):
                before = values.get(name)
                if before is not None and not torch.equal(before, _some(tensor)):
                    raise NotGiven(_words(module, f"has been changed by the training ({name})"))


def _words(module: nn.Module, what: str) -> str:
    kind = type(module).__name__
    return (
        f"the module {kind} {what}, and is not given to client.start, so it would begin anew at a restart: make it before "
        "client.start and give it as well, for example client.start(model=model, teacher=teacher)"
    )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those that have values which can be looked at."""
    for named in (module.named_parameters(), module.named_buffers()):
        for name, tensor in named:
            plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
            if plain and not tensor.is_quantized and tensor.device.type != "meta" and tensor.numel():
                yield name, tensor


def _place(tensor: Tensor) -> object:
    return tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else id(tensor)


def _some(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: -(-len(flat) // _VALUES)].clone().view(torch.uint8)
