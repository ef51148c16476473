"""Which modules DistributedDataParallel keeps equal."""

import gc
from collections.abc import Iterable

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def replicated_modules() -> set[int]:
    """`id` of every module inside a DistributedDataParallel of this process, whoever made it.

    A script may wrap its model after `client.start`, by itself or by a library: no list of ours would know. Looking through all
    objects takes tenths of a second, so it is done only where the answer matters, once.
    """
    replicas = [o for o in gc.get_objects() if issubclass(type(o), DistributedDataParallel)]
    return {id(part) for replica in replicas for part in replica.modules()}


def outside(module: nn.Module, tensors: Iterable[str], replicated: set[int]) -> list[str]:
    """Those of `tensors`, names in the state of `module`, whose owner is in no DistributedDataParallel."""
    owners = dict(module.named_modules())
    return [name for name in tensors if id(owners.get(name.rpartition(".")[0])) not in replicated]
