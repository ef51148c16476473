"""Sync batch norm on shares of any size is torch's batch norm on the shares one after another."""

import copy
import pickle
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytest
import torch
import torch.distributed as dist
import worlds
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from relight_agent.files import JobFile
from relight_trainer import sync_batchnorm
from relight_trainer.batchnorm_kernels import CudaKernels, kernels_for
from relight_trainer.context import WorkerContext
from relight_trainer.peers import form
from relight_trainer.sync_batchnorm import CannotSync, convert, groups_of, revert, uncounted

pytestmark = pytest.mark.timeout(120)

# name: (layer, its arguments, shape of a row after the channels, rows of each rank, memory format)
CASES: dict[str, tuple[type[_BatchNorm], dict[str, Any], tuple[int, ...], tuple[int, ...], torch.memory_format]] = {
    "1-d": (nn.BatchNorm1d, {}, (), (5, 2, 3), torch.contiguous_format),
    "1-d with length": (nn.BatchNorm1d, {}, (7,), (1, 1, 2), torch.contiguous_format),
    "2-d": (nn.BatchNorm2d, {}, (4, 5), (3, 3, 3), torch.contiguous_format),
    "2-d channels last": (nn.BatchNorm2d, {}, (4, 5), (4, 1, 2), torch.channels_last),
    "3-d": (nn.BatchNorm3d, {}, (2, 3, 2), (2, 1, 3), torch.contiguous_format),
    "3-d channels last": (nn.BatchNorm3d, {}, (2, 3, 2), (2, 1, 3), torch.channels_last_3d),
    "an empty last rank": (nn.BatchNorm2d, {}, (3, 3), (5, 2, 0), torch.contiguous_format),
    "an empty first rank": (nn.BatchNorm1d, {}, (), (0, 2, 5), torch.contiguous_format),
    "one row on one rank": (nn.BatchNorm2d, {}, (2, 2), (0, 1, 0), torch.channels_last),
    "one row on each rank": (nn.BatchNorm1d, {}, (), (1, 1, 1), torch.contiguous_format),
    "momentum None": (nn.BatchNorm2d, {"momentum": None}, (3, 3), (5, 2, 0), torch.contiguous_format),
    "no affine": (nn.BatchNorm2d, {"affine": False}, (3, 3), (5, 2, 0), torch.contiguous_format),
    "no running statistics": (nn.BatchNorm1d, {"track_running_stats": False}, (), (5, 2, 1), torch.contiguous_format),
    "a mean far from 0": (nn.BatchNorm1d, {}, (50,), (4, 4, 4), torch.contiguous_format),
}


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layer(kind: type[_BatchNorm], arguments: dict[str, Any], dtype: torch.dtype) -> _BatchNorm:
    made = kind(6, **arguments).to(dtype)
    if made.affine:
        with torch.no_grad():
            made.weight.copy_(randn(6, seed=1))
            made.bias.copy_(randn(6, seed=2))
    return made


def gap(ours: Tensor | None, theirs: Tensor | None) -> float:
    """The largest difference, relative to the largest value."""
    if ours is None or theirs is None:
        assert ours is None
        assert theirs is None
        return 0.0
    assert ours.shape == theirs.shape
    if ours.numel() == 0:
        return 0.0
    theirs = theirs.double()
    return ((ours.double() - theirs).abs().max() / theirs.abs().max().clamp(min=1e-3)).item()


