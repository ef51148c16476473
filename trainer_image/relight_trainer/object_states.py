"""The states of the objects that a training consists of: whether they can be saved at all, and loading them, in clear words."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from relight_agent.exits import ExitCode
from relight_trainer.failures import classify
from relight_trainer.words import text_of

_MAX_TEXT = 500  # characters of what an object's own `load_state_dict` says
_MAX_NAMES = 4
_WAY_OUT = (
    "Give the job the code that it was trained with, or start it anew (`relight run --fresh`, or another metadata.name)"
)


class UnfitState(Exception):
    """An object's state cannot be saved, or a saved state does not fit the object."""

    exit_code = ExitCode.BAD_CONFIG


def check_savable(objects: Mapping[str, Any]) -> None:
    """Raises UnfitState for an object of which no whole state can be saved, naming object and tensor."""
    for name, stateful in objects.items():
        for tensor_name, tensor in _tensors(stateful):
            place = f"{name}.{tensor_name}"
            if is_lazy(tensor):
                raise UnfitState(
                    f"{place} has no shape yet: it belongs to a lazy module, which gets its shape from its first batch. Call "
                    "the model on one batch before it is given to the training, or build it with its shapes"
                )
            if _is_dtensor(tensor):
                raise UnfitState(
                    f"{place} is a DTensor, of which each rank holds a part (FSDP, tensor parallelism): Relight saves "
                    "whole tensors, equal on all ranks. Train the model in DDP: run.wrap(model)"
                )


def load_state(name: str, stateful: Any, state: Any) -> None:
    """Load `state` into the object called `name`. Raises UnfitState where it does not fit.

    What else an object's own `load_state_dict` raises (no memory, a peer lost, a file) is raised as it is.
    """
    try:
        stateful.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        if classify(error) is not ExitCode.EXCEPTION:
            raise
        raise UnfitState(
            f"the saved state does not fit {name} ({type(stateful).__name__}): "
            f"{_misfit(stateful, state) or _own_words(error)}. {_WAY_OUT}"
        ) from error


def _tensors(stateful: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(stateful, nn.Module):
        yield from stateful.named_parameters()
        yield from stateful.named_buffers()
    elif isinstance(stateful, Optimizer):
        for i, group in enumerate(stateful.param_groups):
            yield from ((f"param_groups[{i}].params[{j}]", p) for j, p in enumerate(group["params"]))


def _is_dtensor(tensor: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # who has none has not imported it
    return module is not None and isinstance(tensor, module.DTensor)


def _misfit(stateful: Any, state: Any) -> str:
    """What differs between an object and a saved state of it; "" where that is not seen from outside."""
    if isinstance(stateful, Optimizer) and isinstance(state, dict):
        return _groups_misfit(stateful, state)
    if isinstance(stateful, nn.Module) and isinstance(state, dict):
        return _module_misfit(stateful, state)
    return ""


def _groups_misfit(optimizer: Optimizer, state: dict[str, Any]) -> str:
    saved = [len(group.get("params", ())) for group in state.get("param_groups", ())]
    now = [len(group["params"]) for group in optimizer.param_groups]
    if saved == now:
        return ""
    return f"it had {_groups(saved)} when it was saved, and has {_groups(now)} now"


def _groups(sizes: list[int]) -> str:
    groups = "1 parameter group" if len(sizes) == 1 else f"{len(sizes)} parameter groups"
    shown = ", ".join(map(str, sizes[:_MAX_NAMES])) + (", ..." if len(sizes) > _MAX_NAMES else "")
    return f"{groups} of {shown} parameters"


def _module_misfit(module: nn.Module, state: dict[str, Any]) -> str:
    now = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    both = [(name, state[name], tensor) for name, tensor in now.items() if isinstance(state.get(name), Tensor)]
    shapes = [(name, saved, tensor) for name, saved, tensor in both if saved.shape != tensor.shape]
    found = []
    if shapes:
        name, saved, tensor = shapes[0]
        kind = "buffer " if name in dict(module.named_buffers()) else ""
        found.append(f"{kind}{name} is of shape {_shape(saved)} in the saved state and {_shape(tensor)} now")
        if len(shapes) > 1:
            found.append(f"{len(shapes) - 1} more differ in shape")
    if missing := [name for name in now if name not in state]:
        found.append(f"the saved state lacks {_some(missing)}")
    if unexpected := [name for name in state if name not in module.state_dict()]:
        found.append(f"the saved state also has {_some(unexpected)}")
    return "; ".join(found)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _some(names: Iterable[str]) -> str:
    every = list(names)
    rest = f" and {len(every) - _MAX_NAMES} more" if len(every) > _MAX_NAMES else ""
    return ", ".join(every[:_MAX_NAMES]) + rest


def _own_words(error: BaseException) -> str:
    words = " ".join(text_of(error, _MAX_TEXT).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
