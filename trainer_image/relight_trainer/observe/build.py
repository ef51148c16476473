"""The hooks that the section `observe` asks for."""

import atexit
import shutil
import tempfile
from pathlib import Path

import torch

from relight_agent.exits import ExitCode
from relight_trainer.context import WorkerContext
from relight_trainer.hooks import Hook
from relight_trainer.observe.curves import LINES, Curves, JsonLines, LayerPictures, Sink, TensorBoard, TensorHistograms
from relight_trainer.observe.leaks import LeakDetector
from relight_trainer.observe.machine import reader
from relight_trainer.observe.mirror import Mirror
from relight_trainer.observe.oom import MemoryReport
from relight_trainer.observe.profile import REQUEST, ProfileOnDemand, Request
from relight_trainer.observe.timing import TimeSplit, clock_for
from relight_trainer.observe.writer import Writer
from relight_trainer.settings.observe import Observe


class NowhereToWrite(Exception):
    """Something is to be shown, and the job has no folder for it."""

    exit_code = ExitCode.BAD_CONFIG


def place_for(settings: Observe, context: WorkerContext) -> str | None:
    """Where this job's curves and traces go, a path or a URL; None where it has no place for them."""
    job = context.job
    if settings.folder is not None:
        return f"{settings.folder.rstrip('/')}/{job.namespace}/{job.name}"
    return job.checkpoint_dir or None


def folder_for(place: str) -> tuple[Path, Mirror | None]:
    """The folder to write to, and who brings it to `place` where that is an object store."""
    if place.startswith("file://"):
        return Path(place.removeprefix("file://")), None
    if "://" not in place:
        return Path(place), None
    folder = Path(tempfile.mkdtemp(prefix="relight-observe-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder, Mirror(folder, place)


def hooks_for(settings: Observe, context: WorkerContext, device: torch.device) -> list[Hook]:
    """The hooks of this rank. Raises NowhereToWrite."""
    place = place_for(settings, context)
    first = context.rank == 0
    hooks: list[Hook] = []
    if settings.time_split:
        hooks.append(TimeSplit(clock_for(device), node_rank=context.node_rank, tell=first))
    if settings.find_leaks:
        hooks.append(LeakDetector())
    if place is not None:
        folder, mirror = folder_for(place)
        request = Request(context.run_dir / REQUEST, settings.profile_steps)
        hooks += [
            ProfileOnDemand(request, folder / "profiles", mirror),
            MemoryReport(folder / "oom", mirror, history=settings.memory_history),
        ]
        if first and (settings.tensorboard or settings.jsonl):
            hooks += _curves(settings, context, folder, mirror)
    elif wanted := [name for name in ("tensorboard", "jsonl", "memory_history") if getattr(settings, name)]:
        raise NowhereToWrite(
            f"observe.{wanted[0]}: there is nowhere to write; allowed: with spec.checkpoint, or with observe.folder"
        )
    return hooks


def _curves(settings: Observe, context: WorkerContext, folder: Path, mirror: Mirror | None) -> list[Hook]:
    writer = Writer(lambda text: print(f"relight: {text}", flush=True))
    hooks: list[Hook] = []
    sinks: list[Sink] = []
    if settings.jsonl:
        sinks.append(JsonLines(folder / LINES, context.generation))
    if settings.tensorboard:
        board = TensorBoard(folder / "tensorboard", context.job.created, context.generation)
        sinks.append(board)
        if settings.feature_maps is not None:
            hooks.append(LayerPictures(writer, board, settings.feature_maps))
        if settings.histograms is not None:
            hooks.append(TensorHistograms(writer, board, settings.histograms))
    return [Curves(writer, sinks, reader() if settings.machine else None, mirror), *hooks]
