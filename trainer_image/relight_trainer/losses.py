"""The losses that come with the training core: each gives the sum over the samples of a batch.

Where a sample has several numbers to predict (pixels, positions), its loss is their mean. A loss with `denominator` is
a sum that is divided by that of the whole global batch instead of by its samples.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from relight_agent.exits import ExitCode


class LossMisfit(ValueError):
    """The model's output, the target and the loss do not fit each other."""

    exit_code = ExitCode.BAD_CONFIG


class CrossEntropy(nn.Module):
    """(n, classes, ...) logits and (n, ...) labels"""

    reduction = "sum"
    denominator: Callable[[Tensor], Tensor] | None = None

    def __init__(
        self, label_smoothing: float = 0.0, ignore_index: int | None = None, weigh_by: str = "samples"
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self._smoothing = label_smoothing
        # Torch ignores -100 where nothing else is asked for. No label is this one.
        self._ignored = torch.iinfo(torch.int64).min if ignore_index is None else ignore_index
        if weigh_by == "tokens":
            self.denominator = self._tokens

    def _tokens(self, labels: Tensor) -> Tensor:
        return (labels != self._ignored).sum()

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        total = cross_entropy(
            _wide(logits), labels, reduction="sum", label_smoothing=self._smoothing, ignore_index=self._ignored
        )
        return total if logits.dim() == 2 or self.denominator else total / _numbers_of_a_sample(labels)


class Mse(nn.Module):
    """(n, ...) twice"""

    reduction = "sum"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        total = mse_loss(_wide(output), _like(target, output), reduction="sum")
        return total / _numbers_of_a_sample(output)


class BinaryCrossEntropy(nn.Module):
    """(n, ...) logits and (n, ...) targets in 0..1"""

    reduction = "sum"

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        total = binary_cross_entropy_with_logits(_wide(logits), _like(target, logits), reduction="sum")
        return total / _numbers_of_a_sample(logits)


def _wide(tensor: Tensor) -> Tensor:
    """At least fp32: losses are sums of many small numbers."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _like(target: Tensor, output: Tensor) -> Tensor:
    if target.shape != output.shape:
        if output.shape != (*target.shape, 1):  # one output for each target is that target's
            raise LossMisfit(
                f"loss: the model gives {tuple(output.shape)} and the targets are {tuple(target.shape)}; allowed: the "
                "same shape for both"
            )
        target = target.unsqueeze(-1)
    return target.to(torch.promote_types(output.dtype, torch.float32))


def _numbers_of_a_sample(batch: Tensor) -> int:
    return max(1, batch.numel() // max(1, len(batch)))
