"""Recalibration leaves frozen layers alone, whichever way they are frozen; paths under a frozen teacher are exact."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job
from tests.blockwise_reference import block_loss, ranking, statistics
from torch import Tensor, nn

from relight_trainer.config import BadConfig, parse
from relight_trainer.context import WorkerContext
from relight_trainer.data.tensors import Samples, TensorSplit
from relight_trainer.evaluate import sums_of
from relight_trainer.freeze import Freezer
from relight_trainer.norm_layers import CannotRecalibrate, layers_to_recalibrate, moving_though_frozen
from relight_trainer.objective import OwnObjective
from relight_trainer.peers import Peers, form
from relight_trainer.recalibrate import (
    StatisticsCache,
    calibration_draws,
    population_statistics,
    preserved,
    recalibrate,
)
from relight_trainer.recalibration_settings import check_recalibration
from relight_trainer.settings.position import Length
from relight_trainer.settings.spans import EpochSize
from relight_trainer.settings.supernet import Supernet as Settings
from relight_trainer.supernet import Supernet

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from blockwise_distillation import Blockwise

pytestmark = pytest.mark.timeout(120)


class StaysInEval(nn.BatchNorm1d):
    def train(self, mode: bool = True) -> "StaysInEval":
        return super().train(False)


def net(teachers: nn.Module | None = None) -> nn.Sequential:
    """A teacher and a student, each with a layer that has parameters and one that has none."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), teachers or nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)),
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False)),
    )


def _no_gradient(model: nn.Sequential) -> None:
    model[0].requires_grad_(False)


def _in_eval(model: nn.Sequential) -> None:
    model[0].eval()


def _only_the_layer(model: nn.Sequential) -> None:
    model[0][1].requires_grad_(False)  # type: ignore[index, operator]


def _by_configuration(model: nn.Sequential) -> None:
    config = parse({"freeze": ["0"]})
    Freezer(config.freeze, model, Length(10, EpochSize(5, 10, 2))).at(0)


def _half(model: nn.Sequential) -> None:
    model[0][1].weight.requires_grad_(False)  # type: ignore[index, union-attr]


STUDENTS = {"1.1", "1.2"}
WAYS: list[tuple[Callable[[nn.Sequential], object], set[str]]] = [
    (lambda _: None, {"0.1", "0.2", *STUDENTS}),
    (_no_gradient, STUDENTS),
    (_in_eval, STUDENTS),
    (_by_configuration, STUDENTS),
    (_only_the_layer, {"0.2", *STUDENTS}),  # the layer without parameters goes by the module around it
    (_half, {"0.1", "0.2", *STUDENTS}),  # its bias trains
]


