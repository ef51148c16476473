"""The section `train`."""

from typing import Literal

from pydantic import Field

from relight_trainer.settings.spans import Span, TrainingSpan
from relight_trainer.strict import StrictModel


class Train(StrictModel):
    duration: TrainingSpan = Field(
        Span(15, "ep"), description="Epochs (15ep), optimizer steps (500st) or samples (1280000sa)."
    )
    global_batch: int = Field(64, ge=1, description="Samples of one optimizer step, over all workers together.")
    seed: int = Field(0, ge=0, lt=2**63, description="The root of every random choice.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="What the forward pass computes in.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where the member has a GPU.")
    threads: int = Field(
        1, ge=1, le=1024, description="CPU threads of each worker; another number is another rounding."
    )
    deterministic: bool = Field(True, description="Only operations that give the same bits each time.")
    log_every: int = Field(10, ge=1, description="Optimizer steps between two reports of the loss.")
