"""Records buffers whose shape or dtype has changed since the modules were built, so that a resume can load them.

A queue that grows is longer in a saved state than in the module that a new process builds; `load_state_dict` refuses it,
as it refuses a state of another model. The two are told apart by what the buffer was when its module was built: where the
new module has that too, the buffer is made what was saved. Everything else is left to `load_state_dict`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from relight_trainer.buffers import Places

Geometry = list[Any]  # shape and dtype, such as [[16], "float32"]; a list, as in the saved state
Record = dict[str, dict[str, Geometry | None]]  # by object and buffer, what it was when built; None: there was none


class _Followed(NamedTuple):
    module: nn.Module
    places: Places
    built: dict[str, Geometry]


class BufferHistory:
    """Of the modules among `objects`, as they are built: before a state is loaded."""

    def __init__(self, objects: Mapping[str, object]) -> None:
        self._followed = {
            name: _Followed(o, Places([o]), _geometries(o)) for name, o in objects.items() if isinstance(o, nn.Module)
        }
        self._versions: list[int] | None = None
        self._record: Record = {}

    def record(self) -> Record:
        """What belongs into a saved state; mostly empty."""
        versions = [followed.places.look() for followed in self._followed.values()]
        if versions != self._versions:
            self._versions = versions
            changed = {name: _changed(followed) for name, followed in self._followed.items()}
            self._record = {name: buffers for name, buffers in changed.items() if buffers}
        return self._record

    def fit(self, record: Record, states: Mapping[str, Any]) -> None:
        """Give buffers the shapes that they have in `states`, where they are now what they were built as there."""
        for name, buffers in record.items():
            if name in self._followed:
                module, _, built = self._followed[name]
                for buffer, before in buffers.items():
                    if built.get(buffer) == before:
                        _put(module, buffer, states[name].get(buffer))


def _geometries(module: nn.Module) -> dict[str, Geometry]:
    """Of the buffers that are saved."""
    return {
        f"{path}.{name}" if path else name: [list(buffer.shape), str(buffer.dtype).removeprefix("torch.")]
        for path, owner in module.named_modules()
        for name, buffer in owner._buffers.items()  # noqa: SLF001
        if buffer is not None and name not in owner._non_persistent_buffers_set  # noqa: SLF001
    }


def _changed(followed: _Followed) -> dict[str, Geometry | None]:
    now, built = _geometries(followed.module), followed.built
    return {name: built.get(name) for name in {**built, **now} if built.get(name) != now.get(name)}


def _put(module: nn.Module, name: str, saved: Tensor | None) -> None:
    """Make room for `saved` under `name`, or set the buffer to None where the state has none."""
    path, _, own = name.rpartition(".")
    owner = dict(module.named_modules()).get(path)
    if owner is None:
        return
    buffers = owner._buffers  # noqa: SLF001
    if own not in buffers and (saved is None or hasattr(owner, own)):
        return
    if own not in buffers:
        owner.register_buffer(own, None)
    device = next((t.device for t in (buffers[own], *module.parameters(), *module.buffers()) if t is not None), None)
    buffers[own] = None if saved is None else torch.empty(saved.shape, dtype=saved.dtype, device=device)