@pytest.mark.parametrize(("freeze", "expected"), WAYS)
@pytest.mark.parametrize("whole_in_eval", [False, True])
def test_what_trains_is_recalibrated_and_nothing_else(
    freeze: Callable[[nn.Sequential], object], expected: set[str], whole_in_eval: bool
) -> None:
    model = net()
    freeze(model)
    if whole_in_eval and freeze is not _in_eval:  # which layer was meant by that cannot be seen any more
        model.eval()
    modes = [m.training for m in model.modules()]
    before = {n: t.clone() for n, t in model.state_dict().items()}
    x = torch.randn(64, 3) * 2 + 1
    assert set(recalibrate(model, x.split(16))) == expected
    moved = {n.rpartition(".")[0] for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == expected
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_that_overrides_train_to_stay_in_evaluation_is_frozen(training: bool) -> None:
    model = net(StaysInEval(4))
    model.train(training)
    assert set(layers_to_recalibrate(model)) == {"0.2", *STUDENTS}


def test_a_frozen_layer_works_with_the_statistics_that_it_has() -> None:
    model = net().double()
    with torch.no_grad():
        for layer in (model[0][1], model[0][2]):  # type: ignore[index]
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    model[0].requires_grad_(False)
    x = torch.randn(60, 3, dtype=torch.float64) * 3 + 1
    found = recalibrate(model, x.split(20))

    state = model.state_dict()
    y = x @ state["0.0.weight"].T + state["0.0.bias"]
    for name in ("0.1", "0.2"):
        y = (y - state[f"{name}.running_mean"]) / (state[f"{name}.running_var"] + 1e-5).sqrt()
        if name == "0.1":
            y = y * state["0.1.weight"] + state["0.1.bias"]
    y = y @ state["1.0.weight"].T + state["1.0.bias"]
    assert (found["1.1"].mean - y.mean(0)).abs().max() <= 1e-12
    assert (found["1.1"].var - y.var(0)).abs().max() <= 1e-12


def test_layers_whose_statistics_move_though_nothing_of_them_trains_are_named() -> None:
    model = net(StaysInEval(4))
    model.train()
    assert moving_though_frozen(model) == ""
    model[0].requires_grad_(False)
    assert moving_though_frozen(model).startswith("batch norm 0.2: no parameter requires a gradient, but")
    _by_configuration(model)
    assert moving_though_frozen(model) == ""


def test_named_layers_are_recalibrated_frozen_or_not() -> None:
    model = net()
    model[0].requires_grad_(False)
    assert set(recalibrate(model, [torch.randn(9, 3)], layers=["0", "1.1"])) == {"0.1", "0.2", "1.1"}
    with pytest.raises(CannotRecalibrate, match=r"'teacher' fits no batch norm layer; allowed: 0, 0.1"):
        recalibrate(model, [torch.randn(9, 3)], layers=["teacher"])


def test_where_nothing_could_be_done_that_is_said() -> None:
    model, x = net(), torch.randn(9, 3)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CannotRecalibrate, match="there is no batch for a layer of the model"):
        recalibrate(model, [])
    with pytest.raises(CannotRecalibrate, match="none of the batches reached a layer"):
        recalibrate(model, [x], forward=lambda _: None)
    with pytest.raises(CannotRecalibrate, match=r"0 is a RecursiveScriptModule of torch.jit, whose layers"):
        recalibrate(nn.Sequential(torch.jit.script(nn.BatchNorm1d(3))), [x])
    with pytest.raises(CannotRecalibrate, match="the model has no batch norm layer with running statistics"):
        recalibrate(nn.Linear(3, 3), [x])
    model.requires_grad_(False)
    with pytest.raises(CannotRecalibrate, match=r"are frozen \(0.1, 0.2, 1.1, 1.2\); name the layers .* layers="):
        recalibrate(model, [x])
    for name, tensor in model.state_dict().items():
        if "running" not in name:
            assert torch.equal(tensor, before[name])


def test_a_compiled_model_is_not_compiled_again_for_its_batches() -> None:
    compiled_times: list[None] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled_times.append(None)
        return graph.forward

    model, x = net(), torch.randn(60, 3)
    compiled: Any = torch.compile(model, backend=backend)
    compiled(x)
    with torch.no_grad():
        compiled(x)
    once = len(compiled_times)
    other = net()
    other.load_state_dict(model.state_dict())
    recalibrate(compiled, x.split(20))
    recalibrate(other, x.split(20))
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())
    compiled(x)
    assert len(compiled_times) == once


def test_statistics_are_known_until_a_frozen_layers_change_or_a_buffer_is_replaced() -> None:
    model = net()
    model[0].requires_grad_(False)
    model.register_buffer("center", torch.zeros(3))
    cache = StatisticsCache(model)
    found = population_statistics(model, [torch.randn(9, 3)])

    def still_known(change: Callable[[], object]) -> bool:
        cache.known("path")
        cache.put("path", found)
        change()
        return cache.known("path") is found

    layer: Any = model[0][1]  # type: ignore[index]
    own: Any = model[1][1]  # type: ignore[index]
    assert still_known(lambda: own.running_mean.fill_(3))
    assert not still_known(lambda: layer.running_mean.fill_(3))
    assert not still_known(lambda: setattr(model, "center", torch.zeros(3)))
    assert not still_known(lambda: model[0].requires_grad_(True))


