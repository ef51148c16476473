"""The section `init_from`: weights of another training that a new one begins with."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from relight_trainer.settings.names import Patterns
from relight_trainer.strict import StrictModel, problem


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise problem("regex", f"not a regular expression: {error}", allowed=r"such as ^encoder\.") from None
    return value


class Rename(StrictModel):
    """A change of names in the file before they are looked for in the model."""

    pattern: Annotated[str, AfterValidator(_expression)] = Field(description="A regular expression (Python's).")
    to: str = Field("", description=r"What stands in its place; \1 is its first group.")


class InitFrom(StrictModel):
    """Weights only: optimizer, schedule and cursor begin anew. What a resume restores comes before it."""

    path: str = Field(
        min_length=1, description="A .pt, .pth, .safetensors, DCP folder, checkpoint or job's folder; or its URL."
    )
    policy: Literal["strict", "shape_tolerant", "subset"] = Field(
        "strict",
        description="strict: names and shapes are the model's; shape_tolerant: of another shape stays fresh; "
        "subset: what is missing stays fresh too, and what the model lacks is left out.",
    )
    key: str | None = Field(None, description="Where the weights are in the file, such as model or nets.teacher.")
    ema: bool = Field(False, description="The moving average of the weights instead of the weights.")
    rename: list[Rename] = Field([], description="Each {pattern, to}, one after the other.")
    only: Patterns | None = Field(
        None,
        description="The part of the model that the file is for, such as teacher.*: `policy` and `min_match` apply to "
        "this part only, and all other weights stay fresh. Default: the whole model.",
    )
    min_match: float = Field(
        0.9, ge=0, le=1, description="The share of the model's tensors, or of those in `only`, that must be found."
    )


def _from_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


InitFromSettings = Annotated[InitFrom, BeforeValidator(_from_path)]
