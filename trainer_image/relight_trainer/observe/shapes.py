"""What shape everything has on its way through a model, layer by layer: what `relight inspect --model` says."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from relight_trainer.config import TrainerConfig
from relight_trainer.objective import Objective, OwnObjective, OwnStep
from relight_trainer.observe.memory import on_shapes, rows
from relight_trainer.registry import build
from relight_trainer.settings.loss import LOSSES
from relight_trainer.settings.model import MODELS
from relight_trainer.step_context import OutsideTraining


class Call(NamedTuple):
    """One call of a module's forward; `output` is None where it did not come back."""

    path: str
    kind: str
    parameters: int  # numbers of its own
    input: list[list[int]]  # the shape of each tensor
    output: list[list[int]] | None


class Trace(NamedTuple):
    calls: list[Call]  # in the order in which they were begun
    failed: int | None  # the innermost call that raised
    message: str


def trace(config: TrainerConfig, sample: Any, samples: int = 2) -> Trace:
    """The forward pass of `config`'s model over `samples` like `sample`, on shapes alone.

    Raises what building the model raises; what its forward pass raises is in the answer.
    """
    with on_shapes(lambda: build(MODELS, config.model), rows(sample, samples)) as (model, inputs):
        recorder = _Recorder(model)
        own = hasattr(model, "training_step")
        objective = OwnObjective() if own else Objective(build(LOSSES, config.loss))
        logging.getLogger("torch._subclasses.fake_tensor").setLevel(
            logging.CRITICAL
        )  # it would tell the error too, with a traceback
        try:
            objective.output(OwnStep(model) if own else model, inputs, OutsideTraining(config, model))
        except Exception as error:
            return Trace(recorder.calls, recorder.failed, f"{type(error).__name__}: {error}")
        return Trace(recorder.calls, None, "")


def text(found: Trace) -> str:
    """The table for a person, and the layer at which it broke."""
    rows_of = [
        (c.path or "(the model itself)", c.kind, _words(c.input), _words(c.output), f"{c.parameters:,}")
        for c in found.calls
    ]
    heads = ("layer", "type", "in", "out", "parameters")
    widths = [max(len(row[i]) for row in [heads, *rows_of]) for i in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [heads, *rows_of]
    ]
    if found.message:
        lines.append(_culprit(found))
    return "\n".join(lines)


def dump(found: Trace) -> dict[str, Any]:
    """The same as JSON."""
    failed = None if not found.message else {"layer": _name(found), "message": found.message}
    return {"layers": [call._asdict() for call in found.calls], "failed": failed}


def _culprit(found: Trace) -> str:
    if found.failed is None:
        return f"no layer, but what is around them fails: {found.message}"
    call = found.calls[found.failed]
    before = next((c for c in reversed(found.calls[: found.failed]) if c.output is not None), None)
    came = f"; {before.path or 'the model'} ({before.kind}) before it gave {_words(before.output)}" if before else ""
    return f"{_name(found)} ({call.kind}) cannot take {_words(call.input)}{came}: {found.message}"


def _name(found: Trace) -> str | None:
    return (found.calls[found.failed].path or "(the model itself)") if found.failed is not None else None


def _words(shapes: list[list[int]] | None) -> str:
    if shapes is None:
        return "fails"
    return ", ".join("x".join(map(str, shape)) or "a number" for shape in shapes) or "-"


class _Recorder:
    def __init__(self, model: nn.Module) -> None:
        self.calls: list[Call] = []
        self.failed: int | None = None
        self._open: list[int] = []
        for path, module in model.named_modules():
            module.register_forward_pre_hook(self._begin(path), with_kwargs=True)
            module.register_forward_hook(self._end, always_call=True)

    def _begin(self, path: str) -> Callable[..., None]:
        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            own = sum(p.numel() for p in module.parameters(recurse=False))
            self._open.append(len(self.calls))
            self.calls.append(Call(path, type(module).__name__, own, list(_shapes((args, kwargs))), None))

        return begin

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG002  # torch's signature
        i = self._open.pop()
        if output is None:  # always_call: it has raised
            self.failed = i if self.failed is None else self.failed
        else:
            self.calls[i] = self.calls[i]._replace(output=list(_shapes(output)))


def _shapes(value: Any) -> Iterator[list[int]]:
    return (
        list(leaf.shape)
        for leaf in tree_leaves(value)
        if isinstance(leaf, Tensor) and not isinstance(leaf, torch.nn.Parameter)
    )
