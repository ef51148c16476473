"""What a job is from its first start on: which fields are frozen then, and what its members are given. Pure."""

from typing import Any

from relight_agent.files import JobFile
from relight_operator.api.durations import seconds
from relight_operator.api.environment import literals, references
from relight_operator.api.job import JobSpec, TrainingJob
from relight_trainer import config as trainer_config
from relight_trainer.identity import variables

# Everything else is frozen at the first start, but for `nodes` of an elastic job.
MUTABLE = frozenset({"suspend", "retry", "disruption", "health", "activeDeadlineSeconds"})


def frozen_changes(old: JobSpec, new: JobSpec) -> list[str]:
    """The paths of frozen fields that differ, the deepest that tells them apart."""
    before, after = (s.model_dump(mode="json", by_alias=True, exclude_none=True) for s in (old, new))
    mutable = MUTABLE | {"nodes"} if may_scale(old, new.nodes) else MUTABLE
    return [p for p in _differences(before, after, "spec") if p.split(".")[1] not in mutable]


def may_scale(frozen: JobSpec, nodes: int) -> bool:
    """Whether a job that was started as `frozen` may be given this many nodes: inside the bounds of that time."""
    bounds = frozen.elastic
    return bounds is not None and bounds.min_nodes <= nodes <= bounds.max_nodes


def _differences(old: object, new: object, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{path}.{k}")]
    return [] if old == new else [path]


def config_hash(spec: JobSpec) -> str:
    """The identity of what is trained: equal hashes may share states. Over the validated model, never over text."""
    trainer = spec.trainer
    if trainer.config is not None:
        entry = _canonical(trainer.config)
    else:
        entry = {"script": trainer.script, "module": trainer.module, "command": trainer.command}
    named = variables({**literals(trainer.env), **references(trainer.env, trainer.env_from)})
    return trainer_config.config_hash({**entry, "env": named} if named else entry)


def job_file(
    job: TrainingJob, *, uid: str, created: float, workdir: str, checkpoint_dir: str, code_dir: str = ""
) -> JobFile:
    """What every member of the job is given.

    `created` in unix seconds; `checkpoint_dir` is the job's own folder of durable state, or its URL in an object store, ""
    where it has none; `code_dir` where `spec.code` is checked out, which is the working folder then.
    """
    spec = job.spec
    checkpoint = spec.checkpoint
    interval = checkpoint.interval if checkpoint else None
    return JobFile(
        namespace=job.metadata.namespace,
        name=job.metadata.name,
        uid=uid,
        created=created,
        nodes=spec.most_nodes,
        proc_per_node=spec.workers_per_node,
        entry=_entry(spec),
        config_hash=config_hash(spec),
        workdir=code_dir or workdir,
        code_dir=code_dir,
        env=literals(spec.trainer.env),
        env_references=references(spec.trainer.env, spec.trainer.env_from),
        python=spec.trainer.python or "",
        checkpoint_dir=checkpoint_dir,
        checkpoint_seconds=seconds(interval.time) if interval and interval.time else 0.0,
        checkpoint_steps=(interval.steps or 0) if interval else 0,
        checkpoint_epochs=(interval.epochs or 0) if interval else 0,
        checkpoint_keep=checkpoint.keep if checkpoint else 3,
        checkpoint_best=checkpoint.best.model_dump() if checkpoint and checkpoint.best else {},
        snapshot_every=0 if checkpoint is None or checkpoint.snapshot.every == "Auto" else checkpoint.snapshot.every,
        grace_seconds=seconds(spec.disruption.grace_period),
        gpus=_gpus(spec),
    )


def _gpus(spec: JobSpec) -> int:
    """The GPUs that a member is to find: those of its limits, unless its configuration trains on the CPU."""
    config = spec.trainer.config
    on_cpu = config is not None and _canonical(config)["train"]["device"] == "cpu"
    return 0 if on_cpu or spec.trainer.resources is None else spec.trainer.resources.gpus


def _canonical(config: dict[str, Any]) -> dict[str, Any]:
    return trainer_config.canonical(trainer_config.parse(config))


def _entry(spec: JobSpec) -> dict[str, Any]:
    trainer = spec.trainer
    if trainer.config is not None:
        return {"kind": "config", "config": _canonical(trainer.config)}
    for kind, argv in (("script", trainer.script), ("module", trainer.module), ("command", trainer.command)):
        if argv is not None:
            return {"kind": kind, "argv": list(argv)}
    raise AssertionError("a validated job has an entry")
