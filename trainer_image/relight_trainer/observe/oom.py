"""What is left behind where memory runs out: who asked for it, who holds it, and what to change."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from relight_agent.cgroup import Cgroup
from relight_agent.exits import ExitCode
from relight_trainer.failures import classify
from relight_trainer.hooks import Hook
from relight_trainer.observe.mirror import Mirror
from relight_trainer.run import Run


class MemoryReport(Hook):
    """Writes `oom/rank-<r>.json` where training ends for want of memory, and tells what to do.

    With `history`, CUDA's allocations are recorded from the start, and the snapshot of them is written beside it, for
    https://pytorch.org/memory_viz.
    """

    order = 0
    on_error = "warn"

    def __init__(self, folder: Path, mirror: Mirror | None = None, *, history: bool) -> None:
        self._folder = folder
        self._mirror = mirror
        self._history = history

    def run_begin(self, run: Run) -> None:
        if self._history and run.device.type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=100_000)  # noqa: SLF001  # torch documents it so

    def failed(self, run: Run, error: Exception) -> None:
        if classify(error) is not ExitCode.OUT_OF_MEMORY:
            return
        where = place_of(error.__traceback__, run.model)
        report = {
            "time": time.time(),
            "step": run.step + 1,
            "rank": run.rank,
            "error": str(error).splitlines()[0] if str(error) else type(error).__name__,
            "where": where,
            "bytes": held(run),
            "machine": Cgroup().read()._asdict(),
            "cuda": dict(torch.cuda.memory_stats(run.device)) if run.device.type == "cuda" else None,
            "suggestion": suggestion(run),
        }
        run.session.say(f"out of memory {where} in step {run.step + 1}: {report['suggestion']}")
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"rank-{run.rank}.json"
        path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if self._history and run.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(path.with_suffix(".pickle")))  # type: ignore[no-untyped-call]  # noqa: SLF001  # as above
        if self._mirror is not None:
            self._mirror.push()
        print(f"relight: what was in memory is written to oom/{path.name}", flush=True)


def place_of(trace: TracebackType | None, model: nn.Module) -> str:
    """`in the module "layer4.2.conv3"`: the innermost module whose forward was under way; else what else was."""
    paths = {id(module): path for path, module in model.named_modules()}
    inside = [paths[id(f["self"])] for f in _locals(trace) if id(f.get("self")) in paths]
    if inside:
        return f'in the module "{inside[-1]}"' if inside[-1] else "in the model's own forward"
    names = set(_functions(trace))
    if "backward" in names:
        return "in the backward pass"
    return "in the optimizer" if "step" in names else "outside the model"


def _frames(trace: TracebackType | None) -> Iterator[Any]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _locals(trace: TracebackType | None) -> Iterator[Mapping[str, Any]]:
    return (frame.f_locals for frame in _frames(trace))


def _functions(trace: TracebackType | None) -> Iterator[str]:
    return (frame.f_code.co_name for frame in _frames(trace))


def held(run: Run) -> dict[str, int]:
    """Bytes of what training holds between its steps; what else was there were activations and intermediate results."""
    parameters: list[torch.Tensor] = list(run.model.parameters())
    state = [v for s in run.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    groups: dict[str, list[torch.Tensor]] = {
        "parameters": parameters,
        "gradients": [p.grad for p in parameters if p.grad is not None],
        "buffers": list(run.model.buffers()),
        "optimizer": state,
    }
    return {name: sum(t.numel() * t.element_size() for t in tensors) for name, tensors in groups.items()}


def suggestion(run: Run) -> str:
    """What to change: less at a time first, for that leaves the training what it is."""
    less = "train.precision: bf16, " if run.config.train.precision in {"fp32", "tf32"} else ""
    samples = next((len(leaf) for leaf in tree_leaves(run.batch) if isinstance(leaf, torch.Tensor) and leaf.dim()), 0)
    if samples == 1:
        return f"not even one sample at a time fits: {less}a smaller model or input"
    fewer = f"train.micro_batch: {-(-samples // 2)} instead of {samples} samples at a time, " if samples else ""
    return f"{fewer}{less}or a smaller model"
