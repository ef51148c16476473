"""`relight run FILE`."""

import asyncio
import json
import signal
import sys
import time
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from relight_agent.exits import ExitCode
from relight_operator.api.job import TrainingJob
from relight_operator.api.problems import Problem
from relight_operator.api.status import JobStatus
from relight_operator.api.validate import load_job
from relight_operator.cli.display import Display, summary
from relight_operator.cli.tracebacks import end_of
from relight_operator.errors import InvalidJob, InvalidUsage
from relight_operator.local import chaos
from relight_operator.local.state import StateFolder, default_state_dir

READER_GONE = 141  # as a shell says it of who was ended by SIGPIPE
AGAIN_SECONDS = 0.1  # between two signals that are two wishes


@click.command("run", short_help="Run a TrainingJob here, without a cluster.")
@click.argument("file", metavar="FILE")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the job's state, logs and volumes live. Default: ~/.local/state/relight/NAMESPACE/NAME.",
)
@click.option("--fresh", is_flag=True, help="Forget what an earlier run of this job left, and start from scratch.")
@click.option(
    "--chaos",
    "faults",
    multiple=True,
    metavar="FAULT",
    help="Break something at an exact step: preempt-node:SLOT@step:N, kill-node:SLOT@step:N, or lose-node:SLOT@step:N[,for:30s], "
    "whose replacement does not come (so soon). May be repeated.",
)
@click.option("--set", "sets", multiple=True, metavar="A.B=C", help="Put a value into trainer.config. May be repeated.")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME=PATH",
    help="A Secret that the job names: a folder with a file for each key, or a file with lines KEY=VALUE. May be repeated.",
)
@click.option(
    "--config-map",
    "config_maps",
    multiple=True,
    metavar="NAME=PATH",
    help="A config map that the job names, given like a Secret. May be repeated.",
)
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="json: the final status on stdout."
)
def run_command(  # noqa: PLR0917  # click passes them by name
    file: str,
    state_dir: Path | None,
    fresh: bool,
    faults: tuple[str, ...],
    sets: tuple[str, ...],
    secrets: tuple[str, ...],
    config_maps: tuple[str, ...],
    output: str,
) -> int:
    """Run the TrainingJob in FILE (- is stdin) on this machine, its members as processes.

    The job goes on where an earlier run of it stopped. Ctrl-C saves and stops; pressed again, it does not wait for
    that. SIGUSR1 has every worker trace its next steps. A job's own script is looked for in FILE's folder, or in what
    spec.code names.

    \b
      relight run examples/digits.yaml
      relight run examples/digits.yaml --fresh --chaos kill-node:0@step:100
      relight run examples/digits.yaml --set train.duration=5ep --set optimizer.lr=0.05
      relight run examples/digits.yaml -o json | jq .weightsDigest
    """  # noqa: D301  # click's mark for text that is not wrapped
    if state_dir is not None and str(state_dir) == ".":  # what an empty argument, an unset variable, becomes
        raise InvalidUsage("--state-dir: found the working folder; allowed: a folder that is the job's alone")
    job = load_job(file, sets)
    parsed = tuple(chaos.parse(f, nodes=job.spec.most_nodes + job.spec.spares, index=i) for i, f in enumerate(faults))
    from relight_operator.local import code, environment
    from relight_operator.local.runner import CHAOS_FILE, Listener, LocalRunner
    from relight_operator.local.start import begin

    folder = StateFolder((state_dir or default_state_dir(job.metadata.namespace, job.metadata.name)).absolute())
    workdir = Path.cwd() if file == "-" else Path(file).absolute().parent
    if job.spec.code is None:
        check_script(job, workdir)
    given = environment.Given(
        environment.paths_of("--secret", secrets), environment.paths_of("--config-map", config_maps)
    )
    values = environment.resolve(job, given)
    display = Display(sys.stderr if output == "json" else sys.stdout)
    again = ["relight", "run", file, *(["--state-dir", str(state_dir)] if state_dir else []),
             *(part for text in sets for part in ("--set", text)),
             *(part for text in secrets for part in ("--secret", text)),
             *(part for text in config_maps for part in ("--config-map", text))]  # fmt: skip
    with folder.exclusively():
        stored, said = begin(folder, job, fresh=fresh, again=again)
        stored = code.ensure(folder, stored, given.secrets)
        if stored.status.code is not None:
            workdir = folder.path / code.FOLDER
            check_script(job, workdir)
            said.append(f"code at commit {stored.status.code.commit}")
        if idle := for_pods_only(job):
            said.append(f"not used without a cluster: {', '.join(idle)}")
        display.start(job, folder.path, said)
        if stored.status.phase == "Succeeded":
            display.line("it has completed already; --fresh runs it again")
            status = stored.status
        else:
            listener = Listener(display.event, display.status)
            with display:
                runner = LocalRunner(folder, stored, workdir, listener, parsed, alone=True, values=values)
                status = asyncio.run(_run(runner, display))
    if output == "json":
        click.echo(json.dumps(final(status), indent=2))
    display.end(summary(job, status, folder.path, again, end_of))
    if left := chaos.unfired(parsed, folder.path / CHAOS_FILE):
        why = "no worker that uses the trainer or the client did that step"
        display.end([f"  --chaos     did not happen: {', '.join(map(str, left))}: {why}"])
    if display.reader_gone and status.phase == "Succeeded":
        return READER_GONE
    return exit_code(status)


