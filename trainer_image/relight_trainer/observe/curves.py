"""Curves, histograms and pictures of a training, written behind its back by rank 0.

In the folder of the job:

    metrics.jsonl                    each logged value, a line a step
    tensorboard/train/               logged values, histograms, feature maps
    tensorboard/evaluation/          what evaluations gave
        events.out.tfevents.<when the job was created>.<generation>

A generation goes on with the curves of those before it, from the step it was restored at: what they say of later steps
goes, for these are done again. An evaluation at that step is done again too. What a process that is killed has not yet
written, milliseconds' worth where storage is well, is missing.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor, nn

from relight_trainer.config import BadConfig
from relight_trainer.globs import chosen, near
from relight_trainer.hooks import Hook
from relight_trainer.observe.later import later
from relight_trainer.observe.mirror import Mirror
from relight_trainer.observe.pictures import grid, histogram, reduced, sample_of
from relight_trainer.observe.tensorboard import EventFile, Histogram, Pixels
from relight_trainer.observe.writer import Writer
from relight_trainer.patterns import require
from relight_trainer.problems import Problem, shown
from relight_trainer.run import Run
from relight_trainer.settings.observe import FeatureMaps, Histograms

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

LINES = "metrics.jsonl"
CLOSING_SECONDS = 10.0  # for what is still to be written at the end
Scalars = Mapping[str, float]


class Sink(Protocol):
    """Where values go; called in the writer's thread. `evaluation` tells values of evaluations from those of steps."""

    def open(self, resumed_at: int) -> None: ...

    def scalars(self, values: Scalars, step: int, at: float, *, evaluation: bool) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`{"step": 20, "time": 1762000000.1, "generation": 1, "loss": 0.5}` a line; what is not finite is text."""

    def __init__(self, path: Path, generation: int) -> None:
        self._path = path
        self._generation = generation
        self._file: Any = None

    def open(self, resumed_at: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            new = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
            with self._path.open("rb") as old, new.open("wb") as kept:
                kept.writelines(line for line in old if _stays(line, resumed_at))
            new.replace(self._path)  # a worker of an older generation that still writes does so into the old file
        self._file = self._path.open("ab", buffering=0)

    def scalars(self, values: Scalars, step: int, at: float, *, evaluation: bool) -> None:
        plain = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        line = {"step": step, "time": round(at, 3), "generation": self._generation}
        line |= {"evaluation": True} if evaluation else {}
        self._file.write(json.dumps(line | plain, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        self._file.close()


def _stays(line: bytes, resumed_at: int) -> bool:
    """Whether a generation that resumes at this step keeps the line: it is whole, and not written again."""
    try:
        known = json.loads(line)
        return line.endswith(b"\n") and bool(known["step"] + bool(known.get("evaluation")) <= resumed_at)
    except (ValueError, KeyError, TypeError):  # cut off by a power failure
        return False


class TensorBoard:
    """Event files of one generation below `folder`."""

    def __init__(self, folder: Path, created: float, generation: int) -> None:
        # In the order of generations, whose workers' clocks may differ, readers take the files.
        self._name = f"events.out.tfevents.{int(created):010d}.{generation:06d}"
        self._folder = folder
        self._files: list[EventFile] = []

    def open(self, resumed_at: int) -> None:
        for name, first_new in (("train", resumed_at + 1), ("evaluation", resumed_at)):
            path = self._folder / name / self._name
            self._files.append(EventFile(path, from_step=first_new, wall_time=time.time()))

    def scalars(self, values: Scalars, step: int, at: float, *, evaluation: bool) -> None:
        for name, value in values.items():
            self._files[evaluation].scalar(name, value, step, at)

    def histogram(self, name: str, value: Histogram, step: int, at: float) -> None:
        self._files[0].histogram(name, value, step, at)

    def image(self, name: str, pixels: Pixels, step: int, at: float) -> None:
        self._files[0].image(name, pixels, step, at)

    def close(self) -> None:
        for file in self._files:
            file.close()


class Curves(Hook):
    """Hands what is logged to the sinks, with what `machine` says of the member. Last of all hooks: it ends the writing."""

    order = 100
    on_error = "warn"

    def __init__(
        self,
        writer: Writer,
        sinks: list[Sink],
        machine: Callable[[], Scalars] | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        """`mirror`: where the sinks write is not where it is to be seen."""
        self._writer = writer
        self._mirror = mirror
        self._sinks = sinks
        self._machine = machine
        self._evaluating = False

    def run_begin(self, run: Run) -> None:
        if self._mirror is not None:
            self._writer.put(partial(self._mirror.fetch, LINES))
        for sink in self._sinks:
            self._writer.put(partial(sink.open, run.step))

    def evaluation_begin(self, run: Run) -> None:  # noqa: ARG002  # as in Hook
        self._evaluating = True

    def logged(self, run: Run, metrics: Scalars) -> None:
        if self._evaluating:
            return
        values, step, at = dict(metrics), run.step, time.time()

        def write() -> None:
            measured = self._machine() if self._machine is not None else {}
            self._scalars({**values, **measured}, step, at, evaluation=False)

        self._writer.put(write)

    def evaluation_end(self, run: Run, metrics: Scalars) -> None:
        self._evaluating = False
        values, step, at = dict(metrics), run.step, time.time()
        self._writer.put(lambda: self._scalars(values, step, at, evaluation=True))

    def run_end(self, run: Run) -> None:
        if not self._close():
            run.session.say("observe: the storage is too slow: the end of the curves is not written")

    def failed(self, run: Run, error: Exception) -> None:  # noqa: ARG002  # as in Hook
        self._close()

    def _scalars(self, values: Scalars, step: int, at: float, *, evaluation: bool) -> None:
        for sink in self._sinks:
            sink.scalars(values, step, at, evaluation=evaluation)
        if self._mirror is not None:
            self._mirror.push_if_due()

    def _close(self) -> bool:
        for sink in self._sinks:
            self._writer.put(sink.close)
        if self._mirror is not None:
            self._writer.put(self._mirror.push)
        return self._writer.close(CLOSING_SECONDS)


class Layer(NamedTuple):
    path: str
    module: nn.Module


class LayerPictures(Hook):
    """Draws the outputs of layers for the first micro-batch of a step, in the first step and then every so often.

    Between those steps no module has a hook.
    """

    order = 90
    on_error = "fail"  # the first thing it does is to check the patterns

    def __init__(self, writer: Writer, board: TensorBoard, settings: FeatureMaps) -> None:
        self._writer = writer
        self._board = board
        self._settings = settings
        self._layers: list[Layer] = []
        self._handles: list[RemovableHandle] = []
        self._every = 0

    def run_begin(self, run: Run) -> None:
        self._every = self._settings.every.steps(run.epoch_size)
        self._layers = layers_of(run.model, self._settings.layers)

    def step_begin(self, run: Run) -> None:
        if shown_at(run.step, self._every):
            for layer in self._layers:
                self._handles.append(layer.module.register_forward_hook(self._taker(layer.path, run.step + 1)))

    def forward_end(self, run: Run) -> None:  # noqa: ARG002  # as in Hook
        while self._handles:
            self._handles.pop().remove()

    def _taker(self, path: str, step: int) -> Callable[[nn.Module, Any, Any], None]:
        def take(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001  # torch's signature
            drawn = sample_of(output) if isinstance(output, Tensor) else None
            if drawn is None:
                return
            read, at = later(drawn.float()), time.time()
            self._writer.put(
                lambda: self._board.image(f"features/{path}", grid(read().numpy(), self._settings.most), step, at)
            )

        return take


class TensorHistograms(Hook):
    """Histograms of parameters and their gradients, in the first step and then every so often."""

    order = 90
    on_error = "fail"  # the first thing it does is to check the patterns

    def __init__(self, writer: Writer, board: TensorBoard, settings: Histograms) -> None:
        self._writer = writer
        self._board = board
        self._settings = settings
        self._every = 0
        self._parameters: dict[str, nn.Parameter] = {}
        self._with_gradients: dict[str, nn.Parameter] = {}

    def run_begin(self, run: Run) -> None:
        self._every = self._settings.every.steps(run.epoch_size)
        known = dict(run.model.named_parameters())
        for field in ("parameters", "gradients"):
            require(known, getattr(self._settings, field), f"observe.histograms.{field}")
        self._parameters = {name: known[name] for name in chosen(known, self._settings.parameters)}
        self._with_gradients = {name: known[name] for name in chosen(known, self._settings.gradients)}

    def gradients_ready(self, run: Run) -> None:
        if shown_at(run.step, self._every):
            for name, parameter in self._with_gradients.items():
                if parameter.grad is not None:
                    self._show(f"gradients/{name}", parameter.grad, run.step + 1)

    def update_end(self, run: Run) -> None:
        if shown_at(run.step, self._every):
            for name, parameter in self._parameters.items():
                self._show(f"parameters/{name}", parameter, run.step + 1)

    def _show(self, tag: str, values: Tensor, step: int) -> None:
        if not values.numel():
            return
        # On a device the small result is waited for; on the CPU the work itself is left to the writer's thread.
        on_cpu = values.device.type == "cpu"
        read, at = later(values if on_cpu else reduced(values)), time.time()

        def write() -> None:
            numbers = reduced(read()) if on_cpu else read()
            drawn, others = histogram(numbers.numpy())
            if drawn is not None:
                self._board.histogram(tag, drawn, step, at)
            if others:
                self._board.scalars({f"not-finite/{tag}": others}, step, at, evaluation=False)

        self._writer.put(write)


def shown_at(done: int, every: int) -> bool:
    """Whether the step that follows `done` ones is shown: the first one, and each whose number is a multiple.

    >>> [step for step in range(1, 9) if shown_at(step - 1, 3)]
    [1, 3, 6]
    """
    return done == 0 or (done + 1) % every == 0


def layers_of(model: nn.Module, patterns: list[str]) -> list[Layer]:
    """The modules whose dotted paths match a pattern. Raises BadConfig for a pattern that matches none."""
    modules = {path: module for path, module in model.named_modules() if path}
    problems = [
        Problem(
            path=f"observe.feature_maps.layers[{i}]",
            message="matches no module of the model",
            found=shown(pattern),
            allowed=", ".join(near(modules, pattern)),
        )
        for i, pattern in enumerate(patterns)
        if not any(fnmatchcase(path, pattern) for path in modules)
    ]
    if problems:
        raise BadConfig(problems)
    return [Layer(*item) for item in modules.items() if any(fnmatchcase(item[0], pattern) for pattern in patterns)]
