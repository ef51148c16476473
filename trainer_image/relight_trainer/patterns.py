"""Patterns in a configuration that must fit something in the model."""

from collections.abc import Iterable, Sequence

from relight_trainer.config import BadConfig
from relight_trainer.globs import chosen, near
from relight_trainer.problems import Problem, shown


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
