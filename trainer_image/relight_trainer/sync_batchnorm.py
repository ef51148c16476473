"""Batch norm whose statistics are those of all ranks: on the CPU and on CUDA, for shares of any size, empty ones too.

    names = convert(model, group)      every batch norm layer in it, in place; parameters and buffers stay
    revert(model)                      plain layers again, for export

One packed collective forward and one backward; nothing waits for the device. What a layer computes is what
torch.nn.BatchNorm* computes of the ranks' batches one after another (Ioffe and Szegedy 2015, arXiv 1502.03167). All
ranks must run the same layers in the same order. Outside a process group, and in one of a single rank, a converted
layer is a plain one, bit for bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pickle import PicklingError
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from relight_agent.exits import ExitCode
from relight_trainer.batchnorm_kernels import Kernels, Moments, kernels_for, per_channel, scale, statistics_dtype
from relight_trainer.settings.sync_bn import SyncBn

_counted: ContextVar[bool] = ContextVar("counted", default=True)
_alone: ContextVar[bool] = ContextVar("alone", default=False)


class CannotSync(Exception):
    """A batch norm layer computes in a way of its own, which nothing but itself could do over several ranks."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


class _Group:
    """Which ranks a layer's statistics are of. Never copied with the layer: EMA and exports deep-copy models."""

    def __init__(self, members: dist.ProcessGroup | None) -> None:
        self.members = members  # None: all ranks

    def __deepcopy__(self, _: dict[int, Any]) -> "_Group":
        return self

    def __reduce__(self) -> Any:
        if self.members is not None:
            raise PicklingError(
                "a batch norm layer over a group of ranks cannot be pickled: the group exists in this process alone; "
                "allowed: relight_trainer.library.plain_batch_norm(model) before, and sync_batch_norm(model, group) after loading"
            )
        return _Group, (None,)


class SyncBatchNorm(_BatchNorm):
    """What `convert` puts before a layer's own class; `plain` is that class."""

    plain: ClassVar[type[_BatchNorm]]
    _sync: _Group

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled and copied by the plain class's name: `convert` makes the present one, which has none to be found by."""
        # From protocol 2 on, an object is made by its class's __new__.
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        _, (_, *arguments), *rest = reduced
        return (_new, (self.plain, *arguments), *rest)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name for it
        if not self.training or _alone.get() or _size(self._sync) == 1:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        kernels = kernels_for(input)
        output: Tensor
        output, mean, var = _normalise.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps, self._sync, kernels
        )
        self._learn(mean, var)
        return output

    @torch.no_grad()
    def _learn(self, mean: Tensor, var: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # A momentum of None is the mean over all batches; its weight stays on the device.
        weight = self.num_batches_tracked.reciprocal() if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, var)):
            w = weight.to(running.dtype) if isinstance(weight, Tensor) else weight
            running.lerp_(now.to(running.dtype), w)


class AnyBatchNorm(_BatchNorm):
    """A plain layer for inputs of any number of dimensions: what takes the place of a torch.nn.SyncBatchNorm."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        if input.dim() < 2:
            raise ValueError(f"batch norm takes (rows, channels, ...), not an input of {input.dim()} dimensions")


def convert(model: nn.Module, group: dist.ProcessGroup | None = None) -> list[str]:
    """Make the statistics of every batch norm layer in `model` those of all ranks of `group` (None: all there are).

    In place: parameters, buffers, hooks and names stay. Returns the layers' names; those that are converted already
    get the new group. Raises CannotSync for a layer with a forward of its own.
    """
    sync, converted = _Group(group), []
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if isinstance(module, nn.SyncBatchNorm):
            _reclass(module, AnyBatchNorm)
        if not isinstance(module, SyncBatchNorm):
            if type(module).forward is not _BatchNorm.forward:
                raise CannotSync(
                    f"sync_bn: {name or 'the model'} is a {type(module).__qualname__}, which has a forward of its own; "
                    "allowed are torch's BatchNorm layers and classes that leave their forward as it is"
                )
            _reclass(module, _synced(type(module)))
        module._sync = sync  # type: ignore[assignment]  # noqa: SLF001
        converted.append(name)
    return converted


def apply(settings: SyncBn | None, model: nn.Module) -> list[str]:
    """Convert `model` as the configuration says; the names of the layers. Called by all ranks, in a process group."""
    if settings is None:
        return []
    return convert(model, groups_of(settings.group) if settings.group else None)


def revert(model: nn.Module) -> list[str]:
    """Undo `convert`, in place. Returns the names of the layers that are plain again."""
    reverted = []
    for name, module in model.named_modules():
        if isinstance(module, SyncBatchNorm):
            del module._sync  # noqa: SLF001
            _reclass(module, module.plain)
            reverted.append(name)
    return reverted


def groups_of(size: int) -> dist.ProcessGroup | None:
    """The group of a rank where neighbours by `size` share statistics, the last one what is left. Called by all ranks.

    None where `size` is the world's or more: all ranks.
    """
    world = dist.get_world_size()
    if size >= world:
        return None
    mine = None
    for first in range(0, world, size):  # every rank makes every group, in the same order
        ranks = list(range(first, min(first + size, world)))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            mine = group
    return mine


@contextmanager
def uncounted() -> Iterator[None]:
    """What this rank feeds counts for nothing: for a rank without samples whose model cannot take an empty batch.

    It runs any sample at a loss weight of 0 and takes its part in every collective.
    """
    token = _counted.set(False)
    try:
        yield
    finally:
        _counted.reset(token)


@contextmanager
def alone() -> Iterator[None]:
    """Each rank for itself: converted layers are plain here, and no collective runs."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def _reclass(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind  # allowed: modules have no slots, all are laid out alike


