"""Recalibrated statistics are those of all values together, in float64, however they come."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from torch import Tensor, nn

from relight_agent.files import JobFile
from relight_trainer.context import WorkerContext
from relight_trainer.data.tensors import Samples, TensorSplit
from relight_trainer.peers import Peers, form
from relight_trainer.recalibrate import (
    StatisticsCache,
    all_ranks,
    calibration_draws,
    loaded,
    population_statistics,
    recalibrate,
    recalibrated,
)
from relight_trainer.settings.supernet import Recalibration
from relight_trainer.sync_batchnorm import convert

pytestmark = pytest.mark.timeout(120)


def batches(*sizes: int, shift: Callable[[int], float] = lambda _: 0.0, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, 4, 4, generator=generator) * scale + shift(i) for i, n in enumerate(sizes)]


# Six kinds of data: in ordinary order; far from 0; with a last batch that is small and shifted; sorted by class;
# through a layer that runs twice; each rank's shifted.
DATA = {
    "ordinary": batches(32, 32, 32),
    "far from 0": batches(32, 32, 32, shift=lambda _: 1e4, scale=0.1),
    "a shifted partial batch": batches(64, 64, 2, shift=lambda i: 10.0 * (i == 2)),
    "sorted by class": batches(16, 16, 16, 16, shift=lambda i: 5.0 * i),
}


def exact(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance per channel, in float64, of everything at once."""
    columns = values.double().transpose(0, 1).flatten(1)
    return columns.mean(1), columns.var(1)


def error(model: nn.Module, values: Tensor, layer: str = "0") -> float:
    """The worse relative error of the layer's two statistics."""
    found = model.get_submodule(layer)
    assert isinstance(found, nn.modules.batchnorm._BatchNorm)
    mean, var = exact(values)
    return max(
        ((found.running_mean - mean).abs() / mean.abs().clamp(min=1)).max().item(),
        ((found.running_var - var).abs() / var).max().item(),
    )


