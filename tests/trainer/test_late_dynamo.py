"""What stands in for torch's compiler until something is compiled, in processes of their own."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(120)

BEFORE = """
import contextlib, inspect, sys, threading, traceback, warnings
import torch, torch.distributed as dist
from relight_trainer import late_dynamo

def is_imported():
    return "torch._dynamo.eval_frame" in sys.modules

late_dynamo.stand_in()
model = torch.nn.Linear(3, 3)
x = torch.ones(2, 3)
"""


def seen(code: str, **env: str) -> list[str]:
    """What `code` prints, a line each."""
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + code], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_an_eager_training_does_imports_no_compiler() -> None:
    code = """
late_dynamo.use_deterministic_algorithms()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
replica = torch.nn.parallel.DistributedDataParallel(model)
for kind in (torch.optim.SGD, torch.optim.AdamW):
    optimizer = kind(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu")
    with torch.autocast("cpu"):
        loss = replica(x).sum()
    scaler.scale(loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    schedule.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
torch.optim.swa_utils.AveragedModel(model).update_parameters(model)
try:
    model(torch.ones(1, 4))
except RuntimeError as error:
    traceback.format_exception(error)
inspect.getmodule(model), inspect.stack()
dist.destroy_process_group()
print(is_imported(), "sympy" in sys.modules, torch.are_deterministic_algorithms_enabled())
"""
    assert seen(code) == ["False False True"]


def test_to_compile_after_eager_steps_is_to_compile_with_the_real_one() -> None:
    code = """
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def train(x):
    optimizer.zero_grad()
    loss = model(x).square().sum()
    loss.backward()
    optimizer.step()
    return loss.detach()

before = {name: value.clone() for name, value in model.state_dict().items()}
eager = train(x)
model.load_state_dict(before)
compiled = torch.compile(train, backend="eager")(x)
print(is_imported(), bool(eager == compiled), torch._dynamo is sys.modules["torch._dynamo"])
print(any("late_dynamo" in type(finder).__module__ for finder in sys.meta_path))
print(any(type(m).__module__ == "relight_trainer.late_dynamo" for m in sys.modules.values()))
"""
    assert seen(code) == ["True True True", "False", "False"]


@pytest.mark.parametrize(
    "statement",
    [
        "from torch._dynamo.utils import counters; found = torch._dynamo.utils",
        "from torch._dynamo import utils; utils.counters; found = torch._dynamo.utils",
        "import torch._inductor.utils; found = torch._dynamo.utils",
    ],
)
def test_a_submodule_is_there_once_and_is_the_package_s(statement: str) -> None:
    code = f"""
{statement}
print(is_imported(), found is sys.modules['torch._dynamo.utils'], type(found.__spec__.loader).__name__)
# One that is loaded twice has two of each.
print(torch._dynamo.output_graph.counters is found.counters)
"""
    assert seen(code) == ["True True SourceFileLoader", "True"]


def test_what_was_called_through_the_stand_in_can_be_compiled_later() -> None:
    """torch keeps what `disable` gives it: the stand-in's must not stay."""
    code = """
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer.zero_grad()
inner = torch.optim.Optimizer.zero_grad.__wrapped__
print(hasattr(inner, "__dynamo_disable"))
import torch._dynamo.config
print(hasattr(inner, "__dynamo_disable"))
optimizer.zero_grad()
print(getattr(inner, "__dynamo_disable")._torchdynamo_disable)
"""
    assert seen(code) == ["True", "False", "True"]


def test_what_is_configured_is_configured_in_the_real_one() -> None:
    code = """
torch._dynamo.config.suppress_errors = True
print(sys.modules["torch._dynamo.config"].suppress_errors)
"""
    assert seen(code) == ["True"]


def test_what_is_set_of_a_submodule_that_stands_in_is_set_in_the_real_one() -> None:
    code = """
torch._dynamo.utils.mark_of_mine = 1
print(sys.modules["torch._dynamo.utils"].mark_of_mine, torch._dynamo.utils.mark_of_mine)
"""
    assert seen(code) == ["1 1"]


def test_what_stands_in_answers_as_the_real_one_does_where_nothing_is_configured() -> None:
    code = """
mode = torch._dynamo.utils.get_optimize_ddp_mode()
print(is_imported())
import torch._dynamo.eval_frame
print(is_imported(), torch._dynamo.utils.get_optimize_ddp_mode() == mode)
"""
    assert seen(code) == ["False", "True True"]


def test_threads_that_ask_at_once_get_the_same_module() -> None:
    code = """
at_once, found = threading.Barrier(4), []

def ask():
    at_once.wait()
    found.append(torch._dynamo.decorators)

threads = [threading.Thread(target=ask) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
print(len(found), len(set(map(id, found))))
"""
    assert seen(code) == ["4 1"]


def test_a_function_that_a_user_disables_is_disabled() -> None:
    code = """
@torch._dynamo.disable
def alone(x):
    return x + 1

print(is_imported(), alone._torchdynamo_disable)
"""
    assert seen(code) == ["True True"]


def test_the_compiler_is_told_to_be_deterministic_whenever_it_comes() -> None:
    code = """
late_dynamo.use_deterministic_algorithms()
print(is_imported())
import torch._inductor.config
print(torch._inductor.config.deterministic)
"""
    assert seen(code) == ["False", "True"]
    code = """
import torch._inductor.config
print(torch._inductor.config.deterministic)
late_dynamo.use_deterministic_algorithms()
print(torch._inductor.config.deterministic, torch.are_deterministic_algorithms_enabled())
"""
    assert seen(code) == ["False", "True True"]


def test_nothing_stands_in_where_it_is_imported_already() -> None:
    code = """
import torch._dynamo
late_dynamo.stand_in()
print(is_imported(), torch._dynamo is sys.modules["torch._dynamo"])
"""
    code = "del sys.modules['torch._dynamo']; sys.meta_path.pop(0); del torch._dynamo" + code
    assert seen(code) == ["True True"]
