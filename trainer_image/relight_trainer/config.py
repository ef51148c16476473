"""The training core's configuration: `spec.trainer.config` of a TrainingJob. Imports no torch.

The defaults are a recipe for the digits that reaches 99 % in seconds on one CPU core.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from relight_agent.exits import ExitCode
from relight_trainer import registry
from relight_trainer.problems import Problem, join, problems_of
from relight_trainer.registry import Arguments, named
from relight_trainer.settings import schedule as schedules
from relight_trainer.settings import schedule_sense, timed
from relight_trainer.settings.clip import ClipSettings
from relight_trainer.settings.data import DATA, Digits
from relight_trainer.settings.ddp import Ddp
from relight_trainer.settings.ema import EmaSettings
from relight_trainer.settings.evaluate import Evaluate
from relight_trainer.settings.freeze import FreezeSettings
from relight_trainer.settings.hooks import HOOKS, HookSettings
from relight_trainer.settings.init_from import InitFromSettings
from relight_trainer.settings.loader import Loader
from relight_trainer.settings.loss import LOSSES, CrossEntropy, LossSettings
from relight_trainer.settings.model import MODELS, DigitsCnn
from relight_trainer.settings.observe import Observe
from relight_trainer.settings.optimizer import OptimizerSettings, OwnOptimizer, Sgd
from relight_trainer.settings.resume import Resume
from relight_trainer.settings.schedule import OneCycle, ScheduleSettings
from relight_trainer.settings.supernet import Supernet
from relight_trainer.settings.sync_bn import SyncBnSettings
from relight_trainer.settings.train import Train
from relight_trainer.strict import StrictModel, located, problem


class TrainerConfig(StrictModel):
    model: Annotated[SerializeAsAny[Arguments], named(MODELS)] = DigitsCnn(type="digits_cnn")
    data: Annotated[SerializeAsAny[Arguments], named(DATA)] = Digits(type="digits")
    loader: Loader = Loader()
    loss: LossSettings = CrossEntropy(type="cross_entropy")
    train: Train = Train()
    optimizer: OptimizerSettings = Sgd()
    schedule: ScheduleSettings = OneCycle()
    clip: ClipSettings | None = None
    ema: EmaSettings | None = None
    freeze: FreezeSettings = Field([], description="What is not trained, and when.")
    init_from: InitFromSettings | None = None
    sync_bn: SyncBnSettings = None
    ddp: Ddp = Ddp()
    evaluate: Evaluate = Evaluate()
    observe: Observe = Observe()
    supernet: Supernet | None = None
    resume: Resume = Resume()
    hooks: list[HookSettings] = Field([], description="Somebody's own, done beside the training.")

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        schedules.check(self.schedule, self.optimizer, self.evaluate)
        timed.check(self.train, self.schedule, self.freeze, self.evaluate)
        schedule_sense.check(self.train, self.schedule, self.evaluate)
        if self.ddp.static_graph and self.train.deterministic:
            error = problem(
                "conflict",
                "a static graph is not bit-equal after a resume",
                allowed="false, or train.deterministic: false",
            )
            raise ValidationError.from_exception_data("ddp", [located(error, ("ddp", "static_graph"), True)])
        return self


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


def check(config: TrainerConfig, path: str = "config") -> None:
    """Import what `config` names and compare its arguments with the signatures. Raises BadConfig.

    Only where the training's own code can be imported.
    """
    chosen: list[tuple[tuple[int | str, ...], registry.Table, Arguments]] = [
        (("model",), MODELS, config.model),
        (("data",), DATA, config.data),
        (("loss",), LOSSES, config.loss),
        *((("hooks", i), HOOKS, hook) for i, hook in enumerate(config.hooks)),
    ]
    problems = [
        replace(found, path=join(path, (*place, found.path)))
        for place, table, arguments in chosen
        if arguments.type not in table  # ours fit their factories: a test says so
        for found in registry.check(table, arguments)
    ]
    if isinstance(config.optimizer, OwnOptimizer):
        wrong = registry.check_call(config.optimizer.type, [], lr=1.0, **config.optimizer.keywords())
        problems += [replace(found, path=join(path, ("optimizer", found.path))) for found in wrong]
    if isinstance(config.schedule, schedules.OwnSchedule):
        wrong = registry.check_call(config.schedule.type, 0, 1, **config.schedule.arguments)
        problems += [replace(found, path=join(path, ("schedule", found.path))) for found in wrong]
    if problems:
        raise BadConfig(problems)


def canonical(config: TrainerConfig) -> dict[str, Any]:
    """`config` as a JSON object with all defaults and sorted keys: equal configurations are equal here."""
    dumped: dict[str, Any] = json.loads(json.dumps(config.model_dump(mode="json"), sort_keys=True, allow_nan=False))
    return dumped


def config_hash(value: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name a JSON object, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
