"""Batch norm's running statistics, computed anew: exactly those of the whole population that is fed.

What training leaves in running_mean and running_var is a moving average over weights that were changing, and in a
supernet a mixture of paths. Here each layer's inputs are gathered as (count, mean, sum of squared deviations) in float64
and merged by Chan, Golub and LeVeque's formula (1979): exact for batches of any size, for layers that run several times
in one forward pass, and for data whose mean is far from 0, where E[x^2] - E[x]^2 cancels. The mean of the batches'
variances, which torch.optim.swa_utils.update_bn and others take, lacks the variance between batches.

Meanwhile each layer normalises with the statistics of the batch it is given, alone on its rank, and everything else is
in evaluation mode: dropout would change the very variances that evaluation sees (arXiv 1801.05134), and a frozen layer,
such as a teacher's, works with the statistics that it has. Which layers are frozen: norm_layers.py.
"""

import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from relight_trainer.buffers import Kept, Places
from relight_trainer.data.draws import Draw
from relight_trainer.data.splits import Split
from relight_trainer.norm_layers import CannotRecalibrate, layers_to_recalibrate, running_layers, some_layers
from relight_trainer.peers import Interrupted, Peers
from relight_trainer.sampler import permutation
from relight_trainer.seeds import stream
from relight_trainer.settings.supernet import Recalibration
from relight_trainer.shares import share
from relight_trainer.sync_batchnorm import alone


class LayerStatistics(NamedTuple):
    """Of all values of each channel; float64, on the layer's device."""

    values: int  # of one channel
    mean: Tensor  # (channels,)
    var: Tensor  # (channels,), unbiased


Gather = Callable[[Tensor], Tensor]  # from a rank's numbers, (n,), to those of all ranks, (ranks, n)
Statistics = Mapping[str, LayerStatistics]  # by the layers' dotted names; those that never ran are absent


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], object] | None = None,
    gather: Gather | None = None,
    layers: Sequence[str] | None = None,
) -> Statistics:
    """Give every batch norm layer of `model` that trains and runs the statistics of what `batches` feed it; returns them.

    `layers` are patterns of names, such as `student.*`: these layers alone, frozen ones too. `forward` runs the model on
    one batch; by default its first part (of a tuple or list), or the batch. With `gather`, such as `all_ranks`, all ranks
    call this, each with batches of its own, as many as it likes, and end with the same statistics, those of all of them,
    after one collective. Modes, momentum and counters are as before, and after an error the statistics too. A layer that
    never runs keeps what it has. Raises CannotRecalibrate where no layer could get statistics, or no batch reached one.
    """
    statistics = population_statistics(model, batches, forward=forward, gather=gather, layers=layers)
    load_statistics(model, statistics)
    return statistics


def population_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[Any], object] | None = None,
    gather: Gather | None = None,
    layers: Sequence[str] | None = None,
) -> Statistics:
    """As `recalibrate`, but the model stays as it is."""
    population = Population(model, some_layers(model, layers))
    fed = population.feed(batches, forward)
    if gather is not None:
        population.merge_ranks(gather)
    statistics = population.statistics()
    if not statistics:
        what = "none of the batches reached" if fed else "there is no batch for"
        raise CannotRecalibrate(f"recalibrate: {what} a layer of the model; the statistics are unchanged")
    return statistics


