"""Keeping the ranks' models equal, bit for bit: DDP with a bucket order that never varies, and equal buffers."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
    warm_up(replica)
    return replica


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
    """A backward pass without a sample: gradients of zero from this rank, and none of the user's code."""
    module = replica.module
    parameters = [p for p in module.parameters() if p.requires_grad]

    def stand_in(*_: object, **__: object) -> Tensor:
        return torch.stack([p.reshape(-1)[:1].sum().float() * 0.0 for p in parameters]).sum()

    with mode(module, training=True), _instead_of_forward(module, stand_in):
        replica().backward()


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


class Packed:
    """Tensors of any types, and room for a copy of them in one run of bytes."""

    def __init__(self, tensors: Iterable[Tensor], device: torch.device) -> None:
        distinct = {id(t): t for t in tensors}
        # the widest first, so that each view into the bytes is aligned
        self._tensors = sorted(distinct.values(), key=lambda t: -t.element_size())
        self.bytes = torch.empty(
            sum(t.numel() * t.element_size() for t in self._tensors), dtype=torch.uint8, device=device
        )
        self._views: list[Tensor] = []
        start = 0
        for tensor in self._tensors:
            end = start + tensor.numel() * tensor.element_size()
            self._views.append(self.bytes[start:end].view(tensor.dtype).view(tensor.shape))
            start = end

    @torch.no_grad()
    def save(self) -> None:
        if self._tensors:
            torch._foreach_copy_(self._views, self._tensors)  # the one copy of a list that torch has

    @torch.no_grad()
    def load(self) -> None:
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._views)


class EqualBuffers:
    """Makes the buffers of `modules` (batch statistics, mostly) rank 0's, in one broadcast.

    DDP's own broadcast comes before the next forward, too late: between steps the ranks would hold different states,
    and which one a resumed job got would depend on who survived. Those of a step that is dropped can be brought back.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        # Of each buffer where it is found, for it may be replaced: by `module.to(device)`, though that changes nothing.
        places = {id(m): m for module in modules for m in module.modules()}.values()
        self._places = [(m._buffers, name) for m in places for name in m._buffers]  # noqa: SLF001
        self._device = device
        self._pack()
        self._idle = not self._packed.bytes.numel() or dist.get_world_size() == 1
        self._rank = dist.get_rank()

    def _pack(self) -> None:
        self._held = [buffers.get(name) for buffers, name in self._places]
        self._packed = Packed((b for b in self._held if b is not None), self._device)

    def _look(self) -> None:
        if any(buffers.get(name) is not held for (buffers, name), held in zip(self._places, self._held, strict=True)):
            self._pack()

    def keep(self) -> None:
        """As they are now, until the next `sync`."""
        self._look()
        self._packed.save()

    def bring_back(self) -> None:
        """As they were when kept."""
        self._packed.load()

    def sync(self) -> None:
        if self._idle:
            return
        self._look()
        if self._rank == 0:
            self._packed.save()
        dist.broadcast(self._packed.bytes, 0)
        if self._rank != 0:
            self._packed.load()


class VirtualBuffers:
    """The buffers of a rank that runs several virtual ranks one after another.

    Each begins with the buffers that the step began with, as in a world where it is a rank of its own; those that
    the first leaves are kept, for they are rank 0's in that world.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._begun = Packed(module.buffers(), device)
        self._first = Packed(module.buffers(), device)
        self._runs: int | None = None
        self._kept = False

    def begin(self, virtual_rank: int) -> None:
        """The next forward is `virtual_rank`'s; they come in order."""
        if self._runs is None:
            self._begun.save()
        elif virtual_rank != self._runs:
            if not self._kept:
                self._first.save()
                self._kept = True
            self._begun.load()
        self._runs = virtual_rank

    def end(self) -> None:
        """The step's last forward is done."""
        if self._kept:
            self._first.load()
        self._runs, self._kept = None, False
