"""From a batch to the loss: the user's model and loss, whatever shape their batch has.

A batch is a tuple or list, its last part the target and the others the model's arguments; or a mapping, whose
`target`, `targets`, `label` or `labels` is the target and whose other entries are the model's arguments by name.
A model with `training_step(batch, run)` computes the loss itself: it returns the mean loss over the batch's samples,
alone or as `loss` in a mapping. `run` is a `StepContext`. docs/own-models.md has examples.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from relight_trainer.data.labels import KnownLabels
from relight_trainer.losses import LossMisfit
from relight_trainer.targets import Criterion, Targets

if TYPE_CHECKING:
    from relight_trainer.step_context import StepContext

TARGETS = ("target", "targets", "label", "labels")


class NoTarget(Exception):
    """The batch has no target for the loss."""


def split(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """(arguments, keyword arguments, target) of a batch. Raises NoTarget."""
    if isinstance(batch, (tuple, list)):
        if len(batch) > 1:
            return tuple(batch[:-1]), {}, batch[-1]
    elif isinstance(batch, Mapping):
        key = next((key for key in TARGETS if key in batch), None)
        if key is not None:
            return (), {name: value for name, value in batch.items() if name != key}, batch[key]
    raise NoTarget(
        f"a batch is a {type(batch).__name__}; allowed: a tuple whose last part is the target, a mapping with one of "
        f"{', '.join(TARGETS)}, or a model with training_step"
    )


class Objective:
    """`replica(batch)` and the loss over it; `criterion` compares the model's output with the target.

    What a criterion gives is the sum over the samples where its `reduction` is "sum", as torch's losses name it; else
    one number is the mean over the samples, and several are the samples' own: equally many for each, whose mean is the
    sample's loss.
    """

    origin = "the loss"
    allowed = "a tensor: one number, or equally many for each sample"

    def __init__(
        self, criterion: Criterion, known: Iterable[KnownLabels | None] = (None,), *, divided: bool = False
    ) -> None:
        """`known`: the labels of each part of the data, None where they are streamed. `divided`: see `Targets`."""
        self.targets = Targets(criterion, known, divided=divided)
        self._sums = getattr(criterion, "reduction", None) == "sum"

    def output(self, replica: nn.Module, batch: Any, run: "StepContext") -> Any:  # noqa: ARG002  # for `training_step`
        if isinstance(batch, (tuple, list)) and len(batch) > 1:  # what `split` says, at once
            return replica(*batch[:-1])
        arguments, keywords, _ = split(batch)
        return replica(*arguments, **keywords)

    def loss(self, output: Any, batch: Any, samples: int) -> Tensor:
        """The sum of the losses of the batch's `samples`."""
        loss, times = self.term(output, batch, samples)
        return loss * times

    def term(self, output: Any, batch: Any, samples: int) -> tuple[Tensor, int]:
        """A number, and how many times it makes the sum of the losses of the batch's `samples`. Raises LossMisfit."""
        loss = self._compared(output, batch)
        if not isinstance(loss, Tensor):
            raise LossMisfit(f"{self.origin} returns {kind_of(loss)}; allowed: {self.allowed}")
        if self._sums:
            return loss, 1
        if not loss.dim():
            return loss, samples
        count = loss.numel()
        if count == samples:
            return loss.sum(), 1
        if count == 1:
            return loss.reshape(()), samples
        # A batch without samples that count has one, or none, to take part with: what its loss is does not matter.
        each, rest = divmod(count, samples or 1)
        if rest or not each:
            raise LossMisfit(
                f"loss: {tuple(loss.shape)}, {count} numbers for {samples} samples; allowed: one number, the mean over "
                'the samples; equally many for each sample; or a criterion with reduction = "sum", whose number is the '
                "sum over the samples"
            )
        return loss.sum() / each, 1

    def _compared(self, output: Any, batch: Any) -> Tensor:
        pair = isinstance(batch, (tuple, list)) and len(batch) > 1
        try:
            return self.targets.compared(output, batch[-1] if pair else split(batch)[2])
        except (TypeError, AttributeError) as error:
            if isinstance(output, Tensor):
                raise
            raise LossMisfit(
                f"the model returns {kind_of(output)}, which the loss cannot take ({error}); allowed: a model that returns a "
                "tensor, a loss of your own that takes what the model returns, or a model with training_step"
            ) from error


class OwnStep(nn.Module):
    """A model's `training_step` as the forward pass of a module: what DDP prepares for is a call of its module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._training_step: Any = model.training_step

    def forward(self, batch: Any, run: "StepContext") -> Any:
        return self._training_step(batch, run)


class OwnObjective(Objective):
    """The objective of a model that has `training_step`."""

    origin = "training_step"
    allowed = "a tensor of one number, or a mapping whose entry `loss` is one"

    def __init__(self) -> None:
        super().__init__(lambda loss, _: loss)

    def output(self, replica: nn.Module, batch: Any, run: "StepContext") -> Any:
        step: Any = getattr(replica, "training_step", replica)  # an evaluation has the model itself
        return step(batch, run)

    def _compared(self, output: Any, batch: Any) -> Tensor:  # noqa: ARG002  # it is in the output
        if isinstance(output, Mapping) and "loss" in output:
            output = output["loss"]
        loss: Tensor = output  # `term` looks whether it is one
        return loss


def kind_of(value: Any) -> str:
    """What `value` is, in words: `a dict with the entries total, aux`."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the entries {', '.join(map(str, value)) or 'none'}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(type(part).__name__ for part in value)}"
    return f"a {type(value).__name__}, {value!r}" if isinstance(value, (int, float)) else f"a {type(value).__name__}"
