"""A supernet as the loop sees it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from relight_trainer.data.draws import shard
from relight_trainer.data.splits import Split
from relight_trainer.peers import Interrupted, Peers
from relight_trainer.recalibrate import StatisticsCache, calibration_draws
from relight_trainer.settings.supernet import Supernet as Settings
from relight_trainer.supernet.choices import BadSupernet, ChoiceSpace, Path, PathContext, path_text, space_of
from relight_trainer.supernet.costs import Costs, flop_costs, parameter_costs
from relight_trainer.supernet.ranking import Candidates, measure, statistics_of
from relight_trainer.supernet.samplers import build_sampler, uniform, within_budget

_BATCH = 256  # samples of one forward pass of an evaluation
_EVALUATION = -1  # the step that stands for it where paths are drawn


class Supernet:
    """The paths of `model`: which a step trains, and how good they are.

    All of it is a function of the settings, `seed` and the step: nothing is to be saved. `probe` runs the model on one
    sample; only a budget of flops needs it. Raises BadSupernet where settings and model do not fit.
    """

    def __init__(
        self, settings: Settings, model: nn.Module, seed: int, probe: Callable[[], object] | None = None
    ) -> None:
        self.ranking: list[dict[str, Any]] = []  # of the newest evaluation, the best path first
        self._settings = settings
        self._model = model
        self._seed = seed
        self._space = space_of(model)
        self._cache = StatisticsCache(model, settings.recalibrate.layers if settings.recalibrate else None)
        self._costs: Costs | None = None
        if isinstance(self._space, ChoiceSpace):
            space = self._space
            sampler = build_sampler(settings, space.sizes, seed, lambda: self._measured(space, probe))
            self._sample: Callable[[int], list[Path]] = sampler
        elif settings.sampler != "uniform":
            raise BadSupernet(
                f"supernet.sampler: found {settings.sampler} for a model with a sample_path of its own; allowed: uniform, "
                "which leaves the choice to that, or a model of relight_trainer.supernet.Choice blocks"
            )
        else:
            count = settings.paths or 1
            self._sample = lambda step: [self._own(step, i) for i in range(count)]

    def paths(self, step: int) -> list[Path]:
        """The paths of the optimizer step that comes after `step` done ones; their losses are averaged."""
        return self._sample(step)

    def choose(self, path: Path) -> None:
        """Let the next forward passes take `path`."""
        self._space.choose(path)

    def candidates(self) -> Candidates:
        """The paths that an evaluation compares: always the same ones, all there are where they are few."""
        wanted = self._settings.evaluate
        paths: dict[str, Path] = {}
        for path in self._to_compare():
            paths.setdefault(path_text(path), path)
            if len(paths) == wanted:
                break
        return Candidates(self._model, self.choose, list(paths.values()), list(paths))

    def evaluate(
        self,
        train: Split,
        test: Split,
        peers: Peers,
        *,
        forward: Callable[[Any], object],
        sums: Callable[[Any, int], Mapping[str, Tensor]],
        interrupted: Callable[[], bool],
    ) -> dict[str, str]:
        """Compare paths on the whole test set, each with statistics of its own; metrics as text, and `ranking`.

        Called by all ranks, each of which does its share of the paths: the result is the same for any number of them,
        bit for bit. `forward` runs the model on a batch, `sums` gives sums over its samples by name. Raises
        Interrupted between two batches once `interrupted()`. The model's modes and statistics are as before.
        """
        if not test.size:
            return {}
        everyone = self.candidates()
        count = len(everyone.paths)
        # A rank without a path does the first one too, for the names, and does not count.
        mine = list(range(peers.rank, count, peers.world)) or [0]
        these = everyone._replace(paths=[everyone.paths[i] for i in mine], names=[everyone.names[i] for i in mine])
        statistics = statistics_of(these, _polled(self._calibration(train), interrupted), forward, self._cache)
        draws = list(shard(test.size, 0, 1, _BATCH))
        batches = zip(_polled(test.batches(draws), interrupted), (len(d.indices) for d in draws), strict=True)
        names, found = measure(these, statistics, batches, sums)
        totals = torch.zeros(count, 1 + len(names), dtype=torch.float64, device=found.device)
        if peers.rank < count:
            totals[mine] = found
        return self._rank(everyone, names, peers.sum(totals, interrupted).tolist())

    def _rank(self, everyone: Candidates, names: list[str], totals: list[list[float]]) -> dict[str, str]:
        means = [{n: v / row[0] for n, v in zip(names, row[1:], strict=True)} for row in totals]
        rows = [{"path": name, **found} for name, found in zip(everyone.names, means, strict=True)]
        # The best is first; of equally accurate ones the one with the lower loss.
        self.ranking = sorted(rows, key=lambda row: (-row.get("accuracy", 0.0), row.get("loss", 0.0)))
        best = self.ranking[0]
        metrics = {"paths": str(len(rows)), "best_path": best["path"]}
        for name in sorted(names):
            metrics[f"test_{name}"] = f"{sum(row[name] for row in means) / len(rows):.4f}"  # mean over the paths
            metrics[f"best_path_{name}"] = f"{best[name]:.4f}"
        return metrics

    def _calibration(self, train: Split) -> Iterable[Any]:
        settings = self._settings.recalibrate
        if settings is None:
            return ()
        draws = calibration_draws(train.size, self._seed, samples=settings.samples, batch=settings.batch)
        return train.batches(draws)

    def _to_compare(self) -> Iterable[Path]:
        """Paths in the order in which they are wanted; drawn ones may repeat, and end when new ones are rare."""
        wanted, budget, space, costs = self._settings.evaluate, self._settings.budget, self._space, self._costs
        draws = range(10 * wanted)
        if not isinstance(space, ChoiceSpace):
            return (self._own(_EVALUATION, i) for i in draws)
        if budget and costs:
            if space.count <= wanted:
                return (p for p in space.all_paths() if budget.least <= costs.of(p) <= budget.most)
            return (within_budget(costs, budget, self._seed, _EVALUATION, i) for i in draws)
        if space.count <= wanted:
            return space.all_paths()
        return (uniform(space.sizes, self._seed, _EVALUATION, i) for i in draws)

    def _own(self, step: int, index: int) -> Path:
        assert not isinstance(self._space, ChoiceSpace)
        return self._space.sample(PathContext(self._seed, step, index))

    def _measured(self, space: ChoiceSpace, probe: Callable[[], object] | None) -> Costs:
        if self._costs is None:
            if self._settings.budget and self._settings.budget.of == "flops":
                assert probe is not None, "a budget of flops needs a probe"
                self._costs = flop_costs(self._model, space, probe)
            else:
                self._costs = parameter_costs(self._model, space)
        return self._costs


def _polled(batches: Iterable[Any], interrupted: Callable[[], bool]) -> Iterable[Any]:
    for batch in batches:
        if interrupted():
            raise Interrupted
        yield batch
