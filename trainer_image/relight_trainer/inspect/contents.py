"""The content of a file as a tree whose tensors are places in files."""

import reprlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from relight_agent.exits import ExitCode


class WrongInput(Exception):
    """What was asked for does not exist or cannot be meant."""

    exit_code = ExitCode.BAD_CONFIG


class Unreadable(Exception):
    """The file is damaged, or nothing that is known here, or dangerous."""

    exit_code = ExitCode.BAD_DATA


class OutOfMemory(Unreadable):
    """The file asks for more memory than there is: made to do so, or larger than this process may read."""


class Piece(NamedTuple):
    """A block of a tensor: strided elements of one dtype in a file."""

    file: Path
    offset: int  # bytes from the file's start to the first element
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    at: tuple[int, ...]  # index of the block's first element in the tensor


@dataclass(frozen=True)
class TensorRef:
    """A tensor that has not been read. `dtype` is torch's name of it, such as `bfloat16`."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @classmethod
    def strided(
        cls, dtype: str, file: Path, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> "TensorRef":
        return cls(dtype, shape, (Piece(file, offset, shape, strides, (0,) * len(shape)),))

    @classmethod
    def dense(cls, dtype: str, file: Path, offset: int, shape: tuple[int, ...]) -> "TensorRef":
        return cls.strided(dtype, file, offset, shape, contiguous(shape))


class Opaque:
    """An object of a class that was named in a file and not imported. Holds what the file gave for it."""

    qualified = "object"
    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, *args: Any, **_: Any) -> Self:
        made = super().__new__(cls)  # a pickle may leave out `__init__`
        made.args, made.state, made.items = args, None, []
        return made

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    add = append

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def attributes(self) -> dict[str, Any]:
        """What the object's `__dict__` would be."""
        parts = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
        return {k: v for part in parts if isinstance(part, dict) for k, v in part.items() if isinstance(k, str)}


class Composite(Opaque):
    """A tensor that is made of tensors, such as a sparse one: its parts are no weights of their own."""


@dataclass
class Contents:
    """`kind` is what the file is, in words; `facts` what it says of itself; `notes` what a person should know."""

    path: Path
    kind: str
    tree: Any
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """(name, leaf) of everything that is no container, in the order of the file."""
        return walk(self.tree)

    def tensors(self) -> list[tuple[str, TensorRef]]:
        return [(name, leaf) for name, leaf in self.leaves() if isinstance(leaf, TensorRef)]


# A module that was saved whole: its tensors are named as its state_dict names them.
_OF_MODULES = ("_parameters", "_buffers", "_modules")
_SEQUENCES = (list, tuple, set, frozenset, deque)
_DEEPEST = 200
_MOST_LEAVES = 1 << 22  # a file of a kilobyte can name one tensor 2**40 times


def walk(tree: Any, *, whole: bool = False) -> Iterator[tuple[str, Any]]:
    """(name, leaf) below `tree`; names as in `optimizer.state[0].exp_avg`. With `whole`, a Composite is a leaf.

    Raises Unreadable for a tree that is nested too deeply, or has more leaves than any training's.
    """
    known: dict[int, bool] = {}
    for count, leaf in enumerate(_walk(tree, "", 0, known, whole=whole)):
        if count == _MOST_LEAVES:
            raise Unreadable(f"it names more than {_MOST_LEAVES:,} values: some of them many times over")
        yield leaf


def _walk(tree: Any, name: str, depth: int, known: dict[int, bool], *, whole: bool) -> Iterator[tuple[str, Any]]:
    if depth > _DEEPEST:
        raise Unreadable(f"{name[:60]}...: nested too deeply, or contains itself")
    if isinstance(tree, Opaque):
        children = {k: v for k, v in tree.attributes().items() if _holds(v, depth, known)}
        parts = [part for part in (tree.args, tree.items) if _holds(part, depth, known)]
        if (not children and not parts) or (whole and isinstance(tree, Composite)):
            yield name, tree
            return
        for key, value in children.items():
            yield from _walk(value, name if key in _OF_MODULES else _join(name, key), depth + 1, known, whole=whole)
        for part in parts:
            yield from _walk(part, name, depth + 1, known, whole=whole)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _walk(value, _join(name, key), depth + 1, known, whole=whole)
    elif isinstance(tree, _SEQUENCES) and (len(tree) > 16 or _holds(tree, depth, known)):
        for i, value in enumerate(tree):
            yield from _walk(value, f"{name}[{i}]", depth + 1, known, whole=whole)
    else:
        yield name, tree


def holds_tensors(tree: Any) -> bool:
    """Raises Unreadable for a tree that is nested too deeply."""
    return _holds(tree, 0, {})


def _holds(tree: Any, depth: int, known: dict[int, bool]) -> bool:
    """`known`: by the id of a container of the tree, which keeps it alive. A container within itself adds nothing."""
    if isinstance(tree, TensorRef):
        return True
    if isinstance(tree, Opaque):
        parts: Any = (tree.args, tree.items, *tree.attributes().values())
    elif isinstance(tree, Mapping):
        parts = tree.values()
    elif isinstance(tree, _SEQUENCES):
        parts = tree
    else:
        return False
    if depth > _DEEPEST:
        raise Unreadable("nested too deeply")
    if id(tree) not in known:
        known[id(tree)] = False
        known[id(tree)] = any(_holds(part, depth + 1, known) for part in parts)
    return known[id(tree)]


def _join(name: str, key: Any) -> str:
    if not isinstance(key, str):
        return f"{name}[{short(key)}]"
    return f"{name}.{key}" if name else key


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 4, 200, 200


def short(value: Any) -> str:
    """`repr`, but of bounded length and time whatever the value holds."""
    if (
        isinstance(value, int) and value.bit_length() > 1024
    ):  # which Python refuses to write in decimal from 4,300 digits on
        return f"<an integer of {value.bit_length()} bits>"
    try:
        return _SHORT.repr(value)
    except ValueError:  # such an integer inside of it
        return f"<{type(value).__name__}>"


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides, in elements.

    >>> contiguous((2, 3, 4))
    (12, 4, 1)
    """
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
