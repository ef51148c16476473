"""The section `sync_bn`: batch norm over all workers."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from relight_trainer.strict import StrictModel


class SyncBn(StrictModel):
    group: int | None = Field(
        None,
        ge=2,
        description="Neighbouring workers that share statistics, for large worlds; none: all workers. A job that trains "
        "on with another number of workers then computes something else.",
    )


def _switch(value: Any) -> Any:
    if isinstance(value, bool):
        return SyncBn() if value else None
    return value


SyncBnSettings = Annotated[SyncBn | None, BeforeValidator(_switch)]  # true and false are its short forms