def compare(name: str, rank: int, dtype: torch.dtype, group: dist.ProcessGroup | None = None, first: int = 0) -> float:
    """How far two steps of the case on the ranks `first`.. of `group` are from float64 batch norm of all their rows."""
    kind, arguments, tail, rows, memory_format = CASES[name]
    rows = rows[first:] if group is None else rows[first : first + dist.get_world_size(group)]
    bounds = [sum(rows[:i]) for i in range(len(rows) + 1)]
    mine = slice(*list(pairwise(bounds))[rank - first])
    reference = layer(kind, arguments, torch.float64)
    model = nn.Sequential(layer(kind, arguments, dtype))
    assert convert(model, group) == ["0"]
    copied = copy.deepcopy(model)  # as EMA does: a process group cannot be copied
    gaps = []
    for step in range(2):
        shape = (bounds[-1], 6, *tail)
        far = 1e4 if name == "a mean far from 0" and dtype == torch.float64 else 2.0
        full = randn(*shape, seed=10 + step, dtype=dtype) * (1 + step) + far
        weights = randn(*shape, seed=20 + step, dtype=dtype)
        x = full[mine].clone().to(memory_format=memory_format).requires_grad_()
        whole = full.double().requires_grad_()
        out = model(x)
        assert out.dtype == dtype
        if x.numel():
            assert out.is_contiguous(memory_format=memory_format)
        (out * weights[mine]).sum().backward()
        expected = reference(whole)
        (expected * weights.double()).sum().backward()
        assert x.grad is not None
        assert whole.grad is not None
        gaps += [gap(out, expected[mine]), gap(x.grad, whole.grad[mine])]
        for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            assert ours.grad is not None
            total = ours.grad.double()
            dist.all_reduce(total, group=group)
            gaps.append(gap(total, theirs.grad))
            ours.grad = theirs.grad = None
        gaps += [gap(a, b) for a, b in zip(model.buffers(), reference.buffers(), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), model.parameters(), strict=True))
    return max(gaps)


def by_hand(rank: int) -> float:
    """A rank whose rows do not count, against the definition written out in float64."""
    torch.manual_seed(0)
    full, weights = torch.randn(9, 6, 2, dtype=torch.float64), torch.randn(9, 6, 2, dtype=torch.float64)
    rows = [slice(0, 4), slice(4, 6), slice(6, 9)]
    model = layer(nn.BatchNorm1d, {}, torch.float64)
    convert(model)
    x = full[rows[rank]].clone().requires_grad_()
    if rank == 2:
        with uncounted():
            out = model(x)
    else:
        out = model(x)
    (out * weights[rows[rank]]).sum().backward()

    whole = full.clone().requires_grad_()
    var, mean = torch.var_mean(whole[:6], (0, 2), correction=0, keepdim=True)
    w, b = (t.detach()[:, None] for t in (model.weight, model.bias))
    expected = (whole - mean) / (var + model.eps).sqrt() * w + b
    (expected * weights).sum().backward()
    assert x.grad is not None
    assert whole.grad is not None
    return max(gap(out, expected[rows[rank]]), gap(x.grad, whole.grad[rows[rank]]))


class Counting:
    """Counts the collectives of a piece of code."""

    def __enter__(self) -> Self:
        self.calls: list[str] = []
        self._kept = {name: getattr(dist, name) for name in ("all_gather", "all_reduce", "broadcast")}
        for name, function in self._kept.items():
            setattr(dist, name, lambda *a, _n=name, _f=function, **k: (self.calls.append(_n), _f(*a, **k))[1])
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self._kept.items():
            setattr(dist, name, function)


