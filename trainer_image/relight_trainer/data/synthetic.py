"""Made-up samples, for measuring and for trying things out."""

from collections.abc import Sequence

import torch

from relight_trainer.data.tensors import Repeated, Samples
from relight_trainer.seeds import stream


def synthetic(
    *, shape: Sequence[int], classes: int, size: int, test_size: int, distinct: int, noise: float, split_seed: int
) -> tuple[Repeated, Repeated]:
    """`size` training and `test_size` test samples of `shape`, float32, `distinct` of each at most."""
    points = _normal((min(classes, distinct), *shape), stream(split_seed, "points"))

    def part(name: str, count: int) -> Repeated:
        labels = torch.arange(min(count, distinct)) % classes
        noises = _normal((len(labels), *shape), stream(split_seed, name))
        return Repeated(Samples(noises.mul_(noise).add_(points[labels]), labels), count)

    return part("train", size), part("test", test_size)


def _normal(shape: Sequence[int], seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
