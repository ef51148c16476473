"""Which batch norm layers are recalibrated: those that train, unless others are named.

A layer with running statistics trains where both of these hold:

- It is in training mode while the model trains. Where the whole model is in evaluation mode, `train()` is called for a
  moment to see which layers follow: a frozen layer may have overridden it.
- One of its parameters requires a gradient. A layer without parameters (`affine=False`) goes by the nearest module
  around it that has any; where there is none, it trains.

Every way to freeze a layer that is in use shows in one of them: `freeze` in a job's configuration, `requires_grad_(False)`
on a teacher, `eval()` on a layer, a `train()` of one's own that leaves it in evaluation mode.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from relight_agent.exits import ExitCode
from relight_trainer.globs import chosen, near
from relight_trainer.modes import mode

_SHOWN = 6


class CannotRecalibrate(ValueError):
    """There is no layer that could be given statistics, or nothing to compute them of."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


def running_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norm layers that have running statistics, each once, in an order that is the same everywhere."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def layers_to_recalibrate(model: nn.Module, named: Sequence[str] | None = None) -> dict[str, _BatchNorm]:
    """The layers that train, or those that the patterns `named` fit, frozen ones too.

    Raises CannotRecalibrate for a pattern that fits no layer, and for a model of torch.jit, whose layers cannot be
    looked into.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CannotRecalibrate(
                f"recalibrate: {name or 'the model'} is a {type(module).__name__} of torch.jit, whose layers cannot be read; "
                "allowed: the module that it was compiled from. Recalibrate that module, then script or trace it again"
            )
    layers = running_layers(model)
    if named is None:
        follows = _training_flags(model)
        return {name: layer for name, layer in layers.items() if follows[layer] and _learns(model, name)}
    for pattern in named:
        if not chosen(layers, [pattern]):
            likely = ", ".join(near(layers, pattern)) or "none: no layer of the model has running statistics"
            raise CannotRecalibrate(f"recalibrate: {pattern!r} fits no batch norm layer; allowed: {likely}")
    return {name: layers[name] for name in chosen(layers, named)}


def some_layers(model: nn.Module, named: Sequence[str] | None = None) -> dict[str, _BatchNorm]:
    """As `layers_to_recalibrate`, but raises CannotRecalibrate where there is none at all."""
    layers = layers_to_recalibrate(model, named)
    if layers:
        return layers
    frozen = list(running_layers(model))
    if not frozen:
        raise CannotRecalibrate("recalibrate: the model has no batch norm layer with running statistics")
    more = f" and {len(frozen) - _SHOWN} more" if len(frozen) > _SHOWN else ""
    raise CannotRecalibrate(
        f"recalibrate: all batch norm layers of the model are frozen ({', '.join(frozen[:_SHOWN])}{more}); name the "
        'layers that should get new statistics: layers=["*"] in Python, --layer "*" for the command'
    )


def moving_though_frozen(model: nn.Module) -> str:
    """A warning about layers whose parameters do not train but whose statistics change.

    Of a model as it trains; empty where there are none, and of layers whose whole model has no parameter.
    """
    moving = [n for n, layer in running_layers(model).items() if layer.training and not _learns(model, n)]
    if not moving:
        return ""
    more = f" and {len(moving) - _SHOWN} more" if len(moving) > _SHOWN else ""
    return (
        f"batch norm {', '.join(moving[:_SHOWN])}{more}: no parameter requires a gradient, but the layer is in training mode, "
        "so its statistics change; to keep them, name the layer in `freeze`, or call its eval() in the model's __init__"
    )


def _training_flags(model: nn.Module) -> dict[nn.Module, bool]:
    if model.training:
        return {module: module.training for module in model.modules()}
    with mode(model, training=True):
        return {module: module.training for module in model.modules()}


def _learns(model: nn.Module, name: str) -> bool:
    """Whether training moves the parameters of the layer, or of the nearest module around it that has any."""
    while True:
        parameters = list(model.get_submodule(name).parameters())
        if parameters:
            return any(p.requires_grad for p in parameters)
        if not name:
            return True
        name = name.rpartition(".")[0]
