"""Finds what keeps the autograd graph of a step that is over: a list of losses, a metric that was not detached."""

import gc
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import ClassVar

from torch import Tensor
from torch.utils._pytree import tree_leaves

from relight_agent.exits import ExitCode
from relight_trainer.hooks import Hook
from relight_trainer.run import Run

_CONTAINERS = (list, tuple, set, deque)
_PATIENCE = 2  # steps for which a graph may live on: the loop itself holds the newest output


class GraphLeak(Exception):
    """The graph of an earlier step is still there."""

    exit_code: ClassVar[ExitCode] = ExitCode.EXCEPTION


class LeakDetector(Hook):
    """Raises GraphLeak two steps after a graph should have gone, and names what holds it. For debugging: some 0.1 ms a step.

    A function hooked to the model's output lives exactly as long as the output's node in the graph does.
    """

    order = 100

    def __init__(self) -> None:
        self._watched: deque[tuple[int, weakref.ref[Callable[[Tensor], None]]]] = deque()

    def forward_end(self, run: Run) -> None:
        for leaf in tree_leaves(run.output):
            if isinstance(leaf, Tensor) and leaf.grad_fn is not None:

                def alive(gradient: Tensor) -> None:
                    """The mark whose life is watched."""

                leaf.register_hook(alive)  # type: ignore[no-untyped-call]
                self._watched.append((run.step + 1, weakref.ref(alive)))

    def step_end(self, run: Run) -> None:
        while self._watched and self._watched[0][0] <= run.step - _PATIENCE:
            step, mark = self._watched.popleft()
            if mark() is not None:
                gc.collect()  # a graph in a cycle of garbage is no leak
            if mark() is not None:
                raise GraphLeak(
                    f"the autograd graph of step {step} is still held after step {run.step}, and its memory with it: "
                    f"{'; '.join(sorted(set(holders(run)))) or 'nobody that Python knows of'}. "
                    "Log value.detach(), or float(value) now and then"
                )


def holders(run: Run) -> Iterator[str]:
    """Which attributes and globals hold tensors that have a graph, in a container or not: `"losses" of MyHook`."""
    expected = {id(leaf) for leaf in tree_leaves((run.output, run.batch))}
    objects = gc.get_objects()
    # Of strangers' objects the class is asked and nothing else: attributes may be code.
    graphs = {id(o) for o in objects if issubclass(type(o), Tensor) and o.grad_fn is not None} - expected
    for owner in objects:
        try:
            attributes = object.__getattribute__(owner, "__dict__")
        except AttributeError:
            continue
        if owner is run or not isinstance(attributes, dict):
            continue
        for name, value in list(attributes.items()):
            parts = value.values() if type(value) is dict else value if type(value) in _CONTAINERS else ()
            if id(value) in graphs or any(id(part) in graphs for part in tuple(parts)):
                kind = f"the module {owner.__name__}" if isinstance(owner, ModuleType) else type(owner).__name__
                yield f'"{name}" of {kind}'
