"""Refuses targets that the loss cannot use and names the sample, before a device fails or the loss is wrong in silence.

The labels of a data set that is in memory are compared with the model's outputs at the first batch, all of them. Those
that are streamed are compared as they come: on the CPU torch's own check is named; on a GPU, where such a label would
abort the process, the loss becomes NaN, and `require_right` names the cause when the host looks at it.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relight_trainer.data.errors import BadData
from relight_trainer.data.labels import KnownLabels
from relight_trainer.losses import BinaryCrossEntropy, CrossEntropy, LossMisfit

Criterion = Callable[[Any, Any], Tensor]

_CLASSES = (CrossEntropy, nn.CrossEntropyLoss, nn.NLLLoss)
_WEIGHED_MEANS = (nn.CrossEntropyLoss, nn.NLLLoss)
_SHARES = (BinaryCrossEntropy, nn.BCEWithLogitsLoss, nn.BCELoss)
# Torch repeats the smaller of two shapes here, with a warning: each output is compared with each target.
_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss)
_OUT_OF_BOUNDS = re.compile(r"[Tt]arget (-?[0-9]+) is out of bounds")


class WrongLabel(BadData):
    """The loss cannot use the label in `row` of a batch."""

    def __init__(self, row: int, words: str, place: str | None = None) -> None:
        super().__init__(f"{f'sample {row} of a batch' if place is None else place}: {words}")
        self.row = row
        self._words = words
        self._named = place is not None

    def name(self, place: str) -> None:
        """Say that the sample is `place`, where that is not known yet."""
        if not self._named:
            self.args, self._named = (f"{place}: {self._words}",), True


@dataclass(frozen=True)
class Allowed:
    """What a target may be: `least` to `most`, or `ignored`."""

    least: int
    most: int
    ignored: int | None
    classes: int | None  # how many the model tells apart; None where a target is a number
    can_ignore: bool  # whether the configuration can name a value to ignore

    def outside(self, target: Tensor) -> Tensor:
        """Where `target` is not allowed; NaN is not, and neither is a fraction of a class."""
        outside = ~((target >= self.least) & (target <= self.most))
        if self.classes is not None and target.is_floating_point():
            outside |= target != target.floor()
        return outside if self.ignored is None else outside & (target != self.ignored)

    def words(self, value: float, values: Tensor) -> str:
        """What is wrong with the label `value`, one of `values`, and the way out."""
        shown = f"{value:.0f}" if float(value).is_integer() else str(value)
        if self.classes is None:
            return f"the target is {shown}; allowed: numbers from {self.least} to {self.most}"
        allowed = f"whole numbers from 0 to {self.most}, because the model has {self.classes} outputs"
        if self.ignored is not None:
            allowed += f", or {self.ignored}, which loss.ignore_index leaves out"
        return f"the label is {shown}; allowed: {allowed}. {self._remedy(value, values)}"

    def _remedy(self, value: float, values: Tensor) -> str:
        if not float(value).is_integer():
            return "To predict numbers instead of classes, set loss: {type: mse}"
        least, most = int(values.min()), int(values.max())
        if least == 1 and most == self.classes:
            return "The labels count from 1: subtract 1 from each"
        if value < 0:
            if self.can_ignore and self.ignored is None:
                return f"To leave such samples out of the loss, set loss.ignore_index: {int(value)}"
            return "Number the classes from 0"
        return f"Give the model {most + 1} outputs, or number the classes from 0 without gaps"


class Targets:
    """What is compared with `criterion` in one training."""

    def __init__(
        self, criterion: Criterion, known: Iterable[KnownLabels | None] = (None,), *, divided: bool = False
    ) -> None:
        """`known`: the labels of each part of the data, None where they are streamed.

        `divided`: a step's samples are taken in several parts, so that a mean over a part weighs as its samples do.
        """
        parts = list(known)
        self._criterion = criterion
        self._divided = divided
        self._known = [labels for labels in parts if labels is not None]
        self._streamed = None in parts
        self._begun = False
        self._whole = False  # labels that are floats or short integers become int64
        self._watched: Allowed | None = None
        self._worst: tuple[Tensor, Tensor] | None = None  # the least and the greatest target so far, on the device

    def compared(self, output: Any, target: Any) -> Tensor:
        """What the criterion says of a batch. Raises WrongLabel and LossMisfit where the target does not fit."""
        if not self._begun:
            self._begin(output, target)
        if self._whole:
            target = target.long()
        watched = self._watched
        try:
            if watched is not None:
                return self._compared(output, target, watched)
            return self._criterion(output, target)
        except (IndexError, RuntimeError, ValueError) as error:
            explain(error, self._criterion, output, target)
            raise

    def require_right(self) -> None:
        """Raises WrongLabel where a streamed label on a GPU was out of range. Waits for the device."""
        if self._worst is None or self._watched is None:
            return
        values = torch.stack(self._worst)
        for value in values.tolist():
            if not self._watched.least <= value <= self._watched.most:
                raise WrongLabel(0, self._watched.words(value, values), "a sample of a batch")

    def _begin(self, output: Any, target: Any) -> None:
        """Look at the first batch, and at all labels that are in memory. Raises WrongLabel and LossMisfit."""
        self._begun = True
        if not isinstance(output, Tensor) or type(target) is not Tensor or target.is_meta:
            return
        if isinstance(self._criterion, _ELEMENTWISE) and output.shape != target.shape:
            raise _misfit(output, target, "the same shape for both")
        allowed = allowed_targets(self._criterion, output, target)
        if allowed is None:
            return
        for labels in self._known:
            _require_all(labels, allowed)
        if self._divided and isinstance(self._criterion, _WEIGHED_MEANS) and self._criterion.reduction == "mean":
            self._require_equal_weights(self._criterion, target)
        if allowed.classes is not None and target.dtype is not torch.int64:
            if target.is_floating_point() and self._streamed:
                raise _misfit(output, target, "whole numbers, such as int64, of one class for each place")
            self._whole = True
        if self._streamed and (target.is_cuda or allowed.classes is None):
            self._watched = allowed

    def _require_equal_weights(self, criterion: nn.CrossEntropyLoss | nn.NLLLoss, target: Tensor) -> None:
        """Raises LossMisfit where the criterion's mean is over something that parts of a step have unequally much of."""
        seen = [target, *(labels.values for labels in self._known)]
        if criterion.weight is not None:
            what = "the weights of classes"
        elif any(bool((labels == criterion.ignore_index).any()) for labels in seen):
            what = f"the targets that are not {criterion.ignore_index} (ignore_index)"
        else:
            return
        raise LossMisfit(
            f"loss: {type(criterion).__name__} gives a mean over {what}, which differ in number between "
            "micro-batches and workers: the mean of these means is not that of the global batch. Allowed: loss: {type: cross_entropy, weigh_by: tokens, "
            'ignore_index: ...}, a loss with reduction = "sum" and denominator(target), or one worker and one micro-batch'
        )

    def _compared(self, output: Tensor, target: Tensor, allowed: Allowed) -> Tensor:
        """The same, of streamed targets that torch itself does not check, or only by aborting the process."""
        if not target.numel():
            return self._criterion(output, target)
        counted = target if allowed.ignored is None else torch.where(target == allowed.ignored, 0, target)
        if counted.dtype is torch.bool:
            return self._criterion(output, target)
        low, high = counted.aminmax()
        if not target.is_cuda:
            if low >= allowed.least and high <= allowed.most:
                return self._criterion(output, target)
            row = int(torch.nonzero(allowed.outside(target))[0, 0])
            value = counted[row][allowed.outside(counted[row])].reshape(-1)[0].item()
            raise WrongLabel(row, allowed.words(value, counted))
        worst = self._worst
        self._worst = (low, high) if worst is None else (torch.minimum(worst[0], low), torch.maximum(worst[1], high))
        bounded = counted.clamp(allowed.least, allowed.most)
        if allowed.ignored is not None:
            bounded = torch.where(target == allowed.ignored, target, bounded)
        wrong = (low < allowed.least) | (high > allowed.most)
        loss = self._criterion(output, bounded)
        return loss + torch.where(wrong, math.nan, 0.0).to(loss.dtype)


