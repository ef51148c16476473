"""The section `supernet`: one network, of which each step trains some paths."""

from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from relight_trainer.settings.names import Patterns
from relight_trainer.strict import StrictModel, located, problem


class Budget(StrictModel):
    """What the sampler `budgeted` keeps to; the bounds belong to it."""

    of: Literal["parameters", "flops"] = Field("parameters", description="What a path costs; flops are one sample's.")
    most: int = Field(ge=1, description="No path costs more.")
    least: int = Field(0, ge=0, description="No path costs less.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            error = problem(
                "conflict", "no path costs at least this and at most `most`", allowed=f"{self.most} or less"
            )
            raise ValidationError.from_exception_data("least", [located(error, ("least",), self.least)])
        return self


class Recalibration(StrictModel):
    """Each path's own batch norm statistics, computed before the path is evaluated."""

    samples: int = Field(1024, ge=2, description="Training samples that the statistics are of; at most the whole set.")
    batch: int = Field(128, ge=2, description="Samples of one forward pass; each has its own statistics meanwhile.")
    layers: Patterns | None = Field(
        None,
        description="Names of batch norm layers, such as student.*: these alone, frozen ones too. Default: all that train.",
    )


class Supernet(StrictModel):
    sampler: Literal["uniform", "fair", "sandwich", "budgeted"] = Field(
        "uniform",
        description="uniform: each path is as likely as any other (SPOS). fair: every option of every choice is trained "
        "equally often (FairNAS). sandwich: the largest and the smallest path and some others (BigNAS). "
        "budgeted: uniform among the paths within `budget`.",
    )
    paths: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Paths of one step, each a forward and backward of its own; their losses are averaged. Default: 1; "
        "fair: as many as the largest choice has options; sandwich: 4, of which 2 are drawn.",
    )
    budget: Budget | None = Field(None, description="For the sampler budgeted.")
    guard: bool = Field(True, description="End the job, naming the ranks, where ranks take different paths.")
    recalibrate: Recalibration | None = Field(
        Recalibration(), description="Before a path is evaluated; null: with the statistics that training has left."
    )
    evaluate: int = Field(64, ge=1, description="Paths that an evaluation ranks; all of them where there are fewer.")

    @model_validator(mode="after")
    def _fits_the_sampler(self) -> Self:
        errors = []
        if (self.budget is not None) != (self.sampler == "budgeted"):
            words = "is missing for" if self.budget is None else "does not go with"
            error = problem(
                "conflict", f"a budget {words} the sampler {self.sampler}", allowed="with sampler: budgeted"
            )
            errors.append(located(error, ("budget",), None if self.budget is None else self.budget.model_dump()))
        if self.sampler == "fair" and self.paths is not None:
            error = problem(
                "conflict", "the sampler fair has as many paths as the largest choice has options", allowed="none"
            )
            errors.append(located(error, ("paths",), self.paths))
        if self.sampler == "sandwich" and self.paths is not None and self.paths < 2:
            error = problem("conflict", "a sandwich is the largest and the smallest path at least", allowed="2 or more")
            errors.append(located(error, ("paths",), self.paths))
        if errors:
            raise ValidationError.from_exception_data("supernet", errors)
        return self
