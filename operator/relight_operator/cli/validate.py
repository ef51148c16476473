"""`relight validate` and `relight crd`: what a user can know before anything runs."""

import json
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from relight_agent.exits import ExitCode
from relight_operator.api.crd import render
from relight_operator.api.job import JobSpec, TrainingJob
from relight_operator.api.problems import Problem
from relight_operator.api.validate import CONFIG_PATH, load_job, load_job_text
from relight_operator.cli import here
from relight_operator.errors import InvalidJob
from relight_trainer import config as trainer_config
from relight_trainer import config_file
from relight_trainer.amounts import amount, size
from relight_trainer.config import TrainerConfig
from relight_trainer.problems import join, shown
from relight_trainer.registry import NOT_IMPORTED
from relight_trainer.settings import schedule_sense
from relight_trainer.settings.rate import rate_at
from relight_trainer.yaml_loader import MAX_BYTES


@click.command("validate")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="A.B=C",
    help="Put a value into the trainer's configuration. May be repeated.",
)
@click.option(
    "--memory", is_flag=True, help="Also say how much memory a worker will want: builds the model, on shapes."
)
@click.option(
    "--deep",
    is_flag=True,
    help="Also open the data, build the model, and take one step of one worker on the CPU, in a separate process.",
)
@click.option("--limit", metavar="80GiB", help="What a worker's device has: to want more is wrong. Means --memory too.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the answer.")
def validate_command(
    *, files: tuple[str, ...], sets: tuple[str, ...], memory: bool, deep: bool, limit: str | None, output: str
) -> None:
    """Check TrainingJobs and trainer configurations without running them ("-" is standard input).

    Names every wrong field: where it is, what was found, what is allowed. What a configuration names is imported where
    that is possible, and its arguments compared with the signature. What would keep a valid job from running on this
    machine is told apart. --deep finds what workers would refuse: it is to run where the job runs, or where its data is.
    Ends with 0 if all are valid, else with 64.
    """
    if limit:
        size(limit)
    answers = [_answer(file, sets) for file in files]
    if deep:
        answers = [_tried(answer) for answer in answers]
    if memory or limit:
        answers = [_with_memory(answer, limit) for answer in answers]
    valid = all(a.valid for a in answers)
    if output == "json":
        click.echo(json.dumps({"valid": valid, "files": [a.dump() for a in answers]}, indent=2))
    else:
        for answer in answers:
            click.echo(str(answer), err=not answer.valid)
        click.echo(_next(answers), err=True)
    sys.exit(ExitCode.COMPLETED if valid else ExitCode.BAD_CONFIG)


@click.command("crd")
@click.option("--cel", is_flag=True, help="With validation rules that servers before 1.25 refuse or drop.")
def crd_command(cel: bool) -> None:
    """Print the CustomResourceDefinition, as for `relight crd | kubectl apply -f -`."""
    click.echo(render(cel=cel), nl=False)


@dataclass(frozen=True)
class _Answer:
    file: str
    job: TrainingJob | None = None
    config: TrainerConfig | None = None
    error: InvalidJob | None = None
    unknown: tuple[str, ...] = ()  # what could not be looked at here
    failing: tuple[Problem, ...] = ()  # what would keep it from running here, and may be otherwise elsewhere
    tried: bool = False  # one step of it
    memory: dict[str, Any] | None = None  # what `relight memory` says

    @property
    def valid(self) -> bool:
        return self.error is None

    @property
    def workers(self) -> int:
        return self.job.spec.world_size if self.job else 1

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self.error.problems if self.error else ()

    def __str__(self) -> str:
        if self.error:
            return str(self.error)
        if self.job:
            lines = [f"{self.file}: TrainingJob {self.job.metadata.name} is valid ({summary(self.job.spec)})"]
        else:
            lines = [f"{self.file}: a valid trainer configuration"]
        if self.config:
            spec = self.job.spec if self.job else None
            most = spec.most_nodes * spec.workers_per_node if spec else None
            lines.append(f"  {arithmetic(self.config, self.workers, most)}")
        if self.memory:
            lines.append(f"  memory: at most {amount(self.memory['peak'])} on each worker's device")
        lines += [f"  would fail here: {one}" for one in self.failing]
        lines += [f"  not checked here: {text}" for text in self.unknown]
        if self.tried:
            lines.append("  tried here: opened the data, built the model, and took one step on the CPU")
        elif self.config:
            lines.append(
                "  not tried: opening the data and building the model (--deep does both, and takes one step on the CPU)"
            )
        elif self.job:
            lines.append(f"  not tried: what its {_kind(self.job.spec)} does")
        return "\n".join(lines)

    def dump(self) -> dict[str, Any]:
        name = self.job.metadata.name if self.job else None
        answer = {"file": self.file, "valid": self.valid, "job": name, "problems": [p.dump() for p in self.problems]}
        answer |= {"notChecked": list(self.unknown)} if self.unknown else {}
        answer |= {"failsHere": [p.dump() for p in self.failing]} if self.failing else {}
        answer |= {"tried": True} if self.tried else {}
        return answer | ({"memory": self.memory} if self.memory else {})


