"""Tensors made small enough to be shown: histograms and pictures of feature maps. The numpy half needs no torch."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from relight_trainer.observe.tensorboard import Histogram, Pixels

BINS = 30
_HEAD = 6  # finite values, others, least, greatest, sum, sum of squares
_GAP = 1  # pixels between the maps of a grid


@torch.no_grad()
def reduced(values: Tensor) -> Tensor:
    """Of one value or more: (6 + 2 BINS,) float64 on `values`' device, from which `histogram` makes one. Never waits for the device.

    Bins are equally wide between the least and the greatest finite value.
    """
    flat = values.detach().reshape(-1)
    flat = flat if flat.dtype in {torch.float32, torch.float64} else flat.float()
    finite = torch.isfinite(flat)
    ordered = torch.where(finite, flat, math.inf).sort().values  # what is not finite comes last
    exact = torch.where(finite, flat, 0).double()
    low, high = ordered[0], torch.where(finite, flat, -math.inf).amax()
    inner = torch.arange(1, BINS, device=flat.device, dtype=flat.dtype) / BINS
    limits = torch.cat([low + (high - low) * inner, high[None]])
    below = torch.searchsorted(ordered, limits, right=True)
    counts = torch.diff(below, prepend=below.new_zeros(1))
    total = finite.sum()
    head = torch.stack([total, (~finite).sum(), low, high, exact.sum(), exact.square().sum()])
    return torch.cat([head.double(), limits.double(), counts.double()])


def histogram(numbers: npt.NDArray[np.float64]) -> tuple[Histogram | None, int]:
    """The histogram in what `reduced` gave, None where no value was finite; and how many were not."""
    count, others, low, high, total, squares = (float(n) for n in numbers[:_HEAD])
    if count == 0:
        return None, int(others)
    limits, counts = numbers[_HEAD:].reshape(2, BINS).tolist()
    if low == high:
        limits, counts = [high], [count]
    return Histogram(low, high, count, total, squares, limits, counts), int(others)


def sample_of(output: Tensor) -> Tensor | None:
    """What of a layer's output is drawn, a copy (maps, height, width): the first sample's maps, else one picture.

    (batch, maps, h, w): the maps of sample 0; (batch, tokens, features): sample 0; (batch, features): the batch.
    """
    match output.dim():
        case 4 if output.shape[0]:
            drawn = output[0]
        case 3 if output.shape[0]:
            drawn = output[:1]
        case 2:
            drawn = output[None]
        case _:
            return None
    return drawn.detach().clone() if drawn.numel() else None


def grid(maps: npt.NDArray[np.float32], most: int) -> Pixels:
    """The first `most` of `maps` (n, h, w) in a nearly square grid, each from black (its least) to white.

    A map that is the same all over is black, and so is what is not finite.
    """
    maps = maps[:most]
    count, height, width = maps.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    page = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP), np.uint8)
    for i, one in enumerate(maps):
        top, left = i // columns * (height + _GAP), i % columns * (width + _GAP)
        page[top : top + height, left : left + width] = _grey(one.astype(np.float64))
    return page


def _grey(one: npt.NDArray[np.float64]) -> Pixels:
    finite = np.isfinite(one)
    if not finite.any():
        return np.zeros(one.shape, np.uint8)
    low, high = one[finite].min(), one[finite].max()
    span = high - low or 1.0
    scaled: Pixels = np.where(finite, (one - low) / span * 255, 0).round().astype(np.uint8)
    return scaled