def allowed_targets(criterion: Criterion, output: Tensor, target: Tensor) -> Allowed | None:
    """What `target` may be, None where the loss or the kind of target does not say."""
    if isinstance(criterion, _SHARES):
        return Allowed(0, 1, None, None, can_ignore=False)
    if not isinstance(criterion, _CLASSES) or not output.dim():
        return None
    if target.is_floating_point() and target.shape == output.shape:
        return None  # a share of each class
    classes = output.shape[1] if output.dim() > 1 else output.shape[0]
    ignored: int | None = criterion.ignore_index
    return Allowed(0, classes - 1, ignored, classes, can_ignore=isinstance(criterion, CrossEntropy))


def explain(error: Exception, criterion: Criterion, output: Any, target: Any) -> None:
    """Raises WrongLabel or LossMisfit from `error`, which `criterion` has raised, where the target explains it."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return
    found = _OUT_OF_BOUNDS.search(str(error))
    if found and target.dim():
        value = int(found[1])
        places = torch.nonzero(target == value)
        if len(places):
            allowed = allowed_targets(criterion, output, target)
            words = allowed.words(value, target) if allowed else f"the loss takes no label {value}"
            raise WrongLabel(int(places[0, 0]), words) from error
    if isinstance(criterion, _CLASSES) and output.dim() > 1 and target.shape != output.shape:
        wanted = (*output.shape[:1], *output.shape[2:])
        if tuple(target.shape) != wanted:
            raise _misfit(
                output, target, f"targets {wanted}, a class for each place, or {tuple(output.shape)}"
            ) from error


def _require_all(labels: KnownLabels, allowed: Allowed) -> None:
    values = labels.values
    outside = allowed.outside(values)
    if outside.any():
        place = torch.nonzero(outside)[0]
        value = values[tuple(place)].item()
        counted = values if allowed.ignored is None else values[values != allowed.ignored]
        raise WrongLabel(int(place[0]), allowed.words(value, counted), labels.name(int(place[0])))


def _misfit(output: Tensor, target: Tensor, allowed: str) -> LossMisfit:
    return LossMisfit(
        f"loss: the model gives {tuple(output.shape)} and the targets are {tuple(target.shape)} of "
        f"{str(target.dtype).removeprefix('torch.')}; allowed: {allowed}"
    )
