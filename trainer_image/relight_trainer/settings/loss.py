"""The section `loss`: the registered losses and their arguments."""

from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from relight_trainer.registry import Arguments, Entry, Table, named


class CrossEntropy(Arguments):
    """For logits (n, classes, ...) and labels (n, ...)."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="The share of each target that goes to all classes.")
    ignore_index: int | None = Field(
        None, description="Targets with this value do not count, such as -100 for padding. null: every target counts."
    )
    weigh_by: Literal["samples", "tokens"] = Field(
        "samples",
        description="What is alike in a step: samples, each the mean over its targets; or tokens, all targets of the "
        "whole global batch that count, whatever samples, micro-batches and workers they are in.",
    )


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
