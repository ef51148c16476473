"""Tensors on another device than the training's, by the name a person knows them by."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relight_agent.exits import ExitCode

_SHOWN = 8


class WrongDevice(Exception):
    """Tensors are not where the training is."""

    exit_code = ExitCode.BAD_CONFIG


def misplaced(value: Any, device: torch.device, name: str = "batch") -> Iterator[str]:
    """`name[...] is on DEVICE` for each tensor in nested containers that is on another device than `device`."""
    if isinstance(value, Tensor):
        if value.device.type != device.type or (device.index is not None and value.device.index != device.index):
            yield f"{name} is on {value.device}"
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from misplaced(part, device, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from misplaced(part, device, f"{name}[{i}]")


def misplaced_in(model: nn.Module, device: torch.device) -> Iterator[str]:
    """The same for parameters, buffers, and tensors that are plain attributes, by dotted path."""
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for path, tensor in tensors:
            yield from misplaced(tensor, device, f"the {kind} {path}")
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_"):
                where = f"{path}.{name}" if path else name
                found = list(misplaced(value, device, f"model.{where}"))
                yield from (f"{f}, a plain attribute: use register_buffer" for f in found)


def check_model(model: nn.Module, device: torch.device) -> None:
    """Raises WrongDevice where `model`, which has been moved to `device`, has tensors that did not move."""
    if found := list(misplaced_in(model, device)):
        raise WrongDevice(_message(found, device))


def explain(error: Exception, model: nn.Module, batch: Any, device: torch.device) -> None:
    """Raises WrongDevice from `error`, which the forward pass has raised, where tensors on another device explain it."""
    if found := [*misplaced(batch, device), *misplaced_in(model, device)]:
        raise WrongDevice(_message(found, device)) from error


def _message(found: list[str], device: torch.device) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"training is on {device}, but {'; '.join(found[:_SHOWN])}{more}"
