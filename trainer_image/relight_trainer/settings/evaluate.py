"""The section `evaluate`."""

from pydantic import Field

from relight_trainer.settings.spans import TrainingLength
from relight_trainer.settings.supernet import Recalibration
from relight_trainer.strict import StrictModel


class Evaluate(StrictModel):
    every: TrainingLength | None = Field(None, description="Also during training, this often; at its end always.")
    recalibrate: Recalibration | None = Field(
        None,
        description="Evaluate with batch norm statistics computed anew from training samples; a supernet has its own "
        "`supernet.recalibrate`.",
    )
