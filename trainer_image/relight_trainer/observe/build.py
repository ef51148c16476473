"""The hooks that the section `observe` asks for."""

from pathlib import Path

import torch

from relight_agent.exits import ExitCode
from relight_trainer.context import WorkerContext
from relight_trainer.hooks import Hook
from relight_trainer.observe.curves import Curves, JsonLines, LayerPictures, Sink, TensorBoard, TensorHistograms
from relight_trainer.observe.leaks import LeakDetector
from relight_trainer.observe.machine import reader
from relight_trainer.observe.oom import MemoryReport
from relight_trainer.observe.profile import REQUEST, ProfileOnDemand, Request
from relight_trainer.observe.timing import TimeSplit, clock_for
from relight_trainer.observe.writer import Writer
from relight_trainer.settings.observe import Observe


class NowhereToWrite(Exception):
    """Something is to be shown, and the job has no folder for it."""

    exit_code = ExitCode.BAD_CONFIG


def folder_for(settings: Observe, context: WorkerContext) -> Path | None:
    """Where this job's curves and traces go; None where it has no place for them."""
    job = context.job
    if settings.folder is not None:
        return Path(settings.folder) / job.namespace / job.name
    return Path(job.checkpoint_dir) if job.checkpoint_dir else None


def hooks_for(settings: Observe, context: WorkerContext, device: torch.device) -> list[Hook]:
    """The hooks of this rank. Raises NowhereToWrite."""
    folder = folder_for(settings, context)
    first = context.rank == 0
    hooks: list[Hook] = []
    if settings.time_split:
        hooks.append(TimeSplit(clock_for(device), node_rank=context.node_rank, tell=first))
    if settings.find_leaks:
        hooks.append(LeakDetector())
    if folder is not None:
        request = Request(context.run_dir / REQUEST, settings.profile_steps)
        hooks += [
            ProfileOnDemand(request, folder / "profiles"),
            MemoryReport(folder / "oom", history=settings.memory_history),
        ]
    elif wanted := [name for name in ("tensorboard", "jsonl", "memory_history") if getattr(settings, name)]:
        raise NowhereToWrite(
            f"observe.{wanted[0]}: there is nowhere to write; allowed: with spec.checkpoint, or with observe.folder"
        )
    if first and folder is not None and (settings.tensorboard or settings.jsonl):
        hooks += _curves(settings, context, folder)
    return hooks


def _curves(settings: Observe, context: WorkerContext, folder: Path) -> list[Hook]:
    writer = Writer(lambda text: print(f"relight: {text}", flush=True))
    hooks: list[Hook] = []
    sinks: list[Sink] = []
    if settings.jsonl:
        sinks.append(JsonLines(folder / "metrics.jsonl", context.generation))
    if settings.tensorboard:
        board = TensorBoard(folder / "tensorboard", context.job.created, context.generation)
        sinks.append(board)
        if settings.feature_maps is not None:
            hooks.append(LayerPictures(writer, board, settings.feature_maps))
        if settings.histograms is not None:
            hooks.append(TensorHistograms(writer, board, settings.histograms))
    return [Curves(writer, sinks, reader() if settings.machine else None), *hooks]
