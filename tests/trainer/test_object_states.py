"""What cannot be saved is refused before the first step; what does not fit names object, tensor and both shapes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import worlds
from test_train_exact import job
from torch import nn

from relight_agent.exits import ExitCode
from relight_trainer import client, train
from relight_trainer.checkpoint import UnsupportedState, pack
from relight_trainer.config import BadConfig, parse
from relight_trainer.context import WorkerContext
from relight_trainer.failures import classify
from relight_trainer.object_states import UnfitState, check_savable, load_state
from relight_trainer.optim import build_optimizer

pytestmark = pytest.mark.timeout(120)


class Grows(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(size, 2))


class Own:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def load_state_dict(self, state: Any) -> None:
        raise self.error


def sgd(*sizes: int) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1)) for _ in range(n)]} for n in sizes], lr=0.1)


@pytest.mark.parametrize(
    ("saved", "now", "words"),
    [
        (
            nn.Sequential(nn.Linear(2, 2)),
            nn.Sequential(nn.Linear(3, 2)),
            "does not fit model (Sequential): 0.weight is of shape [2, 2] in the saved state and [2, 3] now. Give",
        ),
        (nn.Linear(2, 2), nn.Linear(3, 4), "weight is of shape [2, 2] in the saved state and [4, 3] now; 1 more differ"),
        (Grows(8), Grows(4), "buffer memory is of shape [8, 2] in the saved state and [4, 2] now"),
        (
            nn.Sequential(nn.Linear(2, 2)),
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            "the saved state lacks 1.weight, 1.bias",
        ),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            nn.Sequential(nn.Linear(2, 2)),
            "the saved state also has 1.weight, 1.bias",
        ),
        (sgd(2, 1), sgd(3), "(SGD): it had 2 parameter groups of 2, 1 parameters when it was saved, and has 1 parameter group of 3"),
        (sgd(2, 1), sgd(1, 2), "2 parameter groups of 2, 1 parameters when it was saved, and has 2 parameter groups of 1, 2"),
    ],
)  # fmt: skip
def test_a_saved_state_that_does_not_fit_is_final_and_named(saved: Any, now: Any, words: str) -> None:
    with pytest.raises(UnfitState) as raised:
        load_state("model", now, saved.state_dict())
    assert words in str(raised.value)
    assert classify(raised.value) is ExitCode.BAD_CONFIG


def test_what_an_objects_own_loading_raises_is_told_where_it_is_about_the_state_and_passed_on_where_not() -> None:
    with pytest.raises(UnfitState, match=r"does not fit sampler \(Own\): KeyError: 'place'. Give the job"):
        load_state("sampler", Own(KeyError("place")), {})
    for error in (FileNotFoundError("x"), torch.OutOfMemoryError("x"), dist.DistNetworkError("x")):
        with pytest.raises(type(error)):
            load_state("sampler", Own(error), {})


def test_what_fits_is_loaded() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    load_state("model", other, one.state_dict())
    assert torch.equal(one.weight, other.weight)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))


def test_a_lazy_module_is_refused_by_the_name_of_its_parameter() -> None:
    with pytest.raises(UnfitState, match=r"model\.0\.weight has no shape yet: it belongs to a lazy module"):
        check_savable({"model": lazy()})
    module = lazy()
    module(torch.ones(1, 2))
    check_savable({"model": module, "optimizer": torch.optim.SGD(module.parameters(), lr=0.1), "other": object()})


def sharded(context: WorkerContext) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo")
    model = nn.Linear(4, 4)
    mesh = init_device_mesh("cpu", (2,))
    model.weight = nn.Parameter(distribute_tensor(model.weight.data, mesh, [Shard(0)]))
    return client.start(model=model)


def with_lazy(context: WorkerContext) -> Any:
    return client.start(model=lazy(), init=True)


@pytest.mark.parametrize(
    ("target", "words"), [(sharded, "model.weight is a DTensor"), (with_lazy, "model.0.weight has no shape yet")]
)
def test_a_script_is_refused_in_start(tmp_path: Path, target: Any, words: str) -> None:
    for answer in worlds.run(target, root=tmp_path, job=job(tmp_path)):
        assert answer.startswith(f"UnfitState: {words}")


def test_a_configuration_with_a_lazy_model_is_refused(tmp_path: Path) -> None:
    the_job = job(tmp_path, model={"type": "test_object_states:lazy"})
    [answer] = worlds.run(train.run, root=tmp_path, job=the_job, ranks=1)
    assert answer.startswith("UnfitState: model.0.weight has no shape yet")


def test_an_optimizer_that_calls_the_loss_itself_is_refused() -> None:
    settings = parse(
        {"optimizer": {"type": "torch.optim:LBFGS", "lr": 0.1}, "schedule": {"type": "constant"}}
    ).optimizer
    with pytest.raises(BadConfig, match=r"config\.optimizer\.type: calls the loss several times in a step"):
        build_optimizer(settings, nn.Linear(2, 1), 32)


def test_a_state_that_cannot_be_saved_is_final() -> None:
    with pytest.raises(UnsupportedState, match=r"model\.x") as raised:
        pack({"model": {"x": object()}})
    assert classify(raised.value) is ExitCode.BAD_CONFIG
