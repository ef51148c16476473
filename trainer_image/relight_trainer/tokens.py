"""A step's loss as the mean over the tokens of the whole global batch, however they are dealt out."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from relight_trainer.hooks import Hook
from relight_trainer.objective import split
from relight_trainer.run import Run
from relight_trainer.windows import Dealer, Part


class TokenMean(Hook):
    """Makes the gradient of the samples' mean that of the tokens' mean.

    The step's losses are sums over tokens, weighted by samples. How many tokens there are in all is known once every
    batch has come, and need not be earlier: gradients are linear in the weight, so that they are multiplied at the end,
    with one all-reduced number. The mean of each micro-batch's mean would give tokens of short samples more weight.
    """

    order = -1  # other hooks see the gradients that count

    def __init__(self, count: Callable[[Any], Tensor], dealer: Dealer, size: Callable[[int], int]) -> None:
        """`count`: the tokens of a target that count, a whole number in a tensor; `size`: the samples of a step."""
        self._count = count
        self._dealer = dealer
        self._size = size
        self._parts: list[Part] = []
        self._tokens = torch.zeros((), dtype=torch.int64)

    def step_begin(self, run: Run) -> None:
        self._parts = self._dealer.parts(run.step)
        self._tokens = torch.zeros((), dtype=torch.int64, device=run.device)

    def data_ready(self, run: Run) -> None:
        if self._parts[run.micro].samples:
            self._tokens += self._count(split(run.batch)[2])

    def gradients_ready(self, run: Run) -> None:
        if run.world > 1:
            dist.all_reduce(self._tokens)
        # Where no token counts, the sums are zero, and so is the gradient.
        times = self._size(run.step) / self._tokens.clamp(min=1).double()
        for parameter in run.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(times)
        assert run.loss is not None
        run.loss = run.loss * times
