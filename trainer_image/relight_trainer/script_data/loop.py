"""Generators of random numbers that a script's training loop draws from and keeps for itself.

`rng = numpy.random.default_rng(0)` at the top of a script begins anew in each process. So each batch seeds it, by the
state that it had before the first batch: generators that are equal on all ranks stay equal, others stay different.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

import torch

from relight_trainer.script_data.generators import (
    DATA_PARTS,
    is_generator,
    names_in,
    reachable,
    reseed,
    written_by_the_user,
)
from relight_trainer.seeds import stream


class LoopGenerators:
    """Those that the code around a loop can reach; `frame` is what asks for the loop's first batch.

    `others` are generators that are seeded or saved elsewhere.
    """

    def __init__(self, frame: FrameType | None, others: Iterable[Any]) -> None:
        left_out = {id(g) for g in others}
        found = (
            o for o in reachable(_Names(_around(frame)), _is_the_users) if is_generator(o) and id(o) not in left_out
        )
        self._found = [(g, f"loop/{_state_of(g)}") for g in found]

    def seed(self, seed: int, epoch: int, number: int) -> None:
        """Put them into the state that they have for batch `number` of `epoch`."""
        for generator, name in self._found:
            reseed(generator, stream(seed, name, epoch, number))


class _Names:
    """What is looked through, as attributes: there may be any number of them."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.__dict__.update({str(i): value for i, value in enumerate(values)})


def _is_the_users(value: object) -> bool:
    """Not what draws data, whose generators are known, and nothing of Relight's own."""
    if isinstance(value, (_Names, *DATA_PARTS)):
        return isinstance(value, _Names)
    return type(value).__module__.partition(".")[0] not in ("relight_trainer", "relight_agent")


def _around(frame: FrameType | None) -> Iterator[Any]:
    """What the user's code names, innermost function first."""
    while frame is not None:
        if written_by_the_user(frame.f_globals.get("__name__")):
            spaces = (frame.f_locals, frame.f_globals)
            names = {**dict.fromkeys(frame.f_code.co_varnames + frame.f_code.co_freevars), **names_in(frame.f_code)}
            yield from (space[name] for name in names for space in spaces if name in space)
        frame = frame.f_back


def _state_of(generator: Any) -> str:
    """A digest of its state."""
    if isinstance(generator, torch.Generator):
        state: Any = bytes(generator.get_state().numpy())
    elif isinstance(generator, random.Random):
        state = repr(generator.getstate()).encode()
    else:
        bits = getattr(generator, "bit_generator", None)
        held = generator.get_state(legacy=False) if bits is None else bits.state
        state = repr(_plain(held)).encode()
    return hashlib.blake2b(state, digest_size=8).hexdigest()


def _plain(state: Any) -> Any:
    """Arrays as bytes: their text leaves numbers out."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return state.tobytes() if hasattr(state, "tobytes") else state
