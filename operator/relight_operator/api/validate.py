"""From a file or an object to a TrainingJob that can run, or to everything that is wrong with it."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from relight_operator.api import bounds
from relight_operator.api.durations import seconds
from relight_operator.api.elastic import of_division, of_sizes
from relight_operator.api.job import API_VERSION, KIND, TrainingJob
from relight_operator.api.problems import Problem, join, problems_of, shown
from relight_operator.errors import InvalidJob
from relight_trainer import config as trainer_config
from relight_trainer.config_file import resolved
from relight_trainer.strict import nearest
from relight_trainer.yaml_loader import MAX_BYTES, Document, YamlError, load_documents

CONFIG_PATH = "spec.trainer.config"
TEMPLATE_PATH = "spec.trainer.template.spec"


def load_job(source: str | Path, sets: Sequence[str] = ()) -> TrainingJob:
    """The one job in the file `source`, "-" for standard input. Raises InvalidJob with every problem.

    What its trainer.config extends is read from files relative to it; `sets` (`a.b=c`) are put into that.
    """
    if str(source) == "-":
        return load_job_text(_read(sys.stdin.buffer), sets)
    try:
        data = _read_file(Path(source))
    except OSError as error:
        raise InvalidJob([Problem(str(source), f"cannot be read: {error.strerror or error}")]) from None
    return read_job(data, str(source), lambda config: resolved(config, Path(source).parent, sets, CONFIG_PATH))


def load_job_text(data: bytes, sets: Sequence[str] = ()) -> TrainingJob:
    """As `load_job`, of what was read from standard input."""
    return read_job(data, "stdin", lambda config: resolved(config, Path.cwd(), sets, CONFIG_PATH))


def read_job(data: bytes, name: str = "", complete: Callable[[Any], Any] | None = None) -> TrainingJob:
    """The one job in the text `data`, which came from `name`. Raises InvalidJob with every problem.

    `complete` makes the trainer.config that is there what it stands for.
    """
    try:
        document = _the_one(load_documents(data))
    except YamlError as error:
        raise InvalidJob([error.problem], name) from None
    try:
        return parse_job(_completed(document.value, complete))
    except InvalidJob as error:
        lines = document.lines
        placed = [replace(p, line=_line(lines, p.path)) for p in error.problems]
        raise InvalidJob(sorted(placed, key=lambda p: p.line or 0), name) from None


def parse_job(value: Any) -> TrainingJob:
    """The job in the JSON value `value`. Raises InvalidJob with every problem."""
    if not isinstance(value, Mapping):
        raise InvalidJob([Problem("", f"not a {KIND}", found=shown(value), allowed="a mapping")])
    if problems := list(_identity(value)):
        raise InvalidJob(problems)
    if (excess := bounds.problem_of(value.get("spec"))) is not None:
        raise InvalidJob([excess])
    problems = list(_empty(value.get("spec"), "spec"))
    empty = {p.path for p in problems}
    try:
        job = TrainingJob.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += [p for p in problems_of(error) if p.path not in empty]
        problems += _of_config(_dig(value, "spec", "trainer", "config"))
        raise InvalidJob(problems) from None
    problems += validate(job)
    if problems:
        raise InvalidJob(problems)
    return job


def _completed(value: Any, complete: Callable[[Any], Any] | None) -> Any:
    config = _dig(value, "spec", "trainer", "config")
    if complete is None or not isinstance(config, Mapping):
        return value
    try:
        done = complete(config)
    except trainer_config.BadConfig as error:
        raise InvalidJob(error.problems) from None
    spec, trainer = value["spec"], value["spec"]["trainer"]
    return {**value, "spec": {**spec, "trainer": {**trainer, "config": done}}}


def validate(job: TrainingJob) -> list[Problem]:
    """What the models cannot say: the trainer's configuration, and what depends on several fields."""
    spec = job.spec
    problems = _of_config(spec.trainer.config)
    if spec.trainer.config is not None and not problems:
        problems += _of_batch(job, trainer_config.parse(spec.trainer.config, CONFIG_PATH))
    problems += of_sizes(spec)
    backoff = spec.retry.backoff
    if seconds(backoff.initial) > seconds(backoff.max):
        allowed = f"{backoff.max} (the maximum) or less"
        problems.append(Problem("spec.retry.backoff.initial", "out of range", shown(backoff.initial), allowed))
    health = spec.health
    if seconds(health.heartbeat) > seconds(health.no_progress):
        allowed = f"{health.no_progress} (noProgress) or less"
        problems.append(Problem("spec.health.heartbeat", "out of range", shown(health.heartbeat), allowed))
    return problems


def _of_config(value: Any) -> list[Problem]:
    if not isinstance(value, Mapping):  # absent, or already refused
        return []
    try:
        trainer_config.parse(value, CONFIG_PATH)
    except trainer_config.BadConfig as error:
        return error.problems
    return []


def _of_batch(job: TrainingJob, config: trainer_config.TrainerConfig) -> list[Problem]:
    spec, batch = job.spec, config.train.global_batch
    most = spec.most_nodes * spec.workers_per_node
    if batch >= most:
        return of_division(spec, config, CONFIG_PATH)
    field = "nodes" if spec.elastic is None else "elastic.maxNodes"
    workers = f"{field} {spec.most_nodes} x procPerNode {spec.workers_per_node} = {most} workers"
    path = f"{CONFIG_PATH}.train.global_batch"
    return [Problem(path, f"too small for {workers}", shown(batch), f"{most} or more")]


def _identity(value: Mapping[str, Any]) -> Iterator[Problem]:
    """Another kind or version says nothing of the other fields: they are not looked at."""
    for name, wanted in (("kind", KIND), ("apiVersion", API_VERSION)):
        found = value.get(name)
        if found != wanted:
            near = nearest(found, [wanted]) if isinstance(found, str) else None
            message = "not a known value" if name in value else "missing"
            yield Problem(name, message, shown(found) if name in value else None, wanted, near)


def _empty(value: Any, path: str) -> Iterator[Problem]:
    """Fields with nothing after the colon: a server refuses them."""
    if path in {CONFIG_PATH, TEMPLATE_PATH}:
        return
    if value is None and path != "spec":
        yield Problem(path, "empty", "null", "a value, or no such field")
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _empty(child, join(path, (key,)))


def _the_one(documents: list[Document]) -> Document:
    if len(documents) == 1:
        return documents[0]
    kinds = [shown(d.value.get("kind")) if isinstance(d.value, Mapping) else "no mapping" for d in documents]
    found = f"{len(kinds)} documents: {', '.join(kinds[:5])}" if kinds else "nothing"
    raise YamlError("not one document", found=found, allowed=f"exactly one, of kind {KIND}")


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return _read(file)


def _read(file: BinaryIO) -> bytes:
    return file.read(MAX_BYTES + 1)


def _line(lines: Mapping[str, int], path: str) -> int | None:
    """The line of `path`, or of the nearest thing above it that is in the file."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path)


def _dig(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
