"""Whether a job that is not running may continue with a spec that differs from the one it was started with. Pure.

Until its first step nothing is frozen. After that, what changes nothing of the training is taken, and what
`trainer.config.resume.allow` names is taken too: training goes on from the last state under the new configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from relight_operator.api.environment import literals, references
from relight_operator.api.job import JobSpec
from relight_operator.api.status import JobStatus, RecoveryStatus, Restarts
from relight_operator.frozen import frozen_changes
from relight_trainer import config as trainer_config
from relight_trainer.config_diff import differences, refused
from relight_trainer.globs import fits
from relight_trainer.identity import variables

# Where a training runs and how it is saved. None of them says what is trained.
HARMLESS = (
    *(f"spec.checkpoint.{name}" for name in ("interval", "keep", "best", "snapshot", "secretRef")),
    *(f"spec.trainer.{name}" for name in ("image", "imagePullSecrets", "sharedMemory", "template", "python")),
    "spec.spares",
)
_CONFIG, _ENV, _RESOURCES = "spec.trainer.config", "spec.trainer.env", "spec.trainer.resources"


class Way(StrEnum):
    AS_BEFORE = "as before"  # nothing that counts has changed
    ANEW = "anew"  # no step has been done: the new spec replaces the old one
    ON = "on"  # from the last state, under the new spec
    REFUSED = "refused"


@dataclass(frozen=True)
class Again:
    way: Way
    changed: list[str] = field(default_factory=list)  # paths, all of them
    refused: list[str] = field(default_factory=list)  # of these, those that may not change
    allow: list[str] = field(
        default_factory=list
    )  # what resume.allow would have to name for the refused ones; none if it cannot
    trains: bool = False  # whether what is trained changes, so that a finished job has something to do


def judge(old: JobSpec, new: JobSpec, status: JobStatus) -> Again:
    """How a job that was started with `old`, and does not run, goes on with `new`."""
    changed = frozen_changes(old, new)
    if not changed:
        return Again(Way.AS_BEFORE)
    if not has_begun(status):
        return Again(Way.ANEW, changed)
    wrong, allow, trains = list[str](), list[str](), False
    for path in changed:
        if _within(path, _CONFIG) and old.trainer.config is not None and new.trainer.config is not None:
            continue  # by the canonical configuration, below
        if _within(path, _ENV) or _within(path, f"{_ENV}From"):
            continue
        if _within(path, _RESOURCES) and old.workers_per_node == new.workers_per_node:
            continue
        if not any(_within(path, harmless) for harmless in HARMLESS):
            wrong.append(path)
    before, after = _identity(old), _identity(new)
    patterns = after.get("resume", {}).get("allow", []) if new.trainer.config is not None else []
    found = differences(before, after)
    trains = any(not d.safe for d in found)
    for one in refused(found, patterns):
        in_env = fits(one.path, "env")
        wrong.append(f"spec.trainer.{one.path}" if in_env else f"{_CONFIG}.{one.path}")
        allow += [one.path] if new.trainer.config is not None else []
    if wrong:
        return Again(Way.REFUSED, changed, wrong, allow if len(allow) == len(wrong) else [], trains)
    return Again(Way.ON, changed, trains=trains)


def has_begun(status: JobStatus) -> bool:
    """Whether a step of the job has been done, as far as anybody has said; a plain command is done once it has ended well."""
    steps = status.goodput.executed_steps or status.goodput.reached_step or (status.progress and status.progress.step)
    return bool(steps) or status.checkpoint.step is not None or status.phase == "Succeeded"


def revived(status: JobStatus) -> JobStatus:
    """The status of a job that has ended, ready to be tried again: generations and incarnations go on, budgets begin anew."""
    after = status.model_copy(deep=True)
    after.phase = "Pending"
    after.completion_time = None
    after.restarts = Restarts()
    after.conditions = [c for c in after.conditions if c.type not in {"Failed", "Succeeded"}]
    after.active_seconds, after.active_since = 0.0, None
    after.stop = None
    after.result = None
    if after.world is not None:
        after.recovery = RecoveryStatus(generation=after.world.generation, since=0.0, cause="Suspended", judged=True)
    for slot in after.slots:
        slot.incarnation = slot.last_incarnation = max(slot.incarnation, slot.last_incarnation) + 1
        slot.uid, slot.completed, slot.failed_starts, slot.state, slot.machine = None, None, 0, "Pending", ""
        slot.successor = None
    return after


def _identity(spec: JobSpec) -> Mapping[str, Any]:
    trainer = spec.trainer
    config = trainer_config.canonical(trainer_config.parse(trainer.config)) if trainer.config is not None else {}
    env = {**literals(trainer.env), **references(trainer.env, trainer.env_from)}
    return {**config, "env": variables(env)}


def _within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}.")
