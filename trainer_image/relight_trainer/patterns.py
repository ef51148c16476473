"""Choosing parameters, buffers and modules by patterns of their names."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from relight_trainer.config import BadConfig
from relight_trainer.problems import Problem, shown


def fits(name: str, pattern: str) -> bool:
    """Whether a dotted name, or a module that holds it, is meant by `pattern`.

    `*` stands for any text, dots too; `*.` in front also for nothing, so that it reaches the top level.

    >>> [fits(name, "*.bn1") for name in ("layer1.0.bn1.weight", "bn1.weight", "conv1.weight")]
    [True, True, False]
    """
    parts = name.split(".")
    heads = [".".join(parts[: n + 1]) for n in range(len(parts))]
    shapes = [pattern, pattern.removeprefix("*.")]
    return any(fnmatchcase(head, shape) for head in heads for shape in shapes)


def chosen(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Those of `names` that fit one of `patterns`."""
    return [name for name in names if any(fits(name, pattern) for pattern in patterns)]


def require(names: Iterable[str], patterns: Sequence[str], path: str) -> None:
    """Raises BadConfig where one of `patterns`, which stand at `path` of the configuration, fits none of `names`."""
    names = list(names)
    problems = [
        Problem(
            path=f"{path}[{i}]" if len(patterns) > 1 else path,
            message="fits no name in the model",
            found=shown(pattern),
            allowed=", ".join(near(names, pattern)),
        )
        for i, pattern in enumerate(patterns)
        if not chosen(names, [pattern])
    ]
    if problems:
        raise BadConfig(problems)


def near(names: Iterable[str], pattern: str, count: int = 5) -> list[str]:
    """The names, and modules that hold them, that `pattern` was most probably meant for; where none is near, the first."""
    heads: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        heads.update(dict.fromkeys(".".join(parts[: n + 1]) for n in range(len(parts))))
    plain = pattern.replace("*", "").strip(".")
    return get_close_matches(plain, list(heads), n=count, cutoff=0.5) or list(heads)[:count]
