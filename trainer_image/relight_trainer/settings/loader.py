"""The section `loader`: how samples get from the data set to the training, whatever the data set."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from relight_trainer.strict import StrictModel, problem


def _workers(value: Any) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 256
    if not number and value != "auto":
        raise problem("workers", "not a number of loader processes", allowed="auto, or a whole number from 0 to 256")
    return value


class Loader(StrictModel):
    """None of it changes a sample: batches are the same, bit for bit, with any number of loader processes."""

    workers: Annotated[int | Literal["auto"], BeforeValidator(_workers)] = Field(
        "auto",
        description="Loader processes of each worker; 0 loads between the steps. auto: the CPUs that the pod may use, "
        "shared among its workers, 16 at most. Data in memory needs none.",
    )
    prefetch: int = Field(2, ge=1, le=64, description="Batches that each loader process works ahead.")
    changed_data: Literal["refuse", "allow"] = Field(
        "refuse", description="What a job does that finds other data (names, sizes, count) than it began with."
    )
