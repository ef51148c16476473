"""Batch norm over all ranks."""

from typing import TypeVar

import torch.distributed as dist
from torch import nn

from relight_trainer.sync_batchnorm import convert, revert

Model = TypeVar("Model", bound=nn.Module)


def sync_batch_norm(model: Model, group: dist.ProcessGroup | None = None) -> Model:
    """`model`, whose batch norm layers compute their statistics over all ranks of `group` (None: all ranks).

    Works in place, on the CPU and on CUDA, for batches of different sizes; parameters, buffers, names and hooks stay.
    Convert the model before DistributedDataParallel wraps it. Raises CannotSync for a layer with a `forward` of its own.
    """
    convert(model, group)
    return model


def plain_batch_norm(model: Model) -> Model:
    """`model` with torch's own batch norm layers again, in place: the inverse of `sync_batch_norm`, for export."""
    revert(model)
    return model
