"""The section `train`."""

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from relight_trainer.settings.spans import Span, TrainingLength
from relight_trainer.strict import StrictModel, problem

# apex's levels. Torch's autocast is what O1 was; weights are fp32 throughout, as O2's master weights were.
_LEVELS = {"O0": "fp32", "O1": "fp16", "O2": "fp16", "O3": "fp16"}
Precision = Annotated[
    Literal["fp32", "tf32", "bf16", "fp16"],
    BeforeValidator(lambda value: _LEVELS.get(value, value) if isinstance(value, str) else value),
]


def _number_or_auto(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise problem("count", "not a number of them", allowed="auto, or 1 or more")
    return value


NumberOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)]


class Train(StrictModel):
    duration: TrainingLength = Field(
        Span(15, "ep"), description="Epochs (15ep), optimizer steps (500st), samples (1280000sa) or time (10m)."
    )
    global_batch: int = Field(64, ge=1, description="Samples of one optimizer step, over all workers together.")
    accumulate: NumberOrAuto = Field(
        "auto",
        description="Micro-batches that each worker divides its share of a step into. auto: as `micro_batch` needs.",
    )
    micro_batch: int | None = Field(
        None, ge=1, description="The most samples that a worker takes in one forward pass, where `accumulate` is auto."
    )
    virtual_ranks: NumberOrAuto = Field(
        "auto",
        description="The workers that a step is meant for. In a smaller world each does the part of several, with the "
        "same result. auto: all of the job's.",
    )
    last_batch: Literal["drop", "keep"] = Field(
        "drop",
        description="What becomes of an epoch's tail that is smaller than `global_batch`; kept, it is a step too.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="The root of every random choice.")
    precision: Precision = Field(
        "fp32", description="What the forward pass computes in; apex's O0 is fp32, and O1, O2 and O3 are fp16."
    )
    non_finite: Literal["fail", "skip"] = Field(
        "fail",
        description="What a loss or gradient that is NaN or infinite does: end the job, or leave out the update (on a GPU "
        "the host then waits for each step). fp16 leaves it out always, and ends after 50 in a row.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where the member has a GPU.")
    channels_last: bool = Field(False, description="Images in memory as NHWC: faster convolutions in bf16 and fp16.")
    threads: int = Field(
        1, ge=1, le=1024, description="CPU threads of each worker; another number is another rounding."
    )
    deterministic: bool = Field(True, description="Only operations that give the same bits each time.")
    log_every: int = Field(10, ge=1, description="Optimizer steps between two reports of the loss.")

    def micro_batches(self, workers: int) -> int:
        """Micro-batches of each of `workers` in one step."""
        if self.accumulate != "auto":
            return self.accumulate
        return math.ceil(math.ceil(self.global_batch / workers) / (self.micro_batch or self.global_batch))
