"""What examples/blockwise_distillation.py computes, in float64 and with nothing of Relight's or of torch.nn's."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

EPS = 1e-5


def normalised(x: Tensor, mean: Tensor, var: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    wide = (1, -1, 1, 1)
    scaled = (x - mean.reshape(wide)) / (var.reshape(wide) + EPS).sqrt()
    return scaled * state[f"{name}.weight"].reshape(wide) + state[f"{name}.bias"].reshape(wide)


def teacher_features(state: Mapping[str, Tensor], images: Tensor) -> list[Tensor]:
    """The images, and what each of the teacher's blocks gives, with the statistics that the teacher has."""
    found = [images]
    for block, layers in ((0, (0, 1)), (1, (1, 2))):
        x = found[-1] if block == 0 else max_pool2d(found[-1], 2)
        for layer in layers:
            name = f"teacher.{block}.{layer}"
            x = conv2d(x, state[f"{name}.0.weight"], padding=1)
            mean, var = state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"]
            x = normalised(x, mean, var, state, f"{name}.1").clamp(min=0)
        found.append(x)
    return found


def convolved(state: Mapping[str, Tensor], block: int, option: int, x: Tensor) -> Tensor:
    """The chosen convolution of the student's `block`: what its batch norm is given."""
    name = f"student.{block}.{block}.options.{option}"  # in block 1 the pooling comes first
    if block == 1:
        x = max_pool2d(x, 2)
    if option < 2:
        weight = state[f"{name}.weight"]
        return conv2d(x, weight, padding=weight.shape[-1] // 2)
    weight = state[f"{name}.0.weight"]
    x = conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])
    return conv2d(x, state[f"{name}.1.weight"])


def statistics(
    state: Mapping[str, Tensor], block: int, option: int, calibration: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The mean and unbiased variance of everything that the block's batch norm is given, with this option."""
    given = [convolved(state, block, option, teacher_features(state, images)[block]) for images in calibration]
    values = torch.cat(given).transpose(0, 1).flatten(1)
    mean = values.sum(1) / values.shape[1]
    return mean, ((values - mean[:, None]) ** 2).sum(1) / (values.shape[1] - 1)


def block_loss(
    state: Mapping[str, Tensor], block: int, option: int, calibration: Sequence[Tensor], test: Tensor
) -> float:
    mean, var = statistics(state, block, option, calibration)
    features = teacher_features(state, test)
    x = convolved(state, block, option, features[block])
    imitated = normalised(x, mean, var, state, f"student.{block}.{block + 1}").clamp(min=0)
    return ((imitated - features[block + 1]) ** 2).mean().item()


def ranking(tensors: Mapping[str, Tensor], calibration: Sequence[Tensor], test: Tensor) -> list[tuple[str, float]]:
    """Each of the 16 paths and its loss, the best first."""
    state = {name: t.double() for name, t in tensors.items()}
    batches = [images.double() for images in calibration]
    losses = [[block_loss(state, block, option, batches, test.double()) for option in range(4)] for block in (0, 1)]
    rows = [(f"{i}-{j}", losses[0][i] + losses[1][j]) for i in range(4) for j in range(4)]
    return sorted(rows, key=lambda row: row[1])
