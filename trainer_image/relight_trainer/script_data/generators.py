"""Generators of random numbers that user code keeps for itself: found in objects, and seeded."""

import functools
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

_MOST_OBJECTS = 2000  # looked at from one root: a data set may hold any number of them
_MOST_ITEMS = 64  # of one container
_LEAVES = (str, bytes, bytearray, int, float, complex, type(None), type, types.ModuleType, torch.Tensor, torch.dtype)
_LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "relight_trainer"}  # which keep no generator of a user's
DATA_PARTS = (DataLoader, Dataset, Sampler)


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
    """`root` and what its attributes, containers and code lead to, nearest first, each once; a bounded number.

    Code leads to what it names: a generator is as often a global of the module as an attribute.

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
    if isinstance(value, (staticmethod, classmethod)):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, types.FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)] + _globals_of(value)
    attributes = getattr(value, "__dict__", None)
    return (list(attributes.values()) if type(attributes) is dict else []) + _of_class(type(value))


def _of_class(kind: type) -> list[Any]:
    """Methods and attributes of the class itself and of those it is derived from; none of libraries."""
    return [value for one in kind.__mro__ if written_by_the_user(one.__module__) for value in vars(one).values()]


def _globals_of(function: types.FunctionType) -> list[Any]:
    """The globals that a function's code names, and what it names of the user's modules."""
    if not written_by_the_user(function.__module__):
        return []
    names = names_in(function.__code__)
    found = [function.__globals__[name] for name in names if name in function.__globals__]
    for module in [o for o in found if isinstance(o, types.ModuleType) and written_by_the_user(o.__name__)]:
        found += [vars(module)[name] for name in names if name in vars(module)]
    return [o for o in found if not isinstance(o, DATA_PARTS)]  # of another loader, most likely


def names_in(code: types.CodeType) -> dict[str, None]:
    """The globals and attributes that code names, in order, those of functions within it too."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= names_in(constant)
    return names


def written_by_the_user(module: str | None) -> bool:
    """Whether a module of this name may keep a generator that the training draws from."""
    return (module or "").partition(".")[0] not in _LIBRARIES


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
