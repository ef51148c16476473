"""Keeping the ranks' models equal, bit for bit: DDP with a bucket order that never varies, and equal buffers."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def replicate(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    """`module`, which is on `device` already, in DDP and warmed up."""
    replica = DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)
    replica.broadcast_buffers = False  # EqualBuffers does it; the constructor's argument is deprecated in torch 2.13
    warm_up(replica)
    return replica


def warm_up(replica: DistributedDataParallel) -> None:
    """Bring DDP's buckets into their final order, which depends on the parameters alone.

    DDP rebuilds its buckets after the first backward of a process, in the order in which gradients came, and then
    sums in another order: a resumed process would differ from one that never stopped. Two backwards through a stand-in
    for the module's forward settle it, in every process alike. No user code runs and no random number is drawn;
    weights, buffers and gradients are as before.
    """
    module = replica.module
    parameters = [p for p in module.parameters() if p.requires_grad]

    def stand_in(*_: object, **__: object) -> Tensor:
        return torch.stack([p.reshape(-1)[:1].sum().float() * 0.0 for p in parameters]).sum()

    before = module.__dict__.get("forward")
    training = module.training
    module.forward = stand_in
    module.train()
    try:
        for _ in range(2):
            replica().backward()
            replica.zero_grad(set_to_none=True)
    finally:
        del module.forward
        if before is not None:
            module.forward = before
        module.train(training)


class EqualBuffers:
    """Makes the buffers of `modules` (batch statistics, mostly) rank 0's, in one broadcast.

    DDP's own broadcast comes before the next forward, too late: between steps the ranks would hold different states,
    and which one a resumed job got would depend on who survived.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        distinct = {id(b): b for module in modules for b in module.buffers()}
        # the widest first, so that each view into the packed bytes is aligned
        self._buffers = sorted(distinct.values(), key=lambda b: -b.element_size())
        size = sum(b.numel() * b.element_size() for b in self._buffers)
        self._packed = torch.empty(size, dtype=torch.uint8, device=device)
        self._views: list[Tensor] = []
        start = 0
        for buffer in self._buffers:
            end = start + buffer.numel() * buffer.element_size()
            self._views.append(self._packed[start:end].view(buffer.dtype).view(buffer.shape))
            start = end

    @torch.no_grad()
    def sync(self) -> None:
        if not self._buffers or dist.get_world_size() == 1:
            return
        if dist.get_rank() == 0:
            torch._foreach_copy_(self._views, self._buffers)  # the one copy of a list that torch has
        dist.broadcast(self._packed, 0)
        if dist.get_rank() != 0:
            torch._foreach_copy_(self._buffers, self._views)
