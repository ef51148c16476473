"""What the commands end with, as one tree. Each error carries the exit code of the command that meets it.

RelightError            a sentence for the user, never a traceback
  InvalidJob    64      a TrainingJob that cannot run as it is written; `problems` says where and why
  InvalidUsage  64      a command line that cannot be carried out
  StateError    74      the local state cannot be read, or another run holds it
    Conflict            somebody else wrote in between: observe again
"""

from collections.abc import Iterable
from typing import ClassVar

from relight_agent.exits import ExitCode
from relight_trainer.problems import Problem

MAX_LINES = 50  # nobody reads more before mending the first


class RelightError(Exception):
    """`str()` is what the user reads."""

    exit_code: ClassVar[int] = ExitCode.EXCEPTION


class InvalidJob(RelightError):
    exit_code = ExitCode.BAD_CONFIG

    def __init__(self, problems: Iterable[Problem], source: str = "") -> None:
        """`source` is the file's name, "" where the object comes from somewhere else."""
        self.problems = tuple(problems)
        self.source = source
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line a problem: `digits.yaml:7: spec.nodes: out of range; found 0; allowed: 1 or more`."""
        lines = [f"{self._place(p)}{p}" for p in self.problems[:MAX_LINES]]
        more = len(self.problems) - MAX_LINES
        return [*lines, f"... and {more} more"] if more > 0 else lines

    def _place(self, problem: Problem) -> str:
        if not self.source:
            return ""
        return f"{self.source}:{problem.line}: " if problem.line else f"{self.source}: "


class InvalidUsage(RelightError):
    exit_code = ExitCode.BAD_CONFIG


class StateError(RelightError):
    exit_code = ExitCode.STORAGE_FAILED


class Conflict(StateError):
    pass
