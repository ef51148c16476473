"""The content of a file as a tree whose tensors are places in files."""

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


def walk(tree: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(name, leaf) below `tree`; names as in `optimizer.state[0].exp_avg`."""
    if depth > 200:
        raise Unreadable(f"{name[:60]}...: nested too deeply, or contains itself")
    if isinstance(tree, Opaque):
        attributes = tree.attributes()
        children = {k: v for k, v in attributes.items() if holds_tensors(v)}
        if not children and not any(holds_tensors(part) for part in (tree.args, tree.items)):
            yield name, tree
            return
        for key, value in children.items():
            yield from walk(value, name if key in _OF_MODULES else _join(name, key), depth + 1)
        for part in (tree.args, tree.items):
            if holds_tensors(part):
                yield from walk(part, name, depth + 1)
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from walk(value, _join(name, key), depth + 1)
    elif isinstance(tree, (list, tuple, set, frozenset)) and (len(tree) > 16 or holds_tensors(tree)):
        for i, value in enumerate(tree):
            yield from walk(value, f"{name}[{i}]", depth + 1)
    else:
        yield name, tree


def holds_tensors(tree: Any, depth: int = 0) -> bool:
    if depth > 200:
        return False
    if isinstance(tree, Opaque):
        return any(holds_tensors(part, depth + 1) for part in (tree.args, tree.items, tree.attributes()))
    if isinstance(tree, Mapping):
        return any(holds_tensors(value, depth + 1) for value in tree.values())
    if isinstance(tree, (list, tuple, set, frozenset)):
        return any(holds_tensors(value, depth + 1) for value in tree)
    return isinstance(tree, TensorRef)


def _join(name: str, key: Any) -> str:
    if not isinstance(key, str):
        return f"{name}[{key!r}]"
    return f"{name}.{key}" if name else key


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
