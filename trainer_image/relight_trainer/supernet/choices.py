"""What a path is, and the models that have some: with `Choice` blocks, or with methods of their own."""

import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import nn

from relight_agent.exits import ExitCode
from relight_trainer.seeds import stream

Path = Any  # a JSON value; for models of `Choice` blocks a tuple with an option's index for each


class BadSupernet(Exception):
    """The section `supernet` and the model do not fit each other."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


class Choice(nn.Module):
    """One of its options, as the path says. The others get no gradient: optimizers leave them where they are."""

    def __init__(self, *options: nn.Module) -> None:
        super().__init__()
        self.options = nn.ModuleList(options)
        self.chosen = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.options[self.chosen](*args, **kwargs)


@dataclass(frozen=True)
class PathContext:
    """What a model's own `sample_path` may draw from: the same on every rank, and again after a resume.

    The path is the `index`-th of optimizer step `step`; step -1 stands for the paths of an evaluation.
    """

    seed: int
    step: int
    index: int
    generator: random.Random = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        generator = random.Random(stream(self.seed, "path", self.step, self.index))  # noqa: S311  # nothing secret
        object.__setattr__(self, "generator", generator)


class Space(Protocol):
    """The paths of a model."""

    sizes: tuple[int, ...]  # options of each choice; () where only the model knows

    def choose(self, path: Path) -> None: ...


class ChoiceSpace:
    """The paths through a model's `Choice` blocks, in the order of their names in the model."""

    def __init__(self, blocks: dict[str, Choice]) -> None:
        self.blocks = blocks
        self.sizes = tuple(len(block.options) for block in blocks.values())

    @property
    def count(self) -> int:
        return math.prod(self.sizes)

    def choose(self, path: Sequence[int]) -> None:
        for block, option in zip(self.blocks.values(), path, strict=True):
            block.chosen = option

    def all_paths(self) -> Iterator[tuple[int, ...]]:
        return itertools.product(*map(range, self.sizes))


class OwnSpace:
    """The paths of a model with `sample_path` and `set_path`."""

    sizes = ()

    def __init__(self, model: Any) -> None:
        self.sample = model.sample_path
        self.choose = model.set_path


def space_of(model: nn.Module) -> ChoiceSpace | OwnSpace:
    """The paths of `model`. Raises BadSupernet where it has none."""
    own = [name for name in ("sample_path", "set_path") if callable(getattr(model, name, None))]
    if len(own) == 2:
        return OwnSpace(model)
    if own:
        [missing] = {"sample_path", "set_path"} - set(own)
        raise BadSupernet(f"supernet: the model {type(model).__qualname__} has {own[0]} and lacks {missing}")
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, Choice)}
    if not blocks:
        raise BadSupernet(
            f"supernet: the model {type(model).__qualname__} has no paths; allowed: blocks of "
            "relight_trainer.supernet.Choice, or methods sample_path and set_path"
        )
    empty = [name for name, block in blocks.items() if not block.options]
    if empty:
        raise BadSupernet(f"supernet: the choice {empty[0]} has no options")
    return ChoiceSpace(blocks)


def path_text(path: Path) -> str:
    """`path` as text that is the same wherever the path is: `0-3-1`, or JSON for paths of another kind."""
    if isinstance(path, tuple) and path and all(type(option) is int for option in path):
        return "-".join(map(str, path))
    try:
        return json.dumps(path, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadSupernet(f"supernet: sample_path gave {path!r}; allowed is a JSON value: {error}") from None


def path_of(text: str, space: ChoiceSpace | OwnSpace) -> Path:
    """The path that `path_text` gives `text` for. Raises BadSupernet where it is none of the model's."""
    if isinstance(space, OwnSpace):
        try:
            return json.loads(text)
        except ValueError:
            raise BadSupernet(f"path: found {text!r}; allowed: the JSON that the model's sample_path gives") from None
    options = text.split("-")
    if len(options) == len(space.sizes) and all(
        option.isdecimal() and int(option) < size for option, size in zip(options, space.sizes, strict=True)
    ):
        return tuple(map(int, options))
    lowest, highest = (
        "-".join(str(n) for n in ends) for ends in ([0] * len(space.sizes), [n - 1 for n in space.sizes])
    )
    raise BadSupernet(f"path: found {text!r}; allowed: {len(space.sizes)} numbers, from {lowest} to {highest}")
