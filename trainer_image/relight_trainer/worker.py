"""The entry of each worker that torch's elastic agent starts: set the process right, run the job's entry, say how it ended."""

import atexit
import contextlib
import importlib.util
import multiprocessing.util
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from relight_agent.exits import ExitCode
from relight_agent.files import Heartbeat, Outcome
from relight_agent.processes import die_with_parent
from relight_trainer import hygiene, learned_imports, main_process
from relight_trainer.context import WorkerContext
from relight_trainer.failures import classify, describe, exit_status, manner_of, recognise, tell
from relight_trainer.seeds import seed_everything, stream
from relight_trainer.words import code_of

ELASTIC_IDENTICAL = "TORCH_ELASTIC_WORKER_IDENTICAL"  # read by torch's elastic agent, and by no worker

# The agent starts such a generation again, cold.
BAD_FORK = "bad fork:"


class BadFork(Exception):
    """A device was touched before the fork; CUDA cannot be used in this process."""

    exit_code = ExitCode.MACHINE_UNHEALTHY


class BadEntry(Exception):
    """There is nothing to run where the job says that there is."""

    exit_code = ExitCode.BAD_CONFIG


def main(parent: int) -> NoReturn:
    """Be one worker of the generation whose elastic agent is process `parent`. Never returns."""
    begin(parent)
    serve()


def begin(parent: int) -> None:
    """Become a process of its own, after a fork from `parent`."""
    die_with_parent(parent)
    hygiene.lead_own_group()
    main_process.become_main_process()
    hygiene.keep_descriptors_from_programs()
    hygiene.cut_inherited_sockets()
    hygiene.reset_signals()
    hygiene.unhush_loggers()
    hygiene.disown_finalizers()
    learned_imports.begin()


def serve() -> NoReturn:
    """Be the worker that this process's environment tells of. Never returns."""
    context = WorkerContext.from_env()
    assert context is not None, "a worker is started by the launcher"
    os.environ.pop(ELASTIC_IDENTICAL, None)
    hygiene.write_stacks_to(context.folder.stack_path(context.local_rank))
    context.folder.write_pid(context.local_rank)
    outcome = _run_to_the_end(context)
    if outcome.kind == "failed":
        # At once: peers wait in their collectives until this process is gone, and the agent sees to that.
        _say(context, outcome)
    _run_exit_handlers()
    # The agent ends the session when all have said how they ended: a good end is said when nothing is left to do.
    _say(context, outcome)
    os._exit(outcome.exit_code)


def _say(context: WorkerContext, outcome: Outcome) -> None:
    """Write the outcome, unless one has been written: the client writes a stop itself."""
    if not any(i == context.local_rank for i, _ in context.folder.outcomes(context.local_world_size)):
        context.folder.write_outcome(context.local_rank, outcome)


def _run_to_the_end(context: WorkerContext) -> Outcome:
    try:
        _check_fork()
        settings = context.job.entry.get("config", {}).get("train", {})
        hygiene.set_threads(int(settings.get("threads") or os.environ.get("OMP_NUM_THREADS") or 1))
        _seed(stream(int(settings.get("seed", 0)), "worker", context.generation, context.rank))
        return entry_of(context)() or _completed(context)
    except SystemExit as end:
        if code_of(end) in (None, 0):
            return _ended_with_0(context)
        return _outcome_of(end, context)
    except BaseException as error:
        return _outcome_of(error, context)


def _check_fork() -> None:
    if torch.cuda._is_in_bad_fork():  # noqa: SLF001  # no public name; what torch's own lazy initialisation asks
        raise BadFork(f"{BAD_FORK} CUDA was initialised before this worker was forked")


def _seed(value: int) -> None:
    """Seed all global generators: by fork alone they are equal in all local workers and in every generation."""
    seed_everything(value)
    torch.manual_seed(value)  # CUDA's as well, when it is initialised


def entry_of(context: WorkerContext) -> Callable[[], Outcome | None]:
    """What the job file asks this worker to run. Raises BadEntry for a kind that workers do not know."""
    match context.job.entry:
        case {"kind": "config"}:
            return lambda: run_config(context)
        case {"kind": "script", "argv": [script, *arguments]}:
            return lambda: run_script(script, arguments, context.job.workdir)
        case {"kind": "module", "argv": [module, *arguments]}:
            return lambda: run_module(module, arguments, context.job.workdir)
        case entry:
            raise BadEntry(f"a worker cannot run an entry of kind {entry.get('kind')!r}")


def run_config(context: WorkerContext) -> Outcome:
    """Run the training core in the job's folder: relative paths start there, and what is imported by name may lie there."""
    os.chdir(context.job.workdir)
    sys.path.append(str(Path.cwd()))  # last: a `queue.py` there is not to become a library's
    from relight_trainer import train

    return train.run(context)


def run_script(script: str, arguments: list[str], workdir: str) -> None:
    """Run a file as `python script arguments...` would in `workdir`. Raises BadEntry where there is no such file."""
    os.chdir(workdir)
    if not Path(script).exists():
        raise BadEntry(f"trainer.script: there is no {Path(script).absolute()}")
    main_process.run_script(script, arguments)


def run_module(module: str, arguments: list[str], workdir: str) -> None:
    """Run a module as `python -m module arguments...` would in `workdir`. Raises BadEntry where there is none."""
    os.chdir(workdir)
    # Where the module is looked for, while it is looked for.
    sys.path.insert(0, str(Path.cwd()))
    found = importlib.util.find_spec(module.partition(".")[0])
    del sys.path[0]
    if found is None:
        raise BadEntry(f"trainer.module: there is no module {module!r} for {sys.executable} in {workdir}")
    main_process.run_module(module, arguments)


def _completed(context: WorkerContext) -> Outcome:
    """The end of a script that ran through: the client's word on it, where the script uses the client.

    Raises Unfinished where its training is not over.
    """
    from relight_trainer import client

    return client.at_the_end() or Outcome("completed", context.rank, at=time.monotonic())


def _ended_with_0(context: WorkerContext) -> Outcome:
    """By `sys.exit(0)`, or where the client has stopped the script."""
    try:
        return _completed(context)
    except BaseException as error:
        return _outcome_of(error, context)


def _outcome_of(error: BaseException, context: WorkerContext) -> Outcome:
    at = time.monotonic()
    tell(error)
    beat = Heartbeat.read(context.folder.heartbeat_path(context.local_rank))
    return Outcome(
        "failed",
        context.rank,
        step=beat[1] if beat is not None else 0,
        exit_code=int(classify(error)),
        message=describe(error),
        at=at,
        fingerprint=recognise(error),
        exit_status=exit_status(error),
        manner=str(manner_of(error)),
    )


def _run_exit_handlers() -> None:
    """What an interpreter does at its end, but for destructors: those of what was inherited by fork are not ours to run."""
    handlers: tuple[Callable[[], Any], ...] = (
        threading._shutdown,  # type: ignore[attr-defined]  # noqa: SLF001  # as multiprocessing does for its children
        atexit._run_exitfuncs,  # noqa: SLF001  # a forked process never runs them by itself
        multiprocessing.util._exit_function,  # type: ignore[attr-defined]  # noqa: SLF001  # ends loader processes; done once, whoever asks
    )
    for handler in handlers:
        with contextlib.suppress(BaseException):
            handler()
    for file in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            file.flush()
