"""The section `clip`: gradients bounded before each step."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from relight_trainer.settings.choice import kinds
from relight_trainer.settings.names import Patterns
from relight_trainer.strict import StrictModel


class ClipNorm(StrictModel):
    """All gradients together are scaled down to a norm of at most `max`."""

    type: Literal["norm"] = "norm"
    max: float = Field(1.0, gt=0, description="The norm of all gradients together, at most.")
    order: float = Field(2.0, ge=1, description="Of the norm.")


class ClipValue(StrictModel):
    """Each element of each gradient is kept within -max and max."""

    type: Literal["value"] = "value"
    max: float = Field(1.0, gt=0, description="Of an element's magnitude.")


class ClipAgc(StrictModel):
    """Adaptive: each unit's gradient to a share of the unit's weights. Brock et al. 2021, arXiv:2102.06171."""

    type: Literal["agc"] = "agc"
    factor: float = Field(0.01, gt=0, description="The gradient's norm, at most, as a share of the weights' norm.")
    eps: float = Field(1e-3, gt=0, description="The weights' norm counts as at least this.")
    but: Patterns = Field([], description="Parameters or modules that are left alone: the last layer, by the paper.")


CLIPS: Mapping[str, type[StrictModel]] = {"norm": ClipNorm, "value": ClipValue, "agc": ClipAgc}
AnyClip = ClipNorm | ClipValue | ClipAgc
ClipSettings = Annotated[SerializeAsAny[AnyClip], kinds(CLIPS)]
