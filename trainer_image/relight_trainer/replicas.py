"""Keeping the ranks' models equal, bit for bit: DDP with a bucket order that never varies, and equal buffers."""

import inspect
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from relight_trainer.buffer_layouts import Agreement, layout_agreement
from relight_trainer.buffers import Kept, Packed, Places
from relight_trainer.comm_hooks import compress
from relight_trainer.modes import mode
from relight_trainer.settings.ddp import Ddp


def replicate(
    module: nn.Module, device: torch.device, settings: Ddp | None = None, *, find_unused: bool = False
) -> DistributedDataParallel:
    """`module`, which is on `device` already, in DDP and warmed up."""
    settings = settings or Ddp()
    replica = DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=find_unused,
        **_known(settings),
    )
    replica.broadcast_buffers = False  # EqualBuffers does it; the constructor's argument is deprecated in torch 2.13
    compress(replica, settings)
    own_sparse_gradients(replica)
    warm_up(replica)
    return replica


def own_sparse_gradients(replica: DistributedDataParallel) -> None:
    """Give each sparse gradient memory of its own, before DDP divides it in place.

    The values of an embedding's sparse gradient are the memory of the gradient of its output, which other parts of the
    graph may still read: with `table(i) + linear(x)`, plain DDP (torch 2.13) halves the gradients of `linear` on two
    ranks.
    """
    handles = [
        parameter.register_hook(lambda gradient: gradient.clone())  # type: ignore[no-untyped-call]
        for parameter, is_sparse in zip(*reduced(replica), strict=True)
        if is_sparse
    ]
    if handles:
        weakref.finalize(replica, lambda: [handle.remove() for handle in handles])


def _known(settings: Ddp) -> dict[str, Any]:
    """The settings that are arguments of this torch's DDP: they come and go with its versions."""
    wanted = {
        "bucket_cap_mb": settings.bucket_cap_mb,
        "gradient_as_bucket_view": settings.gradient_as_bucket_view,
        "static_graph": settings.static_graph,
    }
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {name: value for name, value in wanted.items() if name in known and value is not None}


def warm_up(replica: DistributedDataParallel) -> None:
    """Bring DDP's buckets into their final order, which depends on the parameters alone.

    DDP rebuilds its buckets after the first backward of a process, in the order in which gradients came, and then
    sums in another order: a resumed process would differ from one that never stopped. Two backwards through a stand-in
    for the module's forward settle it, in every process alike. No user code runs and no random number is drawn;
    weights, buffers and gradients are as before.
    """
    for _ in range(2):
        take_part(replica)
        replica.zero_grad(set_to_none=True)


def take_part(replica: DistributedDataParallel) -> None:
    """A backward pass without a sample: gradients of zero for all parameters, and none of the user's code."""
    parameters, sparse = reduced(replica)

    def stand_in(*_: object, **__: object) -> Tensor:
        return torch.stack(
            [_nothing_of(p, is_sparse).float() * 0.0 for p, is_sparse in zip(parameters, sparse, strict=True)]
        ).sum()

    with mode(replica.module, training=True), _instead_of_forward(replica.module, stand_in):
        replica().backward()


def reduced(replica: DistributedDataParallel) -> tuple[list[nn.Parameter], list[bool]]:
    """The parameters whose gradients DDP reduces, in its reducer's order, and which of them have sparse gradients.

    As long as the same ones learn as when `replica` was made.
    """
    found: Any = replica
    parameters, sparse = found._build_params_for_reducer()  # noqa: SLF001  # no public name in torch 2.13
    return parameters, sparse


def _nothing_of(parameter: nn.Parameter, is_sparse: bool) -> Tensor:
    """A number that depends on `parameter`, whose gradient is of the kind that DDP expects: sparse ones are empty."""
    if is_sparse:
        no_rows = torch.zeros(0, dtype=torch.long, device=parameter.device)
        return nn.functional.embedding(no_rows, parameter, sparse=True).sum()
    return parameter.reshape(-1)[:1].sum()


def without_samples(replica: DistributedDataParallel) -> None:
    """A forward pass that uses no parameter, for a rank that has no sample: `Reduction.finish` does the rest."""
    with mode(replica.module, training=True), _instead_of_forward(replica.module, lambda *_, **__: None):
        replica()


@contextmanager
def _instead_of_forward(module: nn.Module, stand_in: Any) -> Iterator[None]:
    before = module.__dict__.get("forward")
    module.forward = stand_in
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


class EqualBuffers:
    """Makes the buffers of `modules` (batch statistics, mostly) rank 0's, in one broadcast.

    DDP's own broadcast comes before the next forward, too late: between steps the ranks would hold different states,
    and which one a resumed job got would depend on who survived. Those of a step that is dropped can be brought back.
    A step may replace buffers and change their shapes: where all ranks do the same, they stay equal.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device, agree: Agreement | None = None) -> None:
        """`agree` is asked in the first `sync`, and in each one that finds other names, shapes or dtypes than the last.

        Raises UnsupportedBuffer.
        """
        self._places = Places(modules)
        self._kept = Kept(self._places, device)
        self._device = device
        self._alone = dist.get_world_size() == 1
        self._rank = dist.get_rank()
        self._packed = Packed({} if self._alone else self._places.named, device)
        self._version = -1
        self._layout: list[str] | None = None
        self._syncs = 0
        self._agree = agree or layout_agreement("relight/buffers")

    def keep(self) -> None:
        """As they are now, until the next `sync`."""
        self._kept.keep()

    def bring_back(self) -> None:
        """As they were when kept, those too that have been replaced, or have changed their shapes, or came late."""
        self._kept.bring_back()

    def sync(self) -> None:
        """Called by all ranks after the same step. Raises BuffersDiffer where their buffers have different shapes."""
        if self._alone:
            return
        self._syncs += 1
        version = self._places.look()
        if version != self._version:
            self._fit()
            self._version = version
        if not self._packed.bytes.numel():
            return
        if self._rank == 0:
            self._packed.save()
        dist.broadcast(self._packed.bytes, 0)
        if self._rank != 0:
            self._packed.load()

    def _fit(self) -> None:
        if not self._packed.refit(self._places.named):
            self._packed = Packed(self._places.named, self._device)
        layout = self._places.layout()
        if layout != self._layout:
            self._agree(layout, self._syncs)
            self._layout = layout


class VirtualBuffers:
    """The buffers of a rank that runs several virtual ranks one after another.

    Each begins with the buffers that the step began with, as in a world where it is a rank of its own; those that
    the first leaves are kept, for they are rank 0's in that world. Where virtual rank 0 has no sample, they stay as they
    were.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        places = Places([module])
        self._begun = Kept(places, device)
        self._first = Kept(places, device)
        self._runs: int | None = None
        self._kept = False
        self._counts = True

    def begin(self, virtual_rank: int) -> None:
        """The next forward is `virtual_rank`'s; they come in order."""
        if self._runs is None:
            self._begun.keep()
            self._counts = virtual_rank == 0
        elif virtual_rank != self._runs:
            if not self._kept:
                self._first.keep()
                self._kept = True
            self._begun.bring_back()
        self._runs = virtual_rank

    def end(self) -> None:
        """The step's last forward is done."""
        if not self._counts:
            self._begun.bring_back()
        elif self._kept:
            self._first.bring_back()
        self._runs, self._kept, self._counts = None, False, True
