"""What `relight run` shows: a progress bar on a terminal, plain lines elsewhere, a summary at the end."""

import io
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from relight_operator.api.job import TrainingJob
from relight_operator.api.status import JobStatus
from relight_operator.cli.printing import shown
from relight_operator.cli.tracebacks import last_traceback
from relight_operator.core.actions import EmitEvent

PLAIN_SECONDS = 5.0
PLAIN_PERCENT = 10


class Outlet(io.TextIOBase):
    """A stream that may fail without harm: training does not end because a terminal, a disk or a reader has gone."""

    def __init__(self, stream: TextIO | None, on_reader_gone: Callable[[], None]) -> None:
        """`stream` is None where it was closed before the start. `on_reader_gone` may be called from any thread."""
        self._stream = stream
        self._on_reader_gone = on_reader_gone
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path that the terminal cannot spell

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in typeshed
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except OSError as error:
                self._lost(self._stream, error)
        return len(text)

    def _lost(self, stream: TextIO, error: OSError) -> None:
        self._stream = None
        # What is still buffered would be tried again, and complained about, when the interpreter ends.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        if isinstance(error, BrokenPipeError):
            self._on_reader_gone()


class Display:
    def __init__(self, stream: TextIO | None) -> None:
        self.reader_gone = False
        self.on_reader_gone: Callable[[], None] = lambda: None
        outlet = Outlet(stream, self._reader_gone)
        self._console = Console(file=cast("TextIO", outlet), highlight=False, soft_wrap=True)
        self._started = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._said_percent = -PLAIN_PERCENT
        self._said_at = 0.0
        self._why = ""  # what the job has failed of
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[metrics]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task("starting", total=None, metrics="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _reader_gone(self) -> None:
        self.reader_gone = True
        self.on_reader_gone()

    def line(self, text: str, style: str | None = None) -> None:
        elapsed = time.monotonic() - self._started
        self._console.print(f"[dim]{elapsed:7.2f}s[/dim] {shown(text)}", style=style)

    def start(self, job: TrainingJob, state: Path, said: list[str]) -> None:
        spec = job.spec
        processes = spec.workers_per_node
        nodes = "1 node" if spec.nodes == 1 else f"{spec.nodes} nodes"
        spares = f", {spec.spares} spare{'s' if spec.spares > 1 else ''}" if spec.spares else ""
        each = f"{processes} process{'es' if processes > 1 else ''}"
        self.line(f"{job.metadata.name}: {nodes} x {each}{spares}, state in {state}")
        for text in said:
            self.line(text)

    def event(self, event: EmitEvent) -> None:
        if event.message and event.message == self._why:
            return  # the summary says it
        self.line(f"{event.reason}: {event.message}", style="yellow" if event.warning else None)

    def status(self, status: JobStatus) -> None:
        self._why = next((c.message for c in status.conditions if c.type == "Failed"), "")
        progress = status.progress
        if progress is None:
            return
        metrics = " ".join(f"{k} {v}" for k, v in list(progress.metrics.items())[:4])
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task,
                description=status.phase.lower(),
                completed=progress.step,
                total=progress.total_steps or None,
                metrics=shown(metrics),
            )
            return
        now = time.monotonic()
        due = progress.percent >= self._said_percent + PLAIN_PERCENT or now > self._said_at + PLAIN_SECONDS
        if due and status.phase == "Running":
            self._said_percent, self._said_at = progress.percent, now
            epoch = f" epoch {progress.epoch}" if progress.epoch else ""
            self.line(f"step {progress.step}/{progress.total_steps}{epoch} {metrics}".rstrip())

    def end(self, lines: list[str]) -> None:
        for text in lines:
            self._console.print(shown(text))


def summary(
    job: TrainingJob, status: JobStatus, state: Path, again: list[str], log: Callable[[Path], str] = lambda _: ""
) -> list[str]:
    """What happened, in words. `again`: the command line that goes on with this job; `log`: the end of a member's log."""
    name, restarts, goodput = job.metadata.name, status.restarts, status.goodput
    took = ""
    if status.start_time is not None and status.completion_time is not None:
        took = f" in {status.completion_time - status.start_time:.1f} s"
    lines = [f"\n{name}: {status.phase}{took}"]
    failure = status.last_failure
    if status.phase == "Failed":
        reason = next((c for c in status.conditions if c.type == "Failed"), None)
        lines += [f"  why         {reason.reason}: {reason.message}" if reason else "  why         unknown"]
        if failure is not None and failure.member:
            path = state / "members" / failure.member / "log"
            lines += [f"    {line}" for line in last_traceback(log(path), failure.message)]
            lines.append(f"  logs        {path}")
    if status.result is not None:
        metrics = ", ".join(f"{k} {v}" for k, v in status.result.metrics.items())
        steps = f"{status.result.steps} steps" if status.result.steps else ""
        if steps or metrics:
            lines.append(f"  result      {', '.join(filter(None, (steps, metrics)))}")
    if restarts.total:
        causes = ", ".join(f"{n} x {cause}" for cause, n in sorted(restarts.by_cause.items()))
        lines.append(f"  survived    {causes}" if status.phase == "Succeeded" else f"  met         {causes}")
        back = f"; last recovery took {goodput.last_recovery_seconds} s" if goodput.last_recovery_seconds else ""
        if goodput.executed_steps:
            lines.append(f"  cost        {goodput.lost_steps} steps lost, {goodput.executed_steps} executed{back}")
    if status.result is not None and status.result.weights_digest:
        lines.append(f"  weights     sha256 {status.result.weights_digest}")
        if status.exactness not in {"", "bit-equal"}:
            lines.append(
                f"  exactness   {status.exactness}: not all generations were of {status.nodes_at_start} members"
            )
    for notice in status.checkpoint.notices:
        lines.append(f"  note        {notice}")
    if status.phase == "Suspended":
        step = status.checkpoint.step
        saved = f"saved at step {step}" if step is not None else "nothing had been saved yet"
        if job.spec.suspend:
            saved += "; spec.suspend is true: set it to false, then"
        lines.append(f"  stopped     {saved}; go on with: {shlex.join(again)}")
    lines.append(f"  state       {state}")
    return lines
