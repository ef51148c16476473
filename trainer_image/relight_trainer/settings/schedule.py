"""The section `schedule`."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from relight_trainer.settings.choice import kinds
from relight_trainer.strict import StrictModel


class OneCycle(StrictModel):
    """Torch's OneCycleLR over the whole training, with the optimizer's `lr` as its peak."""

    type: Literal["onecycle"] = "onecycle"
    pct_start: float = Field(0.3, gt=0, lt=1, description="The share of the training in which the rate rises.")
    anneal: Literal["cos", "linear"] = Field("cos", description="The shape of rise and fall.")
    div_factor: float = Field(25.0, ge=1, description="The rate starts at the peak divided by this.")
    final_div_factor: float = Field(1e4, ge=1, description="It ends at its start divided by this.")
    cycle_momentum: bool = Field(True, description="Momentum (beta1 of adamw) falls while the rate rises, and back.")
    base_momentum: float = Field(0.85, ge=0, lt=1, description="At the peak of the rate.")
    max_momentum: float = Field(0.95, ge=0, lt=1, description="At the start and the end.")


class Constant(StrictModel):
    """The optimizer's `lr` throughout."""

    type: Literal["constant"] = "constant"


SCHEDULES: Mapping[str, type[StrictModel]] = {"onecycle": OneCycle, "constant": Constant}
ScheduleSettings = Annotated[OneCycle | Constant, kinds(SCHEDULES)]
