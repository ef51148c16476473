"""Generators of random numbers that user code keeps for itself: found in objects, and seeded."""

import functools
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

_MOST_OBJECTS = 2000  # looked at from one root: a data set may hold any number of them
_MOST_ITEMS = 64  # of one container
_LEAVES = (str, bytes, bytearray, int, float, complex, type(None), type, types.ModuleType, torch.Tensor, torch.dtype)


def is_generator(value: object) -> bool:
    """Whether `value` draws random numbers from a state of its own. The global generators are not meant."""
    if isinstance(value, torch.Generator):
        return value is not torch.default_generator
    if isinstance(value, random.Random):
        return not isinstance(value, random.SystemRandom) and value is not getattr(random, "_inst", None)
    numpy: Any = sys.modules.get("numpy.random")
    if numpy is None:
        return False
    return isinstance(value, (numpy.Generator, numpy.RandomState)) and value is not numpy.mtrand._rand  # noqa: SLF001


def reseed(generator: Any, value: int) -> None:
    """Put `generator` into the state that `value`, of 63 bits, stands for."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(value)
    elif isinstance(generator, random.Random):
        generator.seed(value)
    elif hasattr(generator, "bit_generator"):
        bits = generator.bit_generator
        bits.state = type(bits)(value).state
    else:
        generator.seed(value % 2**32)


def reachable(root: object, enter: Callable[[object], bool] = lambda _: True) -> Iterator[Any]:
    """`root` and what its attributes, containers and closures lead to, nearest first, each once; a bounded number.

    Where `enter` says False for an object, neither it nor what only it leads to is given.
    """
    seen: set[int] = set()
    waiting: deque[Any] = deque([root])
    while waiting and len(seen) < _MOST_OBJECTS:
        value = waiting.popleft()
        if isinstance(value, _LEAVES) or id(value) in seen or not enter(value):
            continue
        seen.add(id(value))
        yield value
        waiting.extend(_next(value))


def _next(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [v for _, v in zip(range(_MOST_ITEMS), value.values(), strict=False)] if type(value) is dict else []
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [v for _, v in zip(range(_MOST_ITEMS), value, strict=False)]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, types.FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    attributes = getattr(value, "__dict__", None)
    return list(attributes.values()) if type(attributes) is dict else []


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
