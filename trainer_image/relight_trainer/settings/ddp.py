"""The section `ddp`: how gradients get from rank to rank."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from relight_trainer.strict import StrictModel, located, problem


def _unused(value: object) -> object:
    if value not in ("auto", True, False):
        raise problem("unused", "not a known value", allowed="auto, true, false")
    return value


class Ddp(StrictModel):
    bucket_cap_mb: float | None = Field(
        None, gt=0, description="Gradients sent at once, in MB; torch's 25 if not given."
    )
    gradient_as_bucket_view: bool = Field(
        False, description="Gradients live in what is sent: saves a copy of them, and their memory."
    )
    static_graph: bool = Field(
        False, description="The same parameters take part in each step: torch may reorder more. Not with deterministic."
    )
    find_unused_parameters: Annotated[Literal["auto"] | bool, BeforeValidator(_unused)] = Field(
        "auto",
        description="Whether DDP looks for parameters that take no part in a step, before its backward pass. The gradients "
        "are the same for all values. true is faster where many parameters take no part in most steps; auto and false "
        "are faster everywhere else.",
    )
    compress: Literal["none", "bf16", "fp16", "powersgd"] = Field(
        "none", description="What gradients are sent as. powersgd: of low rank, with an error feedback on each rank."
    )
    powersgd_rank: int = Field(1, ge=1, description="Of the matrices sent; more is more exact and slower.")
    powersgd_from: int = Field(1000, ge=2, description="Optimizer steps, counted from a start, with whole gradients.")

    @model_validator(mode="after")
    def _static_is_used(self) -> Self:
        if self.static_graph and self.find_unused_parameters is True:
            error = problem(
                "conflict", "a static graph has no unused parameters", allowed="false, or static_graph: false"
            )
            raise ValidationError.from_exception_data(
                "ddp", [located(error, ("find_unused_parameters",), self.find_unused_parameters)]
            )
        return self