def _answer(file: str, sets: tuple[str, ...]) -> _Answer:
    name = "stdin" if file == "-" else file
    data = sys.stdin.buffer.read(MAX_BYTES + 1) if file == "-" else b""  # it can be read once
    try:
        bare = config_file.is_bare_text(data) if file == "-" else config_file.is_bare(file)
        job = None if bare else load_job_text(data, sets) if file == "-" else load_job(file, sets)
        if job is None:
            config, path = config_file.load_text(data, sets) if file == "-" else config_file.load(file, sets), "config"
        elif job.spec.trainer.config is None:
            return _Answer(name, job=job, failing=_failing(job, None, file, CONFIG_PATH))
        else:
            config, path = trainer_config.parse(job.spec.trainer.config, CONFIG_PATH), CONFIG_PATH
        unknown = (*_imported(config, file, path), *_unmeasured(config, path))
        failing = _failing(job, config, file, path)
        return _Answer(name, job=job, config=config, unknown=unknown, failing=failing)
    except InvalidJob as error:
        return _Answer(name, error=error)
    except trainer_config.BadConfig as error:
        return _Answer(name, error=InvalidJob(error.problems, name))


def _imported(config: TrainerConfig, file: str, path: str) -> tuple[str, ...]:
    """What of the things that `config` names cannot be imported here: an image may have it. Raises BadConfig."""
    with _as_in_a_worker(file):
        try:
            trainer_config.check(config, path)
        except trainer_config.BadConfig as error:
            # A module that is not there may be in an image. One that Python cannot read is wrong everywhere.
            unknown = [p for p in error.problems if NOT_IMPORTED in p.message and "SyntaxError" not in p.message]
            if wrong := [p for p in error.problems if p not in unknown]:
                raise trainer_config.BadConfig(wrong) from None
            return tuple(map(str, unknown))
    return ()


def _unmeasured(config: TrainerConfig, path: str) -> Iterator[str]:
    """What of the schedule can be compared with the training's length only once the data is open, or not at all."""
    for found in schedule_sense.unchecked(config.train, config.schedule, config.evaluate):
        yield f"{join(path, ('schedule', *found.place))}: {found.message}; found {shown(found.found)}"


def _folder(file: str) -> Path:
    return Path.cwd() if file in {"-", "stdin"} else Path(file).absolute().parent


def _failing(job: TrainingJob | None, config: TrainerConfig | None, file: str, path: str) -> tuple[Problem, ...]:
    return () if here.has_own_code(job) else tuple(here.failings(job, config, _folder(file), path))


def _tried(answer: _Answer) -> _Answer:
    """`answer` after one step; what would fail here is wrong then."""
    if answer.error or answer.config is None:
        return answer
    path = CONFIG_PATH if answer.job else "config"
    world = (answer.job.spec.most_nodes, answer.job.spec.workers_per_node) if answer.job else (1, 1)
    problems = [one for one in answer.failing if not one.path.endswith("train.device")]  # the step is taken on the CPU
    found = here.deep_problem(answer.config, world, _folder(answer.file), path) if not problems else None
    if found is not None:
        problems.append(found)
    if problems:
        return replace(answer, error=InvalidJob(problems, answer.file))
    return replace(answer, tried=True)


def _kind(spec: JobSpec) -> str:
    return next(kind for kind in ("script", "module", "command") if getattr(spec.trainer, kind))


