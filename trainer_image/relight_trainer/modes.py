"""Training and evaluation mode as a scope that leaves each module as it was, frozen ones too."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def mode(*models: nn.Module, training: bool) -> Iterator[None]:
    """`models` in one mode; afterwards every module of them in its own again, whatever happens inside."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.train(training)
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def begin_training(model: nn.Module) -> None:
    """Training mode for what is to be in it: for all that neither the constructor nor a `train()` of its own keeps out.

    A teacher's layers are often put into evaluation mode by the model's own `train()`, which trainers call once at least.
    """
    flags = [(module, module.training) for module in model.modules()]
    model.train()
    for module, flag in flags:
        module.training = module.training and flag
