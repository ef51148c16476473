"""A trace when it is asked for, and a report when memory runs out, of real trainings."""

import gzip
import json
import time
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job
from torch import Tensor, nn

from relight_trainer import train
from relight_trainer.hooks import Hook
from relight_trainer.observe.oom import place_of
from relight_trainer.observe.profile import ProfileOnDemand

pytestmark = pytest.mark.timeout(120)

ASKED, ENDS = 3, 9  # steps done when the trace is asked for, and when memory runs out
PARTS = 2  # of a step: the job is meant for two workers


class Hungry(nn.Module):
    """A model whose second layer wants a petabyte after some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Greedy())
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Greedy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + torch.empty(1 << 50)[0] if self.calls > PARTS * ENDS else x


class Ask(Hook):
    """Touches the file, and waits until it has been seen, so that the test knows the steps."""

    order = 0

    def step_begin(self, run: Any) -> None:
        if run.step == ASKED:
            (run.session._context.run_dir / "profile").write_text("2\n")
            [hook] = [h for h in run.hooks._hooks.values() if isinstance(h, ProfileOnDemand)]
            deadline = time.monotonic() + 30
            while not hook._request.steps:
                assert time.monotonic() < deadline
                time.sleep(0.02)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, answer) of a training that was profiled and ran out of memory."""
    root = tmp_path_factory.mktemp("ended")
    (root / "slot-0").mkdir()
    (root / "slot-0" / "profile").touch()  # an older request, answered by the workers before these
    the_job = job(
        root,
        steps=20,
        model={"type": f"{__name__}:Hungry"},
        hooks=[{"type": f"{__name__}:Ask"}],
        evaluate={"every": "99st"},
    )
    [answer] = worlds.run(train.run, root=root, job=the_job, ranks=1)
    return root, answer


def test_a_file_in_the_run_folder_asks_for_a_trace_of_that_many_steps(ended: Any) -> None:
    root, _ = ended
    [path] = (root / "checkpoints/profiles").iterdir()
    assert path.name == f"step-{ASKED + 2}-rank-0.json.gz"
    trace = json.loads(gzip.decompress(path.read_bytes()))
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum(name.startswith("Optimizer.step") for name in names) == 2
    assert names.count("aten::cross_entropy_loss") == 2 * PARTS


def test_out_of_memory_leaves_who_asked_who_holds_and_what_to_change(ended: Any) -> None:
    root, answer = ended
    assert answer.startswith("RuntimeError: ")
    assert "can't allocate memory" in answer
    report = json.loads((root / "checkpoints/oom/rank-0.json").read_text())
    assert report["where"] == 'in the module "body.2"'
    assert (report["step"], report["rank"]) == (ENDS + 1, 0)
    parameters = (64 * 8 + 8 + 8 * 10 + 10) * 4
    assert report["bytes"] == {"parameters": parameters, "gradients": 0, "buffers": 0, "optimizer": parameters}
    assert report["suggestion"] == (
        "train.micro_batch: 16 instead of 32 samples at a time, train.precision: bf16, or a smaller model"
    )
    assert report["machine"]["memory_bytes"] > 0


def failing(where: str, model: nn.Module) -> BaseException:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            raise MemoryError

    class Optimizer(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            raise MemoryError

    try:
        loss = model(torch.ones(1, 3)).sum()
        if where == "backward":
            Fails.apply(loss).backward()
        elif where == "optimizer":
            Optimizer(model.parameters(), lr=0.1).step()
        else:
            raise MemoryError
    except MemoryError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("where", "said"),
    [("backward", "in the backward pass"), ("optimizer", "in the optimizer"), ("data", "outside the model")],
)
def test_what_was_under_way_is_told(where: str, said: str) -> None:
    model = nn.Linear(3, 1)
    assert place_of(failing(where, model).__traceback__, model) == said