def check_script(job: TrainingJob, workdir: Path) -> None:
    """Raises InvalidJob where the job's script is not there: a member would say so seconds later."""
    script = job.spec.trainer.script
    if script is not None and not (workdir / script[0]).is_file():
        near = get_close_matches(script[0], [str(p.relative_to(workdir)) for p in workdir.glob("*.py")], n=1)
        problem = Problem(
            "spec.trainer.script[0]", "no such file", found=f'"{script[0]}"', allowed=f"a path from {workdir}",
            nearest=near[0] if near else None,
        )  # fmt: skip
        raise InvalidJob([problem])


def for_pods_only(job: TrainingJob) -> list[str]:
    """The paths of the job's fields that mean nothing to a process here."""
    given = job.spec.trainer.model_dump(by_alias=True, exclude_defaults=True)
    pods = ("image", "imagePullSecrets", "resources", "sharedMemory", "template")
    return [f"spec.trainer.{name}" for name in pods if name in given]


async def _run(runner: Any, display: Display) -> JobStatus:
    asked_at = 0.0

    def stop() -> None:
        nonlocal asked_at
        if runner.stop is None:
            asked_at = time.monotonic()
            display.line("stopping: saving the state (again: do not wait)")
        else:
            display.line("killing the members")
        runner.request_stop()

    def ask_again() -> None:
        # A terminal and a shell may both pass one Ctrl-C on: that is one wish, not two.
        if runner.stop is None or time.monotonic() > asked_at + AGAIN_SECONDS:
            stop()

    def hang_up() -> None:
        if runner.stop is None:
            stop()

    loop = asyncio.get_running_loop()

    def reader_gone() -> None:
        loop.call_soon_threadsafe(hang_up)

    display.on_reader_gone = reader_gone
    if display.reader_gone:
        reader_gone()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask_again)
    loop.add_signal_handler(signal.SIGUSR1, runner.ask_for_traces)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else nohup
        loop.add_signal_handler(signal.SIGHUP, hang_up)
    try:
        status: JobStatus = await runner.run()
    finally:
        display.on_reader_gone = lambda: None  # the loop ends, and there is nothing to stop any more
    return status


def final(status: JobStatus) -> dict[str, Any]:
    """The status with what a script most often asks for beside it."""
    return {
        **status.dump(),
        "steps": status.result.steps if status.result else (status.progress.step if status.progress else 0),
        "executedSteps": status.goodput.executed_steps,
        "weightsDigest": status.result.weights_digest if status.result else None,
    }


def exit_code(status: JobStatus) -> int:
    if status.phase == "Succeeded":
        return ExitCode.COMPLETED
    if status.phase == "Failed":
        code = status.last_failure.exit_code if status.last_failure else None
        return code if code and code in set(ExitCode) else ExitCode.EXCEPTION
    return 130
