"""The section `ema`: a moving average of the weights."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from relight_trainer.strict import StrictModel


class EmaArguments(StrictModel):
    """Average = decay * average + (1 - decay) * weights, after each optimizer step that was taken."""

    decay: float = Field(0.9999, ge=0, lt=1, description="0.9999 looks back over about 10000 steps.")
    warmup: bool = Field(True, description="Step n decays by (1 + n) / (10 + n) while that is less.")


def _from_number(value: Any) -> Any:
    return {"decay": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value


EmaSettings = Annotated[EmaArguments, BeforeValidator(_from_number)]
