"""One network whose steps train paths through it.

Choice(option, ...)                     a block of which each path takes one option
Supernet(settings, model, seed)
    .paths(step) -> [Path, ...]         what the step trains: a function of (seed, step), the same on every rank
    .choose(path)                       before a forward pass
    .evaluate(...) -> metrics           ranks paths, each with batch norm statistics of its own
PathGuard                               ends a job whose ranks take different paths, and names them

A model has `Choice` blocks, or methods of its own: `sample_path(context: PathContext)`, which returns any JSON value and
draws from nothing but the context, and `set_path(path)`.
"""

from relight_trainer.supernet.choices import BadSupernet, Choice, Path, PathContext
from relight_trainer.supernet.guard import PathGuard, PathsDiverged, end_worker
from relight_trainer.supernet.ranking import kendall_tau
from relight_trainer.supernet.training import Supernet

__all__ = [
    "BadSupernet",
    "Choice",
    "Path",
    "PathContext",
    "PathGuard",
    "PathsDiverged",
    "Supernet",
    "end_worker",
    "kendall_tau",
]
