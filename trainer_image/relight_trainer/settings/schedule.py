"""The section `schedule`: how the learning rate moves through the training."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, SerializeAsAny, ValidationError, WithJsonSchema, model_validator

from relight_trainer.registry import CUSTOM
from relight_trainer.settings.choice import kinds
from relight_trainer.settings.evaluate import Evaluate
from relight_trainer.settings.optimizer import OptimizerArguments
from relight_trainer.settings.position import Percent, Position
from relight_trainer.strict import StrictModel, located, problem


class OneCycle(StrictModel):
    """Torch's OneCycleLR over the whole training, with the optimizer's `lr` as its peak."""

    type: Literal["onecycle"] = "onecycle"
    pct_start: float = Field(0.3, gt=0, lt=1, description="The share of the training in which the rate rises.")
    anneal: Literal["cos", "linear"] = Field("cos", description="The shape of rise and fall.")
    div_factor: float = Field(25.0, ge=1, description="The rate starts at the peak divided by this.")
    final_div_factor: float = Field(1e4, ge=1, description="It ends at its start divided by this.")
    cycle_momentum: bool | None = Field(
        None, description="Momentum (beta1 of adamw) falls while the rate rises, and back; unset: where there is one."
    )
    base_momentum: float = Field(0.85, ge=0, lt=1, description="At the peak of the rate.")
    max_momentum: float = Field(0.95, ge=0, lt=1, description="At the start and the end.")


class Warmed(StrictModel):
    """What may begin with a warm-up."""

    type: str
    warmup: Position | None = Field(None, description="So far the rate rises to where the schedule then stands.")
    warmup_from: float = Field(0.01, ge=0, le=1, description="It rises from this share of it.")
    warmup_shape: Literal["linear", "cos", "exponential"] = Field("linear", description="The shape of the rise.")


class Constant(Warmed):
    """The optimizer's `lr` throughout."""

    type: Literal["constant"] = "constant"


class Cosine(Warmed):
    """Half a cosine from `lr` down to its share `end`, over what the warm-up leaves (SGDR, arXiv:1608.03983)."""

    type: Literal["cosine"] = "cosine"
    end: float = Field(0.0, ge=0, le=1, description="The share of the rate at the end.")
    cycles: int = Field(1, ge=1, le=1000, description="More than 1: it restarts at the top that many times less one.")
    cycle_growth: float = Field(1.0, gt=0, description="Each cycle is this many times as long as the one before.")
    cycle_decay: float = Field(1.0, gt=0, le=1, description="The top of each cycle, as a share of the one before.")
    k_decay: float = Field(1.0, gt=0, description="Above 1 the rate stays high for longer (arXiv:2004.05909).")


class Linear(Warmed):
    """A straight line from `lr` down to its share `end`, over what the warm-up leaves."""

    type: Literal["linear"] = "linear"
    end: float = Field(0.0, ge=0, le=1, description="The share of the rate at the end.")


class Poly(Warmed):
    """`lr` times (1 - progress) to a power, down to its share `end`, over what the warm-up leaves."""

    type: Literal["poly"] = "poly"
    power: float = Field(2.0, gt=0, description="1 is a straight line.")
    end: float = Field(0.0, ge=0, le=1, description="The share of the rate at the end.")


class Exponential(Warmed):
    """From `lr` to its share `end` by equal factors, over what the warm-up leaves."""

    type: Literal["exponential"] = "exponential"
    end: float = Field(0.01, gt=0, le=1, description="The share of the rate at the end.")


class InverseSqrt(Warmed):
    """`lr`, and from `timescale` on `lr` times the square root of timescale / step (arXiv:1706.03762)."""

    type: Literal["inverse_sqrt"] = "inverse_sqrt"
    timescale: Position = Field(
        Percent(10), json_schema_extra={"default": "10%"}, description="From the start of the training."
    )


class Step(Warmed):
    """`lr`, times `factor` after each stretch of length `every`, counted from the start of the training."""

    type: Literal["step"] = "step"
    every: Position = Field(description="The length of a stretch.")
    factor: float = Field(0.1, gt=0, le=1, description="What the rate is multiplied by.")


class MultiStep(Warmed):
    """`lr`, times `factor` at each of the places `at`, counted from the start of the training."""

    type: Literal["multistep"] = "multistep"
    at: list[Position] = Field(min_length=1, description="Such as [30ep, 60ep] or [50%, 75%].")
    factor: float = Field(0.1, gt=0, le=1, description="What the rate is multiplied by.")


class Wsd(Warmed):
    """Warm-up, stable, decay: `lr` until the decay, which ends with the training at the share `end`."""

    type: Literal["wsd"] = "wsd"
    decay: Position = Field(Percent(20), json_schema_extra={"default": "20%"}, description="The length of the decay.")
    shape: Literal["linear", "cos", "sqrt"] = Field("sqrt", description="sqrt: 1 - sqrt(progress), arXiv:2405.18392.")
    end: float = Field(0.0, ge=0, le=1, description="The share of the rate at the end.")


