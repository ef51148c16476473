"""The section `observe`: what is shown of a training, and where. What is off costs nothing."""

from collections.abc import Iterator
from typing import Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from relight_trainer.settings.spans import Span, TrainingSpan
from relight_trainer.strict import StrictModel, located, problem


class FeatureMaps(StrictModel):
    layers: list[str] = Field(min_length=1, description="Patterns of modules' dotted paths, such as layer1.*.")
    every: TrainingSpan = Field(
        Span(500, "st"), description="How often, in addition to the first step: 500st shows the steps 1, 500, 1000, ..."
    )
    most: int = Field(64, ge=1, le=1024, description="Maps of one layer in a picture.")


class Histograms(StrictModel):
    parameters: list[str] = Field(["*"], description="Patterns of parameters' names.")
    gradients: list[str] = Field([], description="Patterns of parameters whose gradients are shown.")
    every: TrainingSpan = Field(
        Span(500, "st"), description="How often, in addition to the first step: 500st shows the steps 1, 500, 1000, ..."
    )


class Observe(StrictModel):
    folder: str | None = Field(
        None, description="Where everything below goes; the job's checkpoint folder where it is not given."
    )
    tensorboard: bool = Field(False, description="Curves, and the pictures below, for TensorBoard.")
    jsonl: bool = Field(False, description="Every logged value as a line of metrics.jsonl.")
    feature_maps: FeatureMaps | None = Field(None, description="Pictures of layers' outputs.")
    histograms: Histograms | None = Field(None, description="Histograms of parameters and gradients.")
    time_split: bool = Field(True, description="Where the time of a step goes, and what holds the training up.")
    machine: bool = Field(True, description="CPU, memory, IO and GPUs of the member beside the logged values.")
    profile_steps: int = Field(5, ge=1, le=1000, description="Steps in a trace of the profiler, when one is asked for.")
    memory_history: bool = Field(False, description="Record CUDA allocations, for the snapshot after running out.")
    find_leaks: bool = Field(
        False, description="Fail where something keeps the autograd graph of an earlier step alive; for debugging."
    )

    @model_validator(mode="after")
    def _pictures_have_a_place(self) -> Self:
        errors = list(self._unshown())
        if errors:
            raise ValidationError.from_exception_data("observe", errors)
        return self

    def _unshown(self) -> Iterator[InitErrorDetails]:
        for name in ("feature_maps", "histograms"):
            if getattr(self, name) is not None and not self.tensorboard:
                error = problem("conflict", "is shown in TensorBoard alone, which is off", allowed="tensorboard: true")
                yield located(error, (name,), "tensorboard: false")
