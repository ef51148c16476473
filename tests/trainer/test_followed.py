"""Scripts whose models use other parameters in each step, micro-batch or rank: the weights are those of one process."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import worlds
from test_train_exact import job
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from relight_trainer import client
from relight_trainer.context import WorkerContext
from relight_trainer.peers import form

pytestmark = pytest.mark.timeout(120)
EXACT = 1e-12
STEPS = 6


class Net(nn.Module):
    """Adds up the layers that a forward pass names; `kind` says what it returns."""

    def __init__(self, kind: str = "tensor") -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 3) for _ in range(3))
        self.table = nn.Embedding(8, 3, sparse=True)
        self.kind = kind
        self.double()

    def forward(self, x: Tensor, names: str) -> Any:
        parts = {"a": self.a, "b": self.b, "c": self.c, "t": lambda x: self.table(torch.arange(len(x)))}
        y = sum((parts[name](x) for name in names), x[:, :3] * 0)
        if self.kind == "mapping":
            return {"y": y, "more": [self.a.bias.sum()]}
        return SimpleNamespace(y=y) if self.kind == "hidden" else y


class Case(NamedTuple):
    uses: Callable[[int, int, int], str]  # layers, from (step, micro-batch, rank)
    accumulate: int = 1
    kind: str = "tensor"
    wrapped: str = "by us"
    loss: str = "square"
    sparse: bool = False  # without decay and momentum, which torch has for dense gradients alone


CASES: dict[str, Case] = {
    "dropped after the second step": Case(lambda step, _, __: "ab" if step < 2 else "a"),
    "used from the third step on": Case(lambda step, _, __: "a" if step < 2 else "ab"),
    "missing in the last micro-batch": Case(lambda _, micro, __: "abc" if micro < 2 else "a", accumulate=3),
    "by rank": Case(lambda _, __, rank: "ab" if rank else "ac"),
    "by rank, from the third step on": Case(lambda step, _, rank: "abc" if step < 2 else "ab" if rank else "a"),
    "in a mapping": Case(lambda step, _, rank: "abc" if step == rank else "ab", kind="mapping"),
    "clipped": Case(lambda step, _, rank: "ab" if (step + rank) % 3 else "ac", loss="clipped"),
    "a gradient penalty": Case(lambda step, _, rank: "abc" if step == rank else "ab", loss="penalty"),
    "two forward passes": Case(lambda step, _, rank: "ab" if (step + rank) % 3 else "ac", loss="twice"),
    "found by torch": Case(lambda step, _, rank: "ab" if (step + rank) % 3 else "ac", wrapped="by us, finding"),
    "own DDP": Case(lambda step, _, rank: "ab" if (step + rank) % 3 else "ac", wrapped="by the script"),
    "own DDP with views": Case(
        lambda step, micro, rank: "ab" if (step + rank + micro) % 3 else "ac",
        wrapped="by the script, views",
        accumulate=2,
    ),
    "a sparse table": Case(lambda *_: "abct", sparse=True),
    "a sparse table, at times": Case(lambda step, _, rank: "at" if (step + rank) % 3 else "ab", sparse=True),
    "a sparse table, own DDP": Case(lambda *_: "abct", sparse=True, wrapped="by the script"),
}


def inputs(step: int, micro: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + 10 * micro + rank)
    return torch.randn(5, 4, generator=generator, dtype=torch.float64)


def loss_of(net: nn.Module, case: Case, x: Tensor, names: str) -> Tensor:
    def output(x: Tensor) -> Tensor:
        given = net(x, names)
        found: Tensor = given["y"] if case.kind == "mapping" else given
        return found

    if case.loss == "twice":
        return (output(x).tanh() + output(x + 1).sigmoid()).square().mean()
    if case.loss == "penalty":
        x = x.requires_grad_()
        y = output(x)
        [slope] = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)
        return slope.square().mean() + y.square().mean()
    return (output(x).tanh() - 0.3).square().mean()


def update(net: nn.Module, optimizer: torch.optim.Optimizer, case: Case) -> None:
    if case.loss == "clipped":
        nn.utils.clip_grad_norm_(net.parameters(), 0.05)
    optimizer.step()
    optimizer.zero_grad()


def optimizer_of(net: nn.Module, case: Case) -> torch.optim.Optimizer:
    if case.sparse:
        return torch.optim.SGD(net.parameters(), lr=0.1)
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05)


def wrapped(run: client.Run, net: Net, how: str) -> nn.Module:
    match how:
        case "by us":
            return run.wrap(net)
        case "by us, finding":
            return run.wrap(net, find_unused_parameters=True)
    raise AssertionError(how)


def trained(context: WorkerContext, case: Case, replica: nn.Module, net: nn.Module) -> None:
    optimizer = optimizer_of(net, case)
    for step in range(STEPS):
        for micro in range(case.accumulate):
            last = micro == case.accumulate - 1
            with nullcontext() if last else replica.no_sync():  # type: ignore[operator]
                x = inputs(step, micro, context.rank)
                (loss_of(replica, case, x, case.uses(step, micro, context.rank)) / case.accumulate).backward()  # type: ignore[no-untyped-call]
        update(net, optimizer, case)


def alone(case: Case, net: nn.Module, world: int) -> None:
    """What `trained` does, in one process."""
    optimizer = optimizer_of(net, case)
    for step in range(STEPS):
        for micro in range(case.accumulate):
            for rank in range(world):
                names = case.uses(step, micro, rank)
                (loss_of(net, case, inputs(step, micro, rank), names) / case.accumulate / world).backward()  # type: ignore[no-untyped-call]
        update(net, optimizer, case)


def nets(case: Case) -> Iterator[Net]:
    torch.manual_seed(0)
    net = Net(case.kind)
    if not case.sparse:
        net.table.sparse = False
    yield net
    yield copy.deepcopy(net)


def everything(context: WorkerContext) -> dict[str, float]:
    """How far each case's weights are from those of one process."""
    form(torch.device("cpu"))
    gaps = {}
    own = {
        name: DistributedDataParallel(next(nets(case)), gradient_as_bucket_view="views" in case.wrapped)
        for name, case in CASES.items()
        if "script" in case.wrapped
    }
    run = client.start(**{name.replace(" ", "_"): replica for name, replica in own.items()})
    for name, case in CASES.items():
        ours, single = nets(case)
        replica: Any = own.get(name)
        if replica is None:
            replica = wrapped(run, ours, case.wrapped)
        else:
            ours = replica.module
        trained(context, case, replica, ours)
        alone(case, single, context.world_size)
        pairs = zip(ours.parameters(), single.parameters(), strict=True)
        gaps[name] = max((a - b).abs().max().item() for a, b in pairs)
    return gaps


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    root = tmp_path_factory.mktemp("gaps")
    answers = worlds.run(everything, root=root, job=job(root, checkpoints=False))
    assert all(isinstance(found, dict) for found in answers), answers
    return answers