class Plateau(Warmed):
    """`lr`, times `factor` where a metric of the evaluation has stopped getting better. Needs `evaluate.every`.

    The only schedule with state, which is in the checkpoints.
    """

    type: Literal["plateau"] = "plateau"
    metric: str = Field("test_loss", description="As the evaluation names it.")
    better: Literal["lower", "higher"] = Field("lower", description="higher for an accuracy.")
    factor: float = Field(0.1, gt=0, lt=1, description="What the rate is multiplied by.")
    patience: int = Field(10, ge=0, description="So many evaluations without a better one are borne.")
    threshold: float = Field(1e-4, ge=0, description="By how much better is better, as a share of the best.")
    cooldown: int = Field(0, ge=0, description="Evaluations after a reduction that do not count.")
    end: float = Field(0.0, ge=0, le=1, description="The rate never falls below this share.")


class OwnSchedule(Warmed):
    """`lr` times what a function says: `def f(step: int, total: int, **the_other_fields) -> float`, pure."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(pattern=CUSTOM)

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


AnyPart = Constant | Cosine | Linear | Poly | Exponential | InverseSqrt | Step | MultiStep | Wsd | OwnSchedule
AnyWarmed = AnyPart | Plateau

PARTS: Mapping[str, type[StrictModel]] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "poly": Poly,
    "exponential": Exponential,
    "inverse_sqrt": InverseSqrt,
    "step": Step,
    "multistep": MultiStep,
    "wsd": Wsd,
}


class Part(StrictModel):
    """A schedule for a stretch of the training: inside it, places and shares count from its own start."""

    length: Position | None = Field(None, description="Only the last may leave it out: it takes the rest.")
    peak: float = Field(1.0, gt=0, description="The stretch's rate, as a share of the optimizer's.")
    schedule: Annotated[SerializeAsAny[AnyPart], kinds(PARTS, OwnSchedule), WithJsonSchema({"type": "object"})] = Field(
        Constant(), json_schema_extra={"default": None}, description="Any but onecycle, plateau and sequence."
    )


class Sequence(StrictModel):
    """One schedule after another."""

    type: Literal["sequence"] = "sequence"
    parts: list[Part] = Field(min_length=1, description="Each {length, peak, schedule}.")

    @model_validator(mode="after")
    def _all_but_the_last_have_a_length(self) -> Self:
        missing = problem("missing", "missing", allowed="a length: only the last part takes the rest")
        errors = [
            located(missing, ("parts", i, "length"), None)
            for i, part in enumerate(self.parts[:-1])
            if part.length is None
        ]
        if errors:
            raise ValidationError.from_exception_data("parts", errors)
        return self


SCHEDULES: Mapping[str, type[StrictModel]] = {
    "onecycle": OneCycle,
    **PARTS,
    "plateau": Plateau,
    "sequence": Sequence,
}
AnySchedule = OneCycle | AnyWarmed | Sequence
ScheduleSettings = Annotated[SerializeAsAny[AnySchedule], kinds(SCHEDULES, OwnSchedule)]


def cycles(schedule: OneCycle, optimizer: OptimizerArguments) -> bool:
    """Whether the momentum is cycled."""
    if schedule.cycle_momentum is not None:
        return schedule.cycle_momentum
    field = optimizer.momentum_field
    return field is not None and bool(getattr(optimizer, field))


def _own_momentum(optimizer: OptimizerArguments) -> bool:
    return any(optimizer.momentum_field in group.own for group in optimizer.groups)


def check(schedule: AnySchedule, optimizer: OptimizerArguments, evaluate: Evaluate) -> None:
    """Raises ValidationError where the sections of one configuration contradict each other."""
    if isinstance(schedule, OneCycle) and schedule.cycle_momentum and optimizer.momentum_field is None:
        message = f"{optimizer.type} has no momentum to cycle"
        error, field = problem("conflict", message, allowed="false"), "cycle_momentum"
    elif isinstance(schedule, OneCycle) and cycles(schedule, optimizer) and _own_momentum(optimizer):
        message = f"a group has a {optimizer.momentum_field} of its own, which would be cycled too"
        error, field = problem("conflict", message, allowed="false"), "cycle_momentum"
    elif isinstance(schedule, Plateau) and evaluate.every is None:
        message = "nothing is evaluated before the training has ended"
        error, field = problem("conflict", message, allowed="plateau together with evaluate.every"), "type"
    else:
        return
    found = getattr(schedule, field)
    raise ValidationError.from_exception_data("schedule", [located(error, ("schedule", field), found)])
