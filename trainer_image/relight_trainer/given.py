"""Finds state that a script has not given to `client.start`, although its next steps depend on it.

Such a thing begins anew in each process: after a resume the training would go on with other weights or another learning
rate, and end as if nothing had happened.
"""

import gc
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from relight_agent.exits import ExitCode

_DEPTH = 3  # how far a given object is looked into: a wrapper's scheduler, a chain's schedulers


class NotGiven(Exception):
    """State that the training depends on would not be saved."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


def check_given(objects: Mapping[str, Any]) -> None:
    """Raises NotGiven where an optimizer of `objects` holds parameters, or has a scheduler, that are not among them."""
    for name, optimizer in objects.items():
        if isinstance(optimizer, Optimizer):
            _check_parameters(name, optimizer, objects)
            _check_scheduler(name, optimizer, objects)


def _check_parameters(name: str, optimizer: Optimizer, objects: Mapping[str, Any]) -> None:
    saved = {id(tensor) for stateful in objects.values() for tensor in tensors_of(stateful)}
    for i, group in enumerate(optimizer.param_groups):
        for j, parameter in enumerate(group["params"]):
            if id(parameter) not in saved:
                raise NotGiven(
                    f"{name}: param_groups[{i}].params[{j}], of shape {list(parameter.shape)}, is in no module given to "
                    "client.start, so its values would be lost at a restart: give the module that it belongs to as well, "
                    "for example client.start(head=head); for a parameter without a module, "
                    "client.start(extra=torch.nn.ParameterList([parameter]))"
                )


def tensors_of(stateful: Any) -> Iterator[Tensor]:
    """The parameters and buffers whose values a given object saves. Of an object of another kind, those that it holds."""
    if isinstance(stateful, nn.Module):
        yield from (*stateful.parameters(), *stateful.buffers())
    elif not isinstance(stateful, Optimizer):
        for held in _within(stateful, _DEPTH):
            if isinstance(held, nn.Module):
                yield from (*held.parameters(), *held.buffers())
            elif isinstance(held, Tensor):
                yield held


def _check_scheduler(name: str, optimizer: Optimizer, objects: Mapping[str, Any]) -> None:
    if not any("initial_lr" in group for group in optimizer.param_groups):
        return  # every scheduler of torch writes it
    given = {id(held) for stateful in objects.values() for held in _within(stateful, _DEPTH)}
    # A script may have none and compute the rate from the step: that needs no state.
    left = [s for s in _schedulers_of(optimizer) if id(s) not in given]
    if left:
        del left
        gc.collect()  # what nobody holds any more schedules nothing
        left = [s for s in _schedulers_of(optimizer) if id(s) not in given]
    if left:
        raise NotGiven(
            f"{name}: its learning rate is set by a {type(left[0]).__name__} that is not given to client.start, so it would "
            "begin anew at a restart: make the scheduler before client.start and give it as well, "
            "client.start(scheduler=scheduler)"
        )


def _schedulers_of(optimizer: Optimizer) -> list[Any]:
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    return [o for o in gc.get_objects() if _schedules(o, optimizer, inner)]


def _schedules(thing: object, *optimizers: Any) -> bool:
    kind = type(thing)
    if not all(hasattr(kind, name) for name in ("state_dict", "load_state_dict", "step")) or issubclass(
        kind, Optimizer
    ):
        return False
    held = getattr(thing, "__dict__", None)
    return isinstance(held, dict) and any(held.get("optimizer") is optimizer for optimizer in optimizers)


def _within(thing: Any, depth: int) -> Iterator[Any]:
    yield thing
    if depth == 0 or isinstance(thing, (Tensor, nn.Module, Optimizer, str, bytes, int, float)):
        return
    if isinstance(thing, (list, tuple)):
        held = list(thing)
    elif isinstance(thing, dict):
        held = list(thing.values())
    else:
        held = list(getattr(thing, "__dict__", {}).values())
    for one in held:
        yield from _within(one, depth - 1)