@contextmanager
def _as_in_a_worker(file: str) -> Iterator[None]:
    """Paths start in the file's folder, and modules may lie there."""
    folder = str(_folder(file))
    sys.path.insert(0, folder)
    try:
        with chdir(folder):
            yield
    finally:
        sys.path.remove(folder)


def _with_memory(answer: _Answer, limit: str | None) -> _Answer:
    """`answer` and what `relight memory` says; where that cannot be said here, why.

    The command is imported by its name: this package has no torch.
    """
    if answer.config is None or answer.error:
        return answer
    try:
        with _as_in_a_worker(answer.file):
            said = import_module("relight_trainer.commands.memory").foretold(answer.config, answer.workers, limit=limit)
    except Exception as error:
        return replace(answer, unknown=(*answer.unknown, f"memory: {_why(error)}"))
    config, answer = answer.config, replace(answer, memory=said)
    if said.get("fits", True):
        return answer
    smaller = said["fittingMicroBatch"]
    problem = Problem(
        join(CONFIG_PATH if answer.job else "config", ("train", "micro_batch")),
        f"a worker will want {amount(said['peak'])}, which is more than {amount(said['limit'])}",
        found=shown(config.train.micro_batch),
        allowed=f"{smaller} or less, with accumulate: auto" if smaller else "no micro-batch would fit",
    )
    return replace(answer, error=InvalidJob([problem], answer.file))


def _why(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"foretelling it needs {error.name}, which is not installed here"
    return str(error) if hasattr(error, "exit_code") else f"{type(error).__name__}: {error}"


def arithmetic(config: TrainerConfig, workers: int, most: int | None = None) -> str:
    """How a step's samples are dealt out, and what rate that makes. `most`: the workers of the largest world.

    `a step: 64 samples = 2 workers x 1 micro-batch x 32 samples; lr 0.1`
    """
    train = config.train
    ranks = (most or workers) if train.virtual_ranks == "auto" else train.virtual_ranks
    micro = train.micro_batches(ranks)
    least, rest = divmod(train.global_batch, ranks * micro)  # as `shares.share` deals them out
    each = " or ".join(map(str, [least, *([least + 1] if rest else [])]))
    dealt = f"{_count(ranks, 'worker')} x {_count(micro, 'micro-batch', 'micro-batches')} x {each} samples"
    if ranks != workers:
        dealt += f", done by {_count(workers, 'worker')}"
    return f"a step: {train.global_batch} samples = {dealt}; lr {rate_at(config.optimizer.lr, train.global_batch):g}"


def summary(spec: JobSpec) -> str:
    """What the job is, in a few words.

    `2 nodes x 1 process, digits_cnn on digits for 15 epochs, a checkpoint every 100 steps`
    """
    size = f"{_count(spec.nodes, 'node')} x {_count(spec.workers_per_node, 'process', 'processes')}"
    if spec.elastic is not None:
        size += f" (elastic, {spec.elastic.min_nodes} to {spec.elastic.max_nodes})"
    if spec.spares:
        size += f" and {_count(spec.spares, 'spare')}"
    parts = [size, _work(spec)]
    if spec.checkpoint is None:
        parts.append("no checkpoints")
    else:
        every = spec.checkpoint.interval
        times = [
            every.time,
            every.steps and _count(every.steps, "step"),
            every.epochs and _count(every.epochs, "epoch"),
        ]
        parts.append(f"a checkpoint every {' or '.join(str(t) for t in times if t)}")
    return ", ".join(parts)


def _work(spec: JobSpec) -> str:
    trainer = spec.trainer
    if trainer.config is not None:
        config = trainer_config.parse(trainer.config)
        return f"{config.model.type} on {config.data.type} for {config.train.duration.words}"
    for kind in ("script", "module", "command"):
        if words := getattr(trainer, kind):
            return f"{kind} {words[0]}"
    raise AssertionError("a valid job has something to run")


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _next(answers: list[_Answer]) -> str:
    wrong = [a.file for a in answers if not a.valid]
    if not wrong:
        verb = "run" if answers[0].job else "memory"
        return f"Next: relight {verb} {answers[0].file if answers[0].file != 'stdin' else 'FILE'}"
    count = _count(sum(len(a.problems) for a in answers), "problem")
    again = " ".join("-" if file == "stdin" else file for file in wrong)
    return f"{count}. docs/trainingjob.md says what each field takes; then: relight validate {again}"
