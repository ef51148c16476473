"""The training core's configuration: `spec.trainer.config` of a TrainingJob. Imports no torch.

The defaults are a recipe for the digits that reaches 99 % in seconds on one CPU core.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import SerializeAsAny, ValidationError

from relight_agent.exits import ExitCode
from relight_trainer.problems import Problem, problems_of
from relight_trainer.registry import Arguments, arguments
from relight_trainer.settings.choice import kinds
from relight_trainer.settings.data import DATA, Digits
from relight_trainer.settings.evaluate import Evaluate
from relight_trainer.settings.model import MODELS, DigitsCnn
from relight_trainer.settings.optimizer import OptimizerSettings, Sgd
from relight_trainer.settings.schedule import OneCycle, ScheduleSettings
from relight_trainer.settings.train import Train
from relight_trainer.strict import StrictModel


class TrainerConfig(StrictModel):
    model: Annotated[SerializeAsAny[Arguments], kinds(arguments(MODELS))] = DigitsCnn(type="digits_cnn")
    data: Annotated[SerializeAsAny[Arguments], kinds(arguments(DATA))] = Digits(type="digits")
    train: Train = Train()
    optimizer: OptimizerSettings = Sgd()
    schedule: ScheduleSettings = OneCycle()
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
