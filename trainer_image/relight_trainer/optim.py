"""The optimizer that the configuration names, its parameter groups, and the rates of its next step."""

import inspect
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from relight_trainer.config import BadConfig
from relight_trainer.globs import chosen, near
from relight_trainer.optimizers.together import Together
from relight_trainer.patterns import require
from relight_trainer.problems import Problem, shown
from relight_trainer.registry import resolve
from relight_trainer.schedule import Rates
from relight_trainer.settings.optimizer import Muon, OptimizerArguments
from relight_trainer.settings.rate import rate_at

_PATH = "config.optimizer"
_MATRIX = 2  # dimensions


def build_optimizer(config: OptimizerArguments, module: nn.Module, batch: int) -> Optimizer:
    """The optimizer of all parameters of `module`, frozen ones too, at a global batch of `batch` samples.

    A parameter without a gradient is not moved and costs no state, so what is frozen may be thawed at any step.
    A loaded state brings moments and counters; the settings stay those of `config`. Raises BadConfig.
    """
    parameters = dict(module.named_parameters())
    classes = _classes(module)
    if not isinstance(config, Muon) or config.others is None:
        return _build(config, parameters, classes, rate_at(config.lr, batch))
    require(parameters, config.but, f"{_PATH}.but")
    left = set(chosen(parameters, config.but))
    matrices = {name: p for name, p in parameters.items() if p.ndim == _MATRIX and name not in left}
    rest = {name: p for name, p in parameters.items() if name not in matrices}
    peak = rate_at(config.lr, batch)
    share = rate_at(config.others.lr, batch) / peak
    parts = [_build(config, matrices, classes, peak), _build(config.others, rest, classes, peak, share)]
    return Together(parts)


def _build(
    config: OptimizerArguments,
    parameters: dict[str, nn.Parameter],
    classes: dict[str, list[str]],
    lr: float,
    share: float = 1.0,
) -> Optimizer:
    """One optimizer, whose own peak rate is `share` of `lr`."""
    groups = _groups(config, parameters, classes)
    for group in groups:
        group["lr_scale"] *= share
        group["lr"] = lr * group["lr_scale"]
    make = resolve({}, config.factory)
    try:
        optimizer: Optimizer = make(groups, lr=lr * share, **config.keywords())
    except (ValueError, TypeError) as error:
        raise BadConfig([Problem(_PATH, f"{config.type} cannot train this model: {error}")]) from None
    if _needs_closure(optimizer):
        raise BadConfig(
            [
                Problem(
                    f"{_PATH}.type",
                    "calls the loss several times in a step (a closure), which training on several workers does not support",
                    found=config.type,
                    allowed="an optimizer whose step() needs no argument",
                )
            ]
        )
    configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    def as_configured(loaded: Optimizer) -> None:
        for group, settings in zip(loaded.param_groups, configured, strict=True):
            group.update(settings)

    optimizer.register_load_state_dict_post_hook(as_configured)
    return optimizer


def _needs_closure(optimizer: Optimizer) -> bool:
    """Whether `step` cannot be called without an argument, as LBFGS's."""
    parameters = inspect.signature(optimizer.step).parameters.values()
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def set_rates(optimizer: Optimizer, rates: Rates) -> None:
    """Set learning rate and momentum of the next step in all parameter groups."""
    for group in optimizer.param_groups:
        lr = rates.lr * group["lr_scale"]
        if group["lr"] != lr:  # another float of the same value would be news to each snapshot
            group["lr"] = lr
        if rates.momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (rates.momentum, group["betas"][1])
        elif "momentum" in group:
            group["momentum"] = rates.momentum


def _groups(
    config: OptimizerArguments, parameters: dict[str, nn.Parameter], classes: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Torch's parameter groups: first what no group of the configuration takes, then those groups in their order."""
    rest = dict(parameters)
    if not config.groups:
        return [{"params": list(rest.values()), "lr_scale": 1.0}]
    names = list(rest)
    groups = []
    for i, group in enumerate(config.groups):
        fitting = [
            name
            for name in (chosen(names, group.match) if group.match else names)
            if not group.layer or any(fnmatchcase(kind, p) for kind in classes[name] for p in group.layer)
        ]
        if not fitting:
            raise BadConfig([_fits_nothing(i, group.match, group.layer, names, classes)])
        mine = [rest.pop(name) for name in fitting if name in rest]
        if not mine:
            found = ", ".join(map(shown, [*group.match, *group.layer]))
            raise BadConfig([Problem(f"{_PATH}.groups[{i}]", "all that fits is in earlier groups already", found)])
        groups.append({"params": mine, "lr_scale": group.lr_scale, **config.keywords(group.own)})
    return [{"params": list(rest.values()), "lr_scale": 1.0}, *groups] if rest else groups


def _classes(module: nn.Module) -> dict[str, list[str]]:
    """The class of the module that each parameter belongs to, and its bases, by the parameter's name."""
    return {
        f"{prefix}.{name}" if prefix else name: [kind.__name__ for kind in type(owner).__mro__ if kind is not nn.Module]
        for prefix, owner in module.named_modules()
        for name, _ in owner.named_parameters(recurse=False)
    }


def _fits_nothing(
    i: int, match: list[str], layer: list[str], names: list[str], classes: dict[str, list[str]]
) -> Problem:
    path = f"{_PATH}.groups[{i}]"
    if match and chosen(names, match):
        fitting = sorted({classes[name][0] for name in chosen(names, match)})
        return Problem(
            f"{path}.layer", "no parameter that fits `match` belongs to such a layer", shown(layer), ", ".join(fitting)
        )
    if match:
        return Problem(f"{path}.match", "fits no name in the model", shown(match), ", ".join(near(names, match[0])))
    known = sorted({kinds[0] for kinds in classes.values()})
    return Problem(f"{path}.layer", "the model has no such layer with parameters", shown(layer), ", ".join(known))
