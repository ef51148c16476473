"""The supernet's part in a training: what each step's passes are, and its own kind of evaluation."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from relight_trainer.config import TrainerConfig
from relight_trainer.context import WorkerContext
from relight_trainer.data.draws import shard
from relight_trainer.data.splits import Splits
from relight_trainer.objective import split
from relight_trainer.peers import connect
from relight_trainer.run import Run
from relight_trainer.supernet import PathGuard, Supernet, end_worker


class Paths:
    """A `Supernet` and its `PathGuard`, bound to a run."""

    def __init__(self, config: TrainerConfig, run: Run, splits: Splits, context: WorkerContext) -> None:
        assert config.supernet is not None
        self._run = run
        self._splits = splits
        self._folder = context.job.checkpoint_dir
        self._supernet = Supernet(config.supernet, run.model, config.train.seed, self._probe)
        self._guard: PathGuard | None = None
        if config.supernet.guard and run.world > 1:
            store = connect(f"relight/{context.generation}/paths")
            self._guard = PathGuard(store, rank=run.rank, world=run.world, end=end_worker(context))

    def of_step(self, step: int) -> Sequence[Callable[[], None]]:
        """One pass through the model for each of the step's paths."""
        paths = self._supernet.paths(step)
        if self._guard:
            self._guard.note(step, paths)
        return [partial(self._supernet.choose, path) for path in paths]

    def evaluate(
        self, sums: Callable[[Any, int], Mapping[str, Tensor]], forward: Callable[[Any], object]
    ) -> dict[str, str]:
        """The metrics of the paths compared; rank 0 writes their ranking beside the checkpoints."""
        run = self._run
        metrics = self._supernet.evaluate(
            self._splits.train, self._splits.test, run.session.peers,
            forward=forward, sums=sums, interrupted=run.session.leaving,
        )  # fmt: skip
        if run.rank == 0 and self._folder and "://" not in self._folder:
            folder = Path(self._folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "paths.json").write_text(json.dumps(self._supernet.ranking, indent=2))
        return metrics

    def close(self) -> None:
        if self._guard:
            self._guard.close()

    def _probe(self) -> object:
        """The model on one sample."""
        [batch] = self._splits.train.batches(shard(1, 0, 1, 1))
        arguments, keywords, _ = split(batch)
        return self._run.model(*arguments, **keywords)
