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
