"""The section `optimizer`."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from relight_trainer.settings.choice import kinds
from relight_trainer.strict import StrictModel, located, problem


class Sgd(StrictModel):
    type: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0, description="The peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Where the schedule does not cycle it.")
    nesterov: bool = Field(True, description="Nesterov's momentum.")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty.")

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            error = problem("conflict", "nesterov needs a momentum above 0", allowed="false, or a momentum")
            raise ValidationError.from_exception_data("nesterov", [located(error, ("nesterov",), True)])
        return self


class AdamW(StrictModel):
    type: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0, description="The peak learning rate.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Where the schedule does not cycle it.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay.")


OPTIMIZERS: Mapping[str, type[StrictModel]] = {"sgd": Sgd, "adamw": AdamW}
OptimizerSettings = Annotated[Sgd | AdamW, kinds(OPTIMIZERS)]
