"""The section `loss`: the registered losses and their arguments."""

from typing import Annotated

from pydantic import Field, SerializeAsAny

from relight_trainer.registry import Arguments, Entry, Table, named


class CrossEntropy(Arguments):
    """For logits (n, classes, ...) and labels (n, ...)."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="The share of each target that goes to all classes.")


class Mse(Arguments):
    """Squared differences, their mean over a sample's numbers."""


class BinaryCrossEntropy(Arguments):
    """For logits and targets in 0..1 of the same shape, its mean over a sample's numbers."""


LOSSES: Table = {
    "cross_entropy": Entry("relight_trainer.losses:CrossEntropy", CrossEntropy),
    "mse": Entry("relight_trainer.losses:Mse", Mse),
    "binary_cross_entropy": Entry("relight_trainer.losses:BinaryCrossEntropy", BinaryCrossEntropy),
}
LossSettings = Annotated[SerializeAsAny[Arguments], named(LOSSES)]