@pytest.mark.parametrize("name", DATA)
def test_statistics_are_those_of_the_population(name: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    recalibrate(model, DATA[name])
    assert error(model, torch.cat(DATA[name])) <= 1e-6


def test_the_usual_ways_are_wrong_where_the_data_is_not_ordinary() -> None:
    """Negative controls: the tests above would see them."""
    whole = {name: exact(torch.cat(parts))[1] for name, parts in DATA.items()}

    far = torch.cat(DATA["far from 0"]).transpose(0, 1).flatten(1)
    by_squares = (far**2).mean(1) - far.mean(1) ** 2  # as fvcore's precise_bn, in float32
    assert ((by_squares - whole["far from 0"]).abs() / whole["far from 0"]).max() > 10

    def mean_of_variances(name: str) -> float:  # as torch's update_bn
        means = torch.stack([exact(part)[1] for part in DATA[name]]).mean(0)
        return ((means - whole[name]).abs() / whole[name]).max().item()

    assert mean_of_variances("a shifted partial batch") > 0.2
    assert mean_of_variances("sorted by class") > 0.9
    model = nn.Sequential(nn.BatchNorm2d(3))
    torch.optim.swa_utils.update_bn(DATA["sorted by class"], model)
    assert error(model, torch.cat(DATA["sorted by class"])) > 0.9


class Twice(nn.Module):
    """One layer, run on the input and on a part of another scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y = 3 * x[:5] + 1
        self.seen += [x, y]
        return self.norm(x).sum() + self.norm(y).sum()


def test_a_layer_that_runs_twice_gets_the_statistics_of_both() -> None:
    model = Twice()
    recalibrate(model, DATA["ordinary"])
    assert error(model, torch.cat(model.seen), "norm") <= 1e-6


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3, momentum=0.3),
        nn.Conv2d(3, 4, 3),
        nn.Dropout(0.5),
        nn.BatchNorm2d(4, momentum=None),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Flatten(),
        nn.LazyLinear(5),
        nn.BatchNorm1d(5),
    )


def test_everything_but_the_statistics_is_as_before() -> None:
    model = deep()
    model(DATA["ordinary"][0])
    model[1].eval()
    model[3].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    momenta = [model[i].momentum for i in (0, 3)]
    others = {n: t.clone() for n, t in model.state_dict().items() if "running" not in n}
    statistics = population_statistics(model, DATA["ordinary"])
    assert set(statistics) == {"0", "7"}  # training does not move what is in evaluation mode in it
    assert [s.values for s in statistics.values()] == [96 * 16, 96]
    recalibrate(model, DATA["ordinary"])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [model[i].momentum for i in (0, 3)] == momenta
    assert all(m.track_running_stats for m in (model[0], model[3], model[7]))
    assert all(torch.equal(t, others[n]) for n, t in model.state_dict().items() if "running" not in n)
    assert not any(m._forward_pre_hooks for m in model.modules())

    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        recalibrate(model, [*DATA["far from 0"], torch.zeros(2, 99, 4, 4)])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(m.track_running_stats for m in (model[0], model[3], model[7]))
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_dropout_is_off_so_that_the_statistics_are_those_that_evaluation_sees() -> None:
    model = deep()
    model(DATA["ordinary"][0])
    runs = [population_statistics(model, DATA["ordinary"])["7"].mean for _ in range(2)]
    assert torch.equal(*runs)


def test_a_layer_that_never_runs_keeps_what_it_has_and_statistics_can_be_lent() -> None:
    model = nn.ModuleDict({"a": nn.BatchNorm2d(3), "b": nn.BatchNorm2d(3)})
    before = {n: t.clone() for n, t in model.state_dict().items()}
    statistics = population_statistics(model, [(x, None) for x in DATA["ordinary"]], forward=lambda b: model["a"](b[0]))
    assert set(statistics) == {"a"}
    with loaded(model, statistics):
        assert torch.equal(model["a"].running_mean, statistics["a"].mean.float())
        assert torch.equal(model["b"].running_mean, before["b.running_mean"])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_the_cache_lives_as_long_as_the_weights_do() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cache = StatisticsCache(model)
    found = population_statistics(model, [torch.randn(4, 2)])
    assert cache.known((0, 1)) is None
    cache.put((0, 1), found)
    recalibrate(model, [torch.randn(4, 2)])  # statistics are no weights
    assert cache.known((0, 1)) is found
    assert cache.known((1, 1)) is None
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    assert cache.known((0, 1)) is None
    cache.put((0, 1), found)
    model.load_state_dict(model.state_dict())
    assert cache.known((0, 1)) is None


def ranks(context: WorkerContext) -> dict[str, float]:
    form(torch.device("cpu"))
    # The ranks' data is shifted against each other, uneven, and the last rank has none.
    parts = [batches(8, 8, 8, shift=lambda _: -3.0), batches(8, 3, shift=lambda _: 7.0), []]
    mine = parts[context.rank]
    everything = [part for of_rank in parts for part in of_rank]

    def model() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))

    together, single = model(), model()
    convert(together)  # sync layers too normalise alone, or the ranks' numbers of batches would have to be equal
    statistics = recalibrate(together, mine, gather=all_ranks)
    recalibrate(single, everything)
    found = {"population": error(together, torch.cat(everything))}
    for ours, theirs in zip(together.buffers(), single.buffers(), strict=True):
        gap = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)
        found["one process"] = max(found.get("one process", 0.0), gap.item())
    found["count"] = statistics["0"].values
    found["digest"] = sum(s.var.sum().item() for s in statistics.values())

    before = {n: t.clone() for n, t in single.state_dict().items()}
    train = TensorSplit(Samples(torch.cat(everything), torch.zeros(35)), torch.device("cpu"))
    settings = Recalibration(samples=30, batch=8)
    options: Any = {"seed": 0, "forward": lambda batch: single(batch[0]), "interrupted": lambda: False}
    with recalibrated(single, settings, train, Peers(), **options):
        shared = {n: t.clone() for n, t in single.state_dict().items()}
    assert all(torch.equal(t, before[n]) for n, t in single.state_dict().items())
    batched = [
        torch.cat(everything)[torch.from_numpy(d.indices)] for d in calibration_draws(35, 0, samples=30, batch=8)
    ]
    assert [len(part) for part in batched] == [7, 8, 7, 8]
    recalibrate(single, batched)
    found["share"] = max((t - shared[n]).abs().max().item() for n, t in single.state_dict().items())

    mean_over_ranks = torch.stack([exact(torch.cat(p))[1] for p in parts if p]).mean(0)  # as timm's distribute_bn
    whole = exact(torch.cat(everything))[1]
    found["mean over ranks"] = ((mean_over_ranks - whole).abs() / whole).max().item()
    return found


def test_ranks_with_different_data_get_the_statistics_of_all_of_it(tmp_path: Path) -> None:
    job = JobFile("default", "statistics", "u1", 1.0, 3, 1, {}, "c1")
    results = worlds.run(ranks, root=tmp_path, job=job, ranks=3)
    for found in results:
        assert isinstance(found, dict), found
        assert found["population"] <= 1e-6
        assert found["one process"] <= 1e-6
        assert found["share"] <= 1e-6
        assert found["count"] == 35 * 16
        assert found["mean over ranks"] > 0.5  # the negative control
        assert found["digest"] == results[0]["digest"]