def test_running_statistics_that_an_evaluation_replaces_are_put_back() -> None:
    layer: Any = nn.BatchNorm1d(2)
    own = layer.running_mean
    with preserved(layer):
        layer.running_mean = torch.ones(2)
        layer.running_var.fill_(9)
    assert layer.running_mean is own
    assert own.tolist() == [0.0, 0.0]
    assert layer.running_var.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("section", "model", "text"),
    [
        ({"evaluate": {"recalibrate": {"layers": "techer"}}}, net(), "config.evaluate.recalibrate.layers: fits no name"),
        ({"evaluate": {"recalibrate": {}}}, nn.Linear(2, 2), "config.evaluate.recalibrate: the model digits_cnn has no batch"),
        ({"supernet": {"recalibrate": {"layers": ["1", "9"]}}}, net(), "config.supernet.recalibrate.layers[1]: fits no name"),
    ],
)  # fmt: skip
def test_a_recalibration_that_does_not_fit_the_model_is_refused(
    section: dict[str, Any], model: nn.Module, text: str
) -> None:
    with pytest.raises(BadConfig) as caught:
        check_recalibration(parse({"model": {"type": "digits_cnn"}, **section}), model)
    assert str(caught.value).startswith(text)


def blockwise() -> Blockwise:
    """A teacher as a training might leave it, frozen; fp64."""
    torch.manual_seed(0)
    model = Blockwise(4).double()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.2, 3)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.teacher.requires_grad_(False)
    return model


def images(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.5


def ranked(context: WorkerContext, layers: list[str] | None) -> Any:
    form(torch.device("cpu"))
    model = blockwise()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    cpu = torch.device("cpu")
    train = TensorSplit(Samples(images(96, 1), torch.arange(96) % 10), cpu)
    test = TensorSplit(Samples(images(40, 2), torch.arange(40) % 10), cpu)
    settings = Settings.model_validate({"evaluate": 16, "recalibrate": {"samples": 96, "batch": 32, "layers": layers}})
    rows = Supernet(settings, model, seed=0)
    objective, run = OwnObjective(), Any
    metrics = rows.evaluate(
        train, test, Peers(),
        forward=lambda batch: objective.output(model, batch, run),  # type: ignore[arg-type]
        sums=sums_of(model, objective, run),  # type: ignore[arg-type]
        interrupted=lambda: False,
    )  # fmt: skip
    same = all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    return same, metrics["best_path"], [(row["path"], row["loss"]) for row in rows.ranking]


@pytest.mark.parametrize("ranks", [1, 2])
def test_paths_under_a_frozen_teacher_are_ranked_as_in_an_independent_computation(tmp_path: Path, ranks: int) -> None:
    calibration = [images(96, 1)[torch.from_numpy(d.indices)] for d in calibration_draws(96, 0, samples=96, batch=32)]
    expected = ranking(blockwise().state_dict(), calibration, images(40, 2))
    for same, best, rows in worlds.run(ranked, None, root=tmp_path, job=job(tmp_path), ranks=ranks):
        assert same
        assert best == expected[0][0]
        assert [path for path, _ in rows] == [path for path, _ in expected]
        assert max(abs(a - b) for (_, a), (_, b) in zip(rows, expected, strict=True)) <= 1e-12


def test_with_the_teacher_recalibrated_too_other_paths_win(tmp_path: Path) -> None:
    """The negative control: the ranking of paths depends on the teacher's statistics."""
    calibration = [images(96, 1)[torch.from_numpy(d.indices)] for d in calibration_draws(96, 0, samples=96, batch=32)]
    expected = ranking(blockwise().state_dict(), calibration, images(40, 2))
    [(same, _, rows)] = worlds.run(ranked, ["*"], root=tmp_path, job=job(tmp_path), ranks=1)
    assert same
    assert [path for path, _ in rows] != [path for path, _ in expected]
    assert abs(rows[0][1] - expected[0][1]) > 1e-3


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("option", range(4))
def test_a_paths_statistics_are_those_of_an_independent_computation(block: int, option: int) -> None:
    model = blockwise()
    for chosen in (model.student[0][0], model.student[1][1]):  # type: ignore[index]
        chosen.chosen = option
    calibration = images(96, 1).split(32)
    found = population_statistics(model, calibration, forward=model._compared)
    mean, var = statistics(model.state_dict(), block, option, calibration)
    layer = found[f"student.{block}.{block + 1}"]
    assert (layer.mean - mean).abs().max() <= 1e-12
    assert (layer.var - var).abs().max() <= 1e-12
    assert block_loss(model.state_dict(), block, option, calibration, images(8, 3)) > 0