def _synced(plain: type[_BatchNorm]) -> type[SyncBatchNorm]:
    if plain not in _KINDS:
        _KINDS[plain] = type(f"Sync{plain.__name__}", (SyncBatchNorm, plain), {"plain": plain})
    return _KINDS[plain]


_KINDS: dict[type[_BatchNorm], type[SyncBatchNorm]] = {}


def _new(plain: type[_BatchNorm], *arguments: Any) -> SyncBatchNorm:
    kind = _synced(plain)
    return kind.__new__(kind, *arguments)


def _size(group: _Group) -> int:
    return dist.get_world_size(group.members) if dist.is_available() and dist.is_initialized() else 1


# Torch 2.13 has renamed it, and warns of the old name.
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def _gather(part: Tensor, group: _Group) -> Tensor:
    """All ranks' `part`, a row each."""
    rows = part.new_empty(_size(group), part.numel())
    if dist.get_backend(group.members) == "gloo":
        dist.all_gather(list(rows.unbind(0)), part, group.members)
    else:
        _gather_into(rows, part, group.members)
    return rows


class _normalise(torch.autograd.Function):  # noqa: N801  # used as a function
    """(output, mean, unbiased variance) of a layer's input over all ranks of the group."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd passes no keywords
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: _Group, kernels: Kernels
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous(memory_format=_format(x))
        counted = _counted.get() and x.numel() > 0
        moments = kernels.merge(x, _gather(kernels.pack(x, counted=counted, eps=eps), group), eps)
        wide, shift = _widened(weight, x), _widened(bias, x)
        output = kernels.normalise(x, moments, wide, shift, eps) if x.numel() else torch.empty_like(x)
        ctx.save_for_backward(x, weight, *moments)
        ctx.group, ctx.kernels, ctx.counted = group, kernels, counted
        ctx.mark_non_differentiable(moments.mean, moments.var)
        ctx.set_materialize_grads(False)
        return output, moments.mean, moments.var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        moments, kernels = Moments(*saved), ctx.kernels
        # Kernels that read both take them in one format.
        dy = torch.zeros_like(x) if dy is None else dy.contiguous(memory_format=_format(x))
        if x.numel():
            sums = kernels.reduce(dy, x, moments)
        else:
            sums = torch.zeros(2, x.shape[1], dtype=moments.mean.dtype, device=x.device)
        dx = dweight = dbias = None
        if weight is not None and ctx.needs_input_grad[1]:
            dweight = (sums[1] * moments.invstd).to(weight.dtype)
        if weight is not None and ctx.needs_input_grad[2]:
            dbias = sums[0].to(weight.dtype)
        if ctx.needs_input_grad[0]:
            totals = sums.clone()
            dist.all_reduce(totals, group=ctx.group.members)
            wide = _widened(weight, x)
            if ctx.counted:
                dx = kernels.grad_input(dy, x, moments, wide, totals)
            else:  # it moved no statistic: only the scale is between it and the output
                dx = (dy * per_channel(scale(moments, wide), x)).to(x.dtype)
        return dx, dweight, dbias, None, None, None


def _widened(vector: Tensor | None, x: Tensor) -> Tensor | None:
    return None if vector is None else vector.to(statistics_dtype(x))


def _format(x: Tensor) -> torch.memory_format:
    """The memory format that torch's kernels shall take `x` in: channels last where it is, else contiguous."""
    last: dict[int, torch.memory_format] = {4: torch.channels_last, 5: torch.channels_last_3d}
    wanted = last.get(x.dim(), torch.contiguous_format)
    return wanted if x.is_contiguous(memory_format=wanted) else torch.contiguous_format
