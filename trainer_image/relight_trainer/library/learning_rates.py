"""Learning rate schedules as functions of the step."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from relight_trainer.config import BadConfig, parse
from relight_trainer.problems import Problem
from relight_trainer.schedule import build_schedule
from relight_trainer.settings.position import Length
from relight_trainer.settings.spans import EpochSize


def learning_rate(
    schedule: Mapping[str, Any], *, lr: float, steps: int, steps_per_epoch: int | None = None
) -> Callable[[int], float]:
    """The learning rate as a function of the optimizer steps done: the same schedules as in a job's configuration.

    `schedule` is the section `schedule` of a job's configuration, such as `{"type": "cosine", "warmup": "10%"}`; `lr`
    is the peak rate and `steps` the length of the training. `steps_per_epoch` is needed for lengths in epochs.
    For a scheduler object: `LambdaLR(optimizer, lambda step: rate(step) / lr)`.

    Raises BadConfig where a field is wrong, and for `plateau`, which needs the metrics of evaluations: use
    torch.optim.lr_scheduler.ReduceLROnPlateau.
    """
    if steps < 1 or (steps_per_epoch is not None and steps_per_epoch < 1):
        raise BadConfig(
            [Problem("steps", "out of range", found=str(min(steps, steps_per_epoch or 1)), allowed="1 or more")]
        )
    if not (lr > 0 and math.isfinite(lr)):
        raise BadConfig([Problem("lr", "out of range", found=str(lr), allowed="a finite number above 0")])
    section = dict(schedule)
    if section.get("type") == "onecycle":
        section.setdefault("cycle_momentum", False)  # a function of the rate alone
    if section.get("type") == "plateau":
        allowed = "any other type; or torch.optim.lr_scheduler.ReduceLROnPlateau"
        raise BadConfig([Problem("schedule.type", "depends on metrics, not on the step alone", "plateau", allowed)])
    if section.get("cycle_momentum"):
        raise BadConfig([Problem("schedule.cycle_momentum", "sets more than a learning rate", "true", "false")])
    optimizer = {"type": "sgd", "lr": lr}
    config = parse({"schedule": section, "optimizer": optimizer, "train": {"duration": f"{steps}st"}}, "")
    if steps_per_epoch is None and _names_epochs(section):
        raise BadConfig([Problem("steps_per_epoch", "missing: the schedule has a length in epochs or samples")])
    epoch = steps_per_epoch or steps
    rates = build_schedule(config.schedule, config.optimizer, Length(steps, EpochSize(epoch, epoch, 1)), batch=1)
    return lambda step: rates(step).lr


def _names_epochs(value: Any) -> bool:
    """Whether a length in epochs or samples stands anywhere in `value`."""
    if isinstance(value, str):
        return value.endswith(("ep", "sa")) and value[:-2].isdigit()
    if isinstance(value, Mapping):
        return any(map(_names_epochs, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_names_epochs, value))
