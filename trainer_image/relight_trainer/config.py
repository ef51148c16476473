"""The training core's configuration: `spec.trainer.config` of a TrainingJob. Imports no torch.

The defaults are a recipe for the digits that reaches 99 % in seconds on one CPU core.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializeAsAny,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from relight_agent.exits import ExitCode
from relight_trainer import registry
from relight_trainer.problems import Problem, problems_of
from relight_trainer.registry import DATA, MODELS, Arguments, Digits, DigitsCnn
from relight_trainer.strict import StrictModel, located, one_of, problem

SPAN_EXAMPLES = "whole epochs or optimizer steps, such as 15ep or 500st"


@dataclass(frozen=True)
class Span:
    """A length of training. `str()` is its form in the configuration: `15ep`, `500st`."""

    count: int
    unit: Literal["ep", "st"]

    def steps(self, per_epoch: int) -> int:
        """Optimizer steps, where an epoch has `per_epoch` of them."""
        return self.count * per_epoch if self.unit == "ep" else self.count

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"

    @property
    def words(self) -> str:
        return f"{self.count} {'epoch' if self.unit == 'ep' else 'step'}{'s' if self.count != 1 else ''}"


def _span(value: Any) -> Any:
    if isinstance(value, Span):
        return value
    match = re.fullmatch(r"([1-9][0-9]{0,8})(ep|st)", value) if isinstance(value, str) else None
    if match is None:
        raise problem("span", "not a length of training", allowed=SPAN_EXAMPLES)
    return Span(int(match[1]), "ep" if match[2] == "ep" else "st")


TrainingSpan = Annotated[
    Span,
    BeforeValidator(_span),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[1-9][0-9]{0,8}(ep|st)$"}),
]


class Train(StrictModel):
    duration: TrainingSpan = Field(Span(15, "ep"), description="Epochs (15ep) or optimizer steps (500st).")
    global_batch: int = Field(64, ge=1, description="Samples of one optimizer step, over all workers together.")
    seed: int = Field(0, ge=0, lt=2**63, description="The root of every random choice.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="What the forward pass computes in.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where the member has a GPU.")
    threads: int = Field(
        1, ge=1, le=1024, description="CPU threads of each worker; another number is another rounding."
    )
    deterministic: bool = Field(True, description="Only operations that give the same bits each time.")
    log_every: int = Field(10, ge=1, description="Optimizer steps between two reports of the loss.")


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


class Evaluate(StrictModel):
    every: TrainingSpan | None = Field(None, description="Also during training, this often; at its end always.")


OPTIMIZERS: Mapping[str, type[StrictModel]] = {"sgd": Sgd, "adamw": AdamW}
SCHEDULES: Mapping[str, type[StrictModel]] = {"onecycle": OneCycle, "constant": Constant}


def _one_of(classes: Mapping[str, type[StrictModel]]) -> BeforeValidator:
    return BeforeValidator(lambda value: one_of(classes, value))


class TrainerConfig(StrictModel):
    model: Annotated[SerializeAsAny[Arguments], _one_of(registry.arguments(MODELS))] = DigitsCnn(type="digits_cnn")
    data: Annotated[SerializeAsAny[Arguments], _one_of(registry.arguments(DATA))] = Digits(type="digits")
    train: Train = Train()
    optimizer: Annotated[Sgd | AdamW, _one_of(OPTIMIZERS)] = Sgd()
    schedule: Annotated[OneCycle | Constant, _one_of(SCHEDULES)] = OneCycle()
    evaluate: Evaluate = Evaluate()


class BadConfig(Exception):
    """The configuration cannot be used; `problems` says why."""

    exit_code = ExitCode.BAD_CONFIG

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def parse(value: Any, path: str = "config") -> TrainerConfig:
    """The configuration out of its JSON object. Raises BadConfig with every problem, their paths below `path`."""
    try:
        return TrainerConfig.model_validate(value)
    except ValidationError as error:
        raise BadConfig(problems_of(error, path)) from None


def canonical(config: TrainerConfig) -> dict[str, Any]:
    """`config` as a JSON object with all defaults and sorted keys: equal configurations are equal here."""
    dumped: dict[str, Any] = json.loads(json.dumps(config.model_dump(mode="json"), sort_keys=True, allow_nan=False))
    return dumped


def config_hash(value: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name a JSON object, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
