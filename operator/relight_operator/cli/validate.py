"""`relight validate` and `relight crd`: what a user can know before anything runs."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import click

from relight_agent.exits import ExitCode
from relight_operator.api.crd import render
from relight_operator.api.job import JobSpec, TrainingJob
from relight_operator.api.problems import Problem
from relight_operator.api.validate import load_job
from relight_operator.errors import InvalidJob
from relight_trainer import config as trainer_config


@click.command("validate")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print the answer.")
def validate_command(files: tuple[str, ...], output: str) -> None:
    """Check TrainingJobs without running them ("-" is standard input).

    Names every wrong field: where it is, what was found, what is allowed. Ends with 0 if all are valid, else with 64.
    """
    answers = [_answer(file) for file in files]
    valid = all(a.job for a in answers)
    if output == "json":
        click.echo(json.dumps({"valid": valid, "files": [a.dump() for a in answers]}, indent=2))
    else:
        for answer in answers:
            click.echo(str(answer), err=answer.job is None)
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
    error: InvalidJob | None = None

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self.error.problems if self.error else ()

    def __str__(self) -> str:
        if self.job is None:
            return str(self.error)
        return f"{self.file}: TrainingJob {self.job.metadata.name} is valid ({summary(self.job.spec)})"

    def dump(self) -> dict[str, Any]:
        name = self.job.metadata.name if self.job else None
        return {"file": self.file, "valid": bool(self.job), "job": name, "problems": [p.dump() for p in self.problems]}


def _answer(file: str) -> _Answer:
    name = "stdin" if file == "-" else file
    try:
        return _Answer(name, job=load_job(file))
    except InvalidJob as error:
        return _Answer(name, error=error)


def summary(spec: JobSpec) -> str:
    """What the job is, in a few words.

    `2 nodes x 1 process, digits_cnn on digits for 15 epochs, a checkpoint every 100 steps`
    """
    parts = [f"{_count(spec.nodes, 'node')} x {_count(spec.workers_per_node, 'process', 'processes')}", _work(spec)]
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
    wrong = [a.file for a in answers if not a.job]
    if not wrong:
        return f"Next: relight run {answers[0].file if answers[0].file != 'stdin' else 'FILE'}"
    count = _count(sum(len(a.problems) for a in answers), "problem")
    again = " ".join("-" if file == "stdin" else file for file in wrong)
    return f"{count}. docs/trainingjob.md says what each field takes; then: relight validate {again}"