def calibration_draws(size: int, seed: int, *, samples: int, batch: int) -> list[Draw]:
    """Which of `size` training samples statistics are of: always the same, in batches of nearly equal size.

    No batch is much smaller than the others: its own statistics, with which it is normalised meanwhile, would be poor.
    """
    chosen = permutation(size, stream(seed, "calibration"))[:samples]
    parts = -(-len(chosen) // batch)
    return [Draw(0, np.ascontiguousarray(chosen[share(len(chosen), i, parts)])) for i in range(parts)]


def all_ranks(numbers: Tensor) -> Tensor:
    """A `Gather` over the default process group."""
    rows = numbers.new_empty(dist.get_world_size(), numbers.numel())
    dist.all_gather(list(rows.unbind(0)), numbers)
    return rows


@contextmanager
def recalibrated(
    model: nn.Module,
    settings: Recalibration,
    train: Split,
    peers: Peers,
    *,
    seed: int,
    forward: Callable[[Any], object],
    interrupted: Callable[[], bool],
) -> Iterator[None]:
    """In this block `model` has the statistics of training samples, the same for any number of ranks. Frozen layers,
    unless named, keep what they have.

    Called by all ranks, each of which does its share. Raises Interrupted between two batches, and while peers are
    waited for, once `interrupted()`.
    """

    def polled(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            if interrupted():
                raise Interrupted
            yield batch

    def gather(numbers: Tensor) -> Tensor:
        rows = numbers.new_zeros(peers.world, numbers.numel())
        rows[peers.rank] = numbers
        return peers.sum(rows, interrupted)

    draws = calibration_draws(train.size, seed, samples=settings.samples, batch=settings.batch)
    population = Population(model, layers_to_recalibrate(model, settings.layers))
    population.feed(polled(train.batches(draws[peers.rank :: peers.world])), forward)
    population.merge_ranks(gather)
    with loaded(model, population.statistics()):
        yield


class Population:
    """What `layers`, batch norm layers of a model by their names in it, have been fed, as long as `gathering`."""

    def __init__(self, model: nn.Module, layers: Mapping[str, _BatchNorm]) -> None:
        self._model = model
        self._layers = layers
        self._sums = {name: _Sums(layer) for name, layer in self._layers.items()}

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Forward passes in this block count. Modes and hooks of the model are as before at its end."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_calibrating(self._model, self._layers.values()))
            for name, layer in self._layers.items():
                stack.callback(layer.register_forward_pre_hook(self._sums[name].add).remove)
            yield

    def feed(self, batches: Iterable[Any], forward: Callable[[Any], object] | None = None) -> int:
        """Run the model on `batches`; how many there were."""
        fed = 0
        with self.gathering():
            for batch in batches:
                fed += 1
                if forward is not None:
                    forward(batch)
                else:
                    self._model(batch[0] if isinstance(batch, (tuple, list)) else batch)
        return fed

    def merge_ranks(self, gather: Gather) -> None:
        """Make it what all ranks have been fed, merged in their order on each: equal everywhere, bit for bit."""
        layers = list(self._sums.values())
        if not layers:
            return
        device = layers[0].mean.device
        counts = torch.tensor([layer.count for layer in layers], dtype=torch.float64, device=device)  # exact to 2**53
        rows = gather(torch.cat([counts, *(t for layer in layers for t in (layer.mean, layer.squares))]))
        widths = [w for layer in layers for w in [layer.mean.numel()] * 2]
        for layer in layers:
            layer.count, layer.mean, layer.squares = 0, torch.zeros_like(layer.mean), torch.zeros_like(layer.mean)
        for row in rows:
            counts, *tensors = torch.split(row, [len(layers), *widths])
            for layer, count, mean, squares in zip(layers, counts.tolist(), tensors[::2], tensors[1::2], strict=True):
                if count:
                    layer.merge(int(count), mean, squares)

    def statistics(self) -> Statistics:
        return {name: found.statistics() for name, found in self._sums.items() if found.count}


@torch.no_grad()
def load_statistics(model: nn.Module, statistics: Statistics) -> None:
    """Copy `statistics` into the running statistics of the layers that they name."""
    layers = running_layers(model)
    for name, found in statistics.items():
        mean, var = layers[name].running_mean, layers[name].running_var
        assert mean is not None
        assert var is not None
        mean.copy_(found.mean)
        var.copy_(found.var)


@contextmanager
def loaded(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """`statistics` in the model, and at the end of the block what was there before."""
    with preserved(model, statistics):
        load_statistics(model, statistics)
        yield


@contextmanager
def preserved(model: nn.Module, names: Collection[str] | None = None) -> Iterator[None]:
    """At the end of the block the running statistics are as they were: the same tensors, with the same values.

    `names` are the layers whose statistics the block changes; None for all layers. Other layers are not written to, so
    that a `StatisticsCache` stays valid.
    """
    layers = [layer for name, layer in running_layers(model).items() if names is None or name in names]
    means = [layer.running_mean for layer in layers if layer.running_mean is not None]
    kept = Kept(Places(layers), means[0].device if means else torch.device("cpu"))
    kept.keep()
    try:
        yield
    finally:
        kept.bring_back()


class StatisticsCache:
    """Statistics by path, as long as nothing that they depend on changes: evaluating a path again costs nothing.

    They depend on the model's parameters and buffers, but for the running statistics of the layers that they are of.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] | None = None) -> None:
        """`layers` are patterns of the layers that are recalibrated; by default those that train."""
        self._model = model
        self._named = layers
        self._places = Places([model], parameters=True)
        self._of: object = None
        self._known: dict[Hashable, Statistics] = {}

    def population(self) -> Population:
        """Of the layers that statistics are of."""
        return Population(self._model, layers_to_recalibrate(self._model, self._named))

    def known(self, path: Hashable) -> Statistics | None:
        """What was put for `path` and these very weights."""
        of = self._stamp()
        if of != self._of:
            self._of, self._known = of, {}
        return self._known.get(path)

    def put(self, path: Hashable, statistics: Statistics) -> None:
        """After `known` has said that there is nothing."""
        self._known[path] = statistics

    def _stamp(self) -> object:
        version = self._places.look()
        layers = layers_to_recalibrate(self._model, self._named)
        own = {id(t) for layer in layers.values() for t in layer.buffers()}
        tensors = [t for t in self._places.named.values() if id(t) not in own]
        if any(t.is_inference() for t in tensors):  # changes of such tensors are not counted
            return object()
        # Every change in place raises a tensor's version: optimizers, loading and averaging are seen.
        return version, tuple(layers), tuple((t.data_ptr(), t._version) for t in tensors)  # noqa: SLF001


@contextmanager
def _calibrating(model: nn.Module, layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """`layers` use their batch's statistics and learn nothing, all else is in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    tracking = [(layer, layer.track_running_stats) for layer in layers]
    model.eval()
    # Not through train(), which a layer may have overridden to stay as it is.
    for layer in running_layers(model).values():
        layer.training = False
    for layer, _ in tracking:
        layer.training, layer.track_running_stats = True, False
    try:
        with alone(), _uncompiled():
            yield
    finally:
        for layer, tracks in tracking:
            layer.track_running_stats = tracks
        for module, training in modes:
            module.training = training


def _uncompiled() -> AbstractContextManager[object]:
    """Here compiled code runs as it was written: hooks and flags that come and go would have it compiled again."""
    # Whoever has compiled anything has imported this; importing it takes seconds.
    if "torch._dynamo.eval_frame" not in sys.modules:
        return nullcontext()
    eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager


class _Sums:
    """One layer's inputs so far."""

    def __init__(self, layer: _BatchNorm) -> None:
        device = layer.running_mean.device if layer.running_mean is not None else None
        self.count = 0
        self.mean = torch.zeros(layer.num_features, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)  # sum of squared deviations from the mean

    def add(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        """As a hook before the layer's forward pass."""
        x = args[0]
        count = x.numel() // x.shape[1] if x.numel() else 0
        if count:
            var, mean = torch.var_mean(x.double(), [d for d in range(x.dim()) if d != 1], correction=0)
            self.merge(count, mean, var * count)

    def merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.squares = self.squares + squares + delta**2 * (self.count * count / total)
        self.count = total

    def statistics(self) -> LayerStatistics:
        return LayerStatistics(self.count, self.mean, self.squares / max(self.count - 1, 1))