@pytest.mark.parametrize("name", CASES)
def test_a_script_on_two_ranks_trains_what_one_process_trains(gaps: list[dict[str, float]], name: str) -> None:
    assert max(found[name] for found in gaps) <= EXACT


def hidden(_: WorkerContext) -> None:
    """A model whose output is an object that DDP cannot look into, and that drops a layer."""
    run = client.start(init=True)
    case = Case(lambda step, *_: "ab" if step < 2 else "a", kind="hidden")
    net, _ = nets(case)
    replica = run.wrap(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(3):
        before = [p.detach().clone() for p in net.parameters()]
        replica(inputs(step, 0, dist.get_rank()), case.uses(step, 0, 0) + "ct").y.square().mean().backward()
        try:
            optimizer.step()
        finally:
            moved = any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
            assert moved == (step < 2)
        optimizer.zero_grad()


def test_an_update_with_gradients_that_nobody_could_reduce_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("hidden")
    answers = worlds.run(hidden, root=root, job=job(root, checkpoints=False))
    for rank, text in enumerate(answers):
        assert text.startswith(
            f"UnreducedGradients: rank {rank}: optimizer.step() comes before the gradients are reduced"
        )
        assert "b.weight, b.bias took no part" in text
        assert "find_unused_parameters=True" in text


def as_torchrun(_: WorkerContext) -> Any:
    """The weights of `nn.Embedding(sparse=True)` in plain DDP, and in the client's."""
    run = client.start(init=True)
    found = []
    for wrap in (DistributedDataParallel, run.wrap):
        torch.manual_seed(0)
        table, line = nn.Embedding(32, 4, sparse=True), nn.Linear(4, 1)
        net = nn.Sequential(table, line)
        replica = wrap(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for step in range(5):
            loss = replica(torch.arange(4) + step + 3 * dist.get_rank()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append([p.tolist() for p in net.parameters()])
    return found


def test_a_sparse_embedding_trains_as_in_plain_ddp(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("sparse")
    answers = worlds.run(as_torchrun, root=root, job=job(root, checkpoints=False))
    assert all(isinstance(found, list) for found in answers), answers
    for plain, ours in answers:
        assert plain == ours


def unreduced(_: WorkerContext, how: str) -> None:
    """Two good steps, then one whose gradients DDP does not reduce."""
    run = client.start(init=True)
    torch.manual_seed(0)
    net = nn.Linear(4, 3).double()
    replica: Any = run.wrap(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(3):
        x = inputs(step, 0, dist.get_rank())
        if how == "no_sync" and step == 2:
            with replica.no_sync():
                replica(x).square().mean().backward()
        else:
            y = replica(x)
            y.square().mean().backward(retain_graph=True)
            if how == "second" and step == 2:
                y.tanh().mean().backward()
            if how == "second and left out":
                y.tanh().mean().backward()
                optimizer.zero_grad()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("how", ["no_sync", "second", "second and left out"])
def test_gradients_that_ddp_leaves_to_each_rank_are_not_applied(
    tmp_path_factory: pytest.TempPathFactory, how: str
) -> None:
    root = tmp_path_factory.mktemp("unreduced")
    answers = worlds.run(unreduced, how, root=root, job=job(root, checkpoints=False))
    if how == "second and left out":
        assert answers == [None, None]
    else:
        for rank, text in enumerate(answers):
            assert text.startswith(
                f"UnreducedGradients: rank {rank}: optimizer.step() would apply gradients that are not reduced"
            )


def wrapped_later(context: WorkerContext) -> float:
    """How far a script that makes its DDP itself, after the start, is from one process; each rank drops a branch."""
    case = Case(lambda step, _, rank: "abc" if step < 2 else "ab" if rank else "a")
    ours, single = nets(case)
    run = client.start(model=ours, init=True)
    replica = DistributedDataParallel(ours)
    optimizer = optimizer_of(ours, case)
    for step in run.steps(range(STEPS), epochs=1):
        loss_of(replica, case, inputs(step, 0, context.rank), case.uses(step, 0, context.rank)).backward()  # type: ignore[no-untyped-call]
        update(ours, optimizer, case)
    alone(case, single, context.world_size)
    return max((a - b).abs().max().item() for a, b in zip(ours.parameters(), single.parameters(), strict=True))


def test_a_ddp_that_a_script_makes_itself_is_looked_after(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("later")
    answers = worlds.run(wrapped_later, root=root, job=job(root, checkpoints=False))
    assert [isinstance(gap, float) and gap <= EXACT for gap in answers] == [True, True], answers
