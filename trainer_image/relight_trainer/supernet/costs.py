"""What a path costs, by parameters or by the floating-point operations of one sample."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from relight_trainer.modes import mode
from relight_trainer.supernet.choices import BadSupernet, Choice, ChoiceSpace

Options = tuple[int, ...]


class Costs(NamedTuple):
    unit: str
    fixed: int  # what every path costs
    options: tuple[tuple[int, ...], ...]  # of each choice, of each option

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(map(len, self.options))

    def of(self, path: Sequence[int]) -> int:
        return self.fixed + sum(costs[option] for costs, option in zip(self.options, path, strict=True))

    @property
    def largest(self) -> Options:
        """The costliest path; of equal options the first."""
        return tuple(costs.index(max(costs)) for costs in self.options)

    @property
    def smallest(self) -> Options:
        return tuple(costs.index(min(costs)) for costs in self.options)


def parameter_costs(model: nn.Module, space: ChoiceSpace) -> Costs:
    """Numbers of parameters; one that options share counts in each of them."""
    _refuse_nested(space)
    options = tuple(tuple(_parameters(option) for option in block.options) for block in space.blocks.values())
    chosen = {id(p) for block in space.blocks.values() for p in block.parameters()}
    fixed = sum(p.numel() for p in model.parameters() if id(p) not in chosen)
    return Costs("parameters", fixed, options)


@torch.no_grad()
def flop_costs(model: nn.Module, space: ChoiceSpace, probe: Callable[[], object]) -> Costs:
    """Floating-point operations of `probe`, which runs the model on one sample, as torch counts them.

    Each choice's input is taken to have one shape, whatever the path. Modes are as before; random numbers are drawn if
    the model draws any.
    """
    _refuse_nested(space)
    inputs: dict[str, tuple[Any, ...]] = {}
    with mode(model, training=False), ExitStack() as stack:
        for name, block in space.blocks.items():
            hook = partial(_remember, inputs, name)
            stack.callback(block.register_forward_pre_hook(hook).remove)
        space.choose((0,) * len(space.sizes))
        whole = _flops(probe)
        absent = [name for name in space.blocks if name not in inputs]
        if absent:
            raise BadSupernet(f"supernet.budget: the choice {absent[0]} does not run in a forward pass")
        options = tuple(
            tuple(_flops(partial(option, *inputs[name])) for option in block.options)
            for name, block in space.blocks.items()
        )
    return Costs("flops", whole - sum(costs[0] for costs in options), options)


def _remember(inputs: dict[str, tuple[Any, ...]], name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
    inputs.setdefault(name, args)


def _flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _refuse_nested(space: ChoiceSpace) -> None:
    for name, block in space.blocks.items():
        if sum(isinstance(module, Choice) for module in block.modules()) > 1:
            raise BadSupernet(
                f"supernet: the choice {name} has choices in its options, so its costs are not one number for each; "
                "allowed with sampler: uniform or fair"
            )