def as_on_cuda(library: torch.library.Library) -> None:
    """Torch's CUDA kernels on the CPU: their signatures are the dispatcher's, their arithmetic as in ATen's source."""

    def sums(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).sum([d for d in range(x.dim()) if d != 1])

    def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        wide = x if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(wide, [d for d in range(x.dim()) if d != 1], correction=0)
        return mean, (var + eps).rsqrt()

    def gather(  # noqa: PLR0917
        x: Tensor,
        means: Tensor,
        invstds: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        counts: Tensor,
    ) -> tuple[Tensor, Tensor]:
        assert {t.dtype for t in (means, invstds, running_mean, running_var, counts)} == {means.dtype}
        assert means.is_contiguous()
        mean, spread, n = torch.zeros_like(means[0]), torch.zeros_like(means[0]), torch.zeros_like(counts[0])
        for m, invstd, count in zip(means, invstds, counts, strict=True):
            factor = 1 / (n + count)
            spread = spread + (1 / invstd**2 - eps) * count + (mean - m) ** 2 * n * count * factor
            mean = n * factor * mean + count * factor * m
            n = n + count
        running_mean.mul_(1 - momentum).add_(momentum * mean)
        running_var.mul_(1 - momentum).add_(momentum * spread / (n - 1))
        return mean, (spread / n + eps).rsqrt()

    def elemt(x: Tensor, weight: Any, bias: Any, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:  # noqa: PLR0917
        assert {t.dtype for t in (weight, bias) if t is not None} <= {mean.dtype}
        shape = (-1, *[1] * (x.dim() - 2))
        out = (x - mean.view(shape)) * invstd.view(shape)
        return (out if weight is None else out * weight.view(shape) + bias.view(shape)).to(x.dtype)

    def backward_reduce(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Any, *_: bool) -> Any:
        centred = x.to(mean.dtype) - mean.view(-1, *[1] * (x.dim() - 2))
        return sums(dy, mean.dtype), sums(dy * centred, mean.dtype), torch.empty(0), torch.empty(0)

    def backward_elemt(  # noqa: PLR0917
        dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Any, s: Tensor, t: Tensor, count: Tensor
    ) -> Tensor:
        assert count.dtype == torch.int32
        norm = 1 / int(count.sum())
        mean, invstd, s, t = (v.view(-1, *[1] * (x.dim() - 2)) for v in (mean, invstd, s, t))
        scale = invstd if weight is None else invstd * weight.view(invstd.shape)
        return ((dy - s * norm - (x - mean) * invstd**2 * t * norm) * scale).to(x.dtype)

    for name, function in {
        "batch_norm_stats": stats,
        "batch_norm_gather_stats_with_counts": gather,
        "batch_norm_elemt": elemt,
        "batch_norm_backward_reduce": backward_reduce,
        "batch_norm_backward_elemt": backward_elemt,
    }.items():
        library.impl(name, function, "CPU")


def everything(context: WorkerContext) -> dict[str, Any]:
    form(torch.device("cpu"))
    rank, found = context.rank, {}
    for name in CASES:
        found[f"float64 {name}"] = compare(name, rank, torch.float64)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for name in ("2-d channels last", "an empty last rank", "1-d"):
            found[f"{dtype} {name}"] = compare(name, rank, dtype)
    found["uncounted"] = by_hand(rank)
    as_on_cuda(library := torch.library.Library("aten", "IMPL"))
    sync_batchnorm.kernels_for = lambda _: CudaKernels()
    found["cuda"] = {name: compare(name, rank, torch.float64) for name in CASES if "one row" not in name}
    found["cuda half"] = compare("an empty first rank", rank, torch.float16)
    found["uncounted on cuda"] = by_hand(rank)
    sync_batchnorm.kernels_for = kernels_for
    del library

    pairs = groups_of(2)  # ranks 0 and 1, and 2 alone
    first = 0 if rank < 2 else 2
    found["group"] = compare("1-d with length", rank, torch.float64, pairs, first) if rank < 2 else 0.0
    alone, plain = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    convert(alone, pairs)
    x = randn(4, 3, 2, 2, seed=rank, dtype=torch.float32)
    if rank == 2:
        assert torch.equal(alone(x), plain(x))
        assert torch.equal(alone.running_var, plain.running_var)  # type: ignore[arg-type]
    assert groups_of(3) is None

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    convert(model)
    with Counting() as counting:
        loss = model(randn(rank, 1, 6, 6, seed=rank, dtype=torch.float32)).square().sum()
        loss.backward()
    found["collectives"] = counting.calls
    found["equal"] = [b.double().sum().item() for b in model.buffers()]

    twice = layer(nn.BatchNorm1d, {}, torch.float64)
    convert(twice)
    x = randn(4, 6, seed=3).requires_grad_()
    [grad] = torch.autograd.grad(twice(x).square().sum(), x, create_graph=True)
    try:
        grad.sum().backward()
    except RuntimeError as error:
        found["twice"] = str(error)
    return found


def test_shares_of_any_size_give_what_batch_norm_gives_of_the_whole(tmp_path: Path) -> None:
    job = JobFile("default", "norms", "u1", 1.0, 3, 1, {}, "c1")
    results = worlds.run(everything, root=tmp_path, job=job, ranks=3)
    for found in results:
        assert isinstance(found, dict), found
        exact = {name: value for name, value in found.items() if name.startswith(("float64", "uncounted", "group"))}
        assert max(v for name, v in found["cuda"].items() if "far" not in name) <= 1e-12, found["cuda"]
        assert found["cuda half"] <= 2e-2
        far = exact.pop("float64 a mean far from 0")  # 1e4 to 1: sixteen digits less four, less two for the square
        assert far < 1e-10
        assert max(exact.values()) <= 1e-12, exact
        assert max(v for name, v in found.items() if name.startswith("torch.float32")) <= 2e-6
        assert max(v for name, v in found.items() if name.startswith("torch.float16")) <= 2e-2
        assert max(v for name, v in found.items() if name.startswith("torch.bfloat16")) <= 2e-1
        assert found["collectives"] == ["all_gather", "all_gather", "all_reduce", "all_reduce"]
        assert found["equal"] == results[0]["equal"]
        assert "once_differentiable" in found["twice"]


def test_conversion_is_in_place_and_can_be_undone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm1d(3), nn.SyncBatchNorm(4)))
    parameters, state = list(model.parameters()), list(model.state_dict())
    model[1].eval()
    assert convert(model) == ["1", "2.0", "2.1"]
    assert convert(model) == ["1", "2.0", "2.1"]
    assert isinstance(model[1], nn.BatchNorm2d)
    assert type(model[1]) is not nn.BatchNorm2d
    assert not model[1].training
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert revert(model) == ["1", "2.0", "2.1"]
    assert revert(model) == []
    assert type(model[1]) is nn.BatchNorm2d
    assert type(model[2][0]) is nn.BatchNorm1d
    assert list(model.state_dict()) == state
    model[2][1](torch.randn(3, 4))  # torch's own refuses the CPU under a process group; this one is any rank's


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_converted_model_is_pickled_and_copied_as_what_it_is(protocol: int) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, momentum=0.3), nn.SyncBatchNorm(3))
    model[1].eval()
    convert(model)
    file = BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (
        pickle.loads(pickle.dumps(model, protocol)),
        copy.deepcopy(model),
        torch.load(file, weights_only=False),
    ):
        assert [type(m) for m in other] == [type(m) for m in model]
        assert [m.training for m in other.modules()] == [m.training for m in model.modules()]
        assert all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())
        assert other[1].momentum == 0.3
        other.train()
        other(torch.randn(5, 2))
        assert revert(other) == ["1", "2"]
        assert type(other[1]) is nn.BatchNorm1d
    assert torch.equal(model[1].running_mean, torch.zeros(3))  # a copy's tensors are its own


def test_a_layer_over_some_ranks_cannot_be_pickled_and_says_what_can() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    group: Any = object()
    convert(model, group)
    assert copy.deepcopy(model)[0]._sync.members is group
    with pytest.raises(
        pickle.PicklingError, match=r"over a group of ranks cannot be pickled.*plain_batch_norm\(model\)"
    ):
        pickle.dumps(model)


def test_without_a_process_group_a_converted_layer_is_a_plain_one() -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3)
    synced = copy.deepcopy(plain)
    convert(synced)
    for training in (True, False):
        plain.train(training)
        synced.train(training)
        x = torch.randn(4, 3, 2, 2)
        assert torch.equal(plain(x), synced(x))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), synced.buffers(), strict=True))


def test_a_layer_with_a_forward_of_its_own_is_refused_by_name() -> None:
    class Odd(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input).relu()

    with pytest.raises(CannotSync, match=r"sync_bn: 0\.1 is a .*Odd, which has a forward of its own"):
        convert(nn.Sequential(nn.Sequential(nn.Linear(1, 1), Odd(2))))
