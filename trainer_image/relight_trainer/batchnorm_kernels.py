"""The arithmetic of batch norm over several ranks, for the CPU and for CUDA: what is between the two collectives.

Statistics are at least float32, whatever the input is (`statistics_dtype`), and are merged from each rank's mean and
spread (Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979), never
from sums of squares, which cancel.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import batch_norm


class Moments(NamedTuple):
    """What the values of all ranks together give; each (channels,) and in the statistics' dtype, `counts` apart."""

    mean: Tensor
    invstd: Tensor
    var: Tensor  # unbiased: what running_var learns
    counts: Tensor  # (ranks,): each rank's values per channel


class Kernels(Protocol):
    """One device's way. `x` and `dy` are (rows, channels, ...), weight and bias in the statistics' dtype."""

    def pack(self, x: Tensor, *, counted: bool, eps: float) -> Tensor:
        """A rank's part of the statistics, (2 * channels + 1,): what the forward pass gathers."""

    def merge(self, x: Tensor, gathered: Tensor, eps: float) -> Moments:
        """The moments out of all ranks' parts, (ranks, 2 * channels + 1)."""

    def normalise(self, x: Tensor, moments: Moments, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """`x` with mean 0 and variance 1 per channel, then scaled and shifted, in the dtype of `x`."""

    def reduce(self, dy: Tensor, x: Tensor, moments: Moments) -> Tensor:
        """A rank's sums per channel of dy and of dy * (x - mean), (2, channels): what the backward pass reduces."""

    def grad_input(self, dy: Tensor, x: Tensor, moments: Moments, weight: Tensor | None, sums: Tensor) -> Tensor:
        """The gradient of `x`, in its dtype; `sums` are those of all ranks."""


def statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """(channels,) as it broadcasts against (rows, channels, ...)."""
    return vector.view(-1, *[1] * (like.dim() - 2))


def reduced_dims(x: Tensor) -> list[int]:
    return [d for d in range(x.dim()) if d != 1]


def scale(moments: Moments, weight: Tensor | None) -> Tensor:
    """What an input that moves no statistic is multiplied with, (channels,)."""
    return moments.invstd if weight is None else moments.invstd * weight


class PlainKernels:
    """Of torch's ordinary operations, for any device that has float64. Parts are packed and merged in float64."""

    def pack(self, x: Tensor, *, counted: bool, eps: float) -> Tensor:  # noqa: ARG002  # eps: for the other kernels
        channels = x.shape[1]
        count = x.numel() // channels if counted else 0
        if count == 0:
            return torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
        var, mean = torch.var_mean(x.to(statistics_dtype(x)), reduced_dims(x), correction=0)
        last = torch.full((1,), count, dtype=torch.float64, device=x.device)
        return torch.cat([mean, var, last])

    def merge(self, x: Tensor, gathered: Tensor, eps: float) -> Moments:
        channels = x.shape[1]
        means, variances, counts = torch.split(gathered, [channels, channels, 1], dim=1)
        total = counts.sum().clamp(min=1)
        mean = (counts * means).sum(0) / total
        spread = (counts * (variances + (means - mean) ** 2)).sum(0)
        wanted = statistics_dtype(x)
        return Moments(
            mean.to(wanted),
            (spread / total + eps).rsqrt().to(wanted),
            (spread / (total - 1).clamp(min=1)).to(wanted),
            counts.reshape(-1),
        )

    def normalise(self, x: Tensor, moments: Moments, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        # Torch's fused kernel takes a variance and an eps: these are such that it ends at our invstd.
        var = moments.invstd**-2 - eps
        return batch_norm(x, moments.mean, var, weight, bias, training=False, momentum=0.0, eps=eps)

    def reduce(self, dy: Tensor, x: Tensor, moments: Moments) -> Tensor:
        wide = dy.to(moments.mean.dtype)
        centred = x.to(wide.dtype) - per_channel(moments.mean, x)
        return torch.stack([wide.sum(reduced_dims(x)), (wide * centred).sum(reduced_dims(x))])

    def grad_input(self, dy: Tensor, x: Tensor, moments: Moments, weight: Tensor | None, sums: Tensor) -> Tensor:
        wanted = moments.mean.dtype
        mean_dy, mean_dy_xmu = (sums / moments.counts.sum().clamp(min=1)).to(wanted)
        gradient = x.to(wanted) - per_channel(moments.mean, x)
        gradient = gradient.mul_(per_channel(-mean_dy_xmu * moments.invstd**2, x)).add_(dy)
        gradient.sub_(per_channel(mean_dy, x)).mul_(per_channel(scale(moments, weight), x))
        return gradient.to(x.dtype)


class CudaKernels:
    """Of the fused kernels that torch has for CUDA. No operation here waits for the device."""

    # Torch's merge divides by the count so far: a first rank without values would make it 0 / 0, and taking such
    # ranks out, as torch.nn.SyncBatchNorm does, waits for the device in every layer. This is nothing beside 1.
    _NOTHING = 1e-30

    def pack(self, x: Tensor, *, counted: bool, eps: float) -> Tensor:
        channels = x.shape[1]
        count = x.numel() // channels if counted else 0
        if count == 0:
            part = torch.zeros(2 * channels + 1, dtype=statistics_dtype(x), device=x.device)
            part[channels:-1].fill_(eps**-0.5)  # a variance of 0
            part[-1:].fill_(self._NOTHING)
            return part
        mean, invstd = torch.batch_norm_stats(x, eps)  # type: ignore[no-untyped-call, unused-ignore]
        last = torch.full((1,), count, dtype=mean.dtype, device=x.device)
        return torch.cat([mean, invstd, last])

    def merge(self, x: Tensor, gathered: Tensor, eps: float) -> Moments:
        channels = x.shape[1]
        means, invstds, counts = torch.split(gathered, [channels, channels, 1], dim=1)
        running = gathered.new_zeros(2, channels)  # with a momentum of 1 it becomes this batch's mean and variance
        mean, invstd = torch.batch_norm_gather_stats_with_counts(
            x, means.contiguous(), invstds.contiguous(), running[0], running[1], 1.0, eps, counts.reshape(-1)
        )
        return Moments(mean, invstd, running[1], counts.reshape(-1))

    def normalise(self, x: Tensor, moments: Moments, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        return torch.batch_norm_elemt(x, weight, bias, moments.mean, moments.invstd, eps)

    def reduce(self, dy: Tensor, x: Tensor, moments: Moments) -> Tensor:
        sums = torch.batch_norm_backward_reduce(
            dy, x, moments.mean, moments.invstd, None, input_g=True, weight_g=False, bias_g=False
        )
        return torch.stack(sums[:2])

    def grad_input(self, dy: Tensor, x: Tensor, moments: Moments, weight: Tensor | None, sums: Tensor) -> Tensor:
        counts = moments.counts.to(torch.int32)
        return torch.batch_norm_backward_elemt(dy, x, moments.mean, moments.invstd, weight, sums[0], sums[1], counts)


def kernels_for(x: Tensor) -> Kernels:
    return CudaKernels() if x.is_cuda else PlainKernels()
