"""What is looked at is not held: memory stays flat, and who holds a graph is named."""

import gc
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relight_trainer.hooks import Hook, Hooks
from relight_trainer.observe.curves import Curves, JsonLines, LayerPictures, TensorBoard, TensorHistograms
from relight_trainer.observe.leaks import GraphLeak, LeakDetector
from relight_trainer.observe.timing import HostClock, TimeSplit
from relight_trainer.observe.writer import Writer
from relight_trainer.settings.observe import FeatureMaps, Histograms
from relight_trainer.settings.spans import EpochSize, Span


def training(hooks: list[Hook], each: Callable[[int], None] = lambda _: None, steps: int = 10) -> None:
    """A loop with the points of the real one, over a model of two layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run: Any = SimpleNamespace(
        model=model, step=0, world=1, rank=0, output=None, batch=None, epoch_size=EpochSize(100, 100, 1),
        passes=lambda _: [None], device=torch.device("cpu"), session=SimpleNamespace(shown={}, say=print),
    )  # fmt: skip
    every = Hooks(hooks)
    every.run_begin(run)
    for step in range(steps):
        for point in (every.step_begin, every.micro_begin):
            point(run)
        run.batch = torch.randn(2, 1, 6, 6)
        every.data_ready(run)
        run.output = model(run.batch)
        loss = run.output.square().mean()
        run.loss = loss.detach()
        every.forward_end(run)
        loss.backward()
        for point in (every.backward_end, every.gradients_ready):
            point(run)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        every.update_end(run)
        del loss
        run.step += 1
        if run.step % 10 == 0:
            every.logged(run, {"loss": run.loss.item()})
        for point in (every.state_equal, every.step_end, every.saving, every.saved):
            point(run)
        each(step)
    every.run_end(run)


class Curve(Hook):
    """A user's hook that keeps what it sees."""

    def __init__(self, take: Callable[[Any], Any]) -> None:
        self.take = take
        self.losses: list[Any] = []

    def forward_end(self, run: Any) -> None:
        self.losses.append(self.take(run))


@pytest.mark.parametrize(
    ("take", "leaks"),
    [
        (lambda run: run.output.mean(), True),
        (lambda run: run.output, True),
        (lambda run: {"logits": run.output[0]}, True),
        (lambda run: run.loss, False),
        (lambda run: run.output.detach().mean(), False),
        (lambda run: run.output.mean().item(), False),
    ],
)
def test_what_keeps_a_graph_is_found_and_named(take: Callable[[Any], Any], leaks: bool) -> None:
    hooks = [Curve(take), LeakDetector()]
    if not leaks:
        training(hooks)
        return
    with pytest.raises(GraphLeak) as raised:
        training(hooks)
    message = str(raised.value)
    assert message.startswith("the autograd graph of step 1 is still held after step 3, and its memory with it: ")
    if not isinstance(hooks[0].losses[0], dict):  # type: ignore[attr-defined]
        assert '"losses" of Curve' in message


def test_a_graph_in_a_cycle_of_garbage_is_no_leak() -> None:
    def cycle(run: Any) -> float:
        ring: list[Any] = [run.output.mean()]
        ring.append(ring)
        return 0.0

    gc.disable()
    try:
        training([Curve(cycle), LeakDetector()])
    finally:
        gc.enable()


def test_with_everything_on_memory_is_flat_over_a_thousand_steps_and_nothing_shown_has_a_graph(tmp_path: Path) -> None:
    said: list[str] = []
    writer = Writer(said.append)
    board = TensorBoard(tmp_path / "tensorboard", 1.0, 1)
    shown = Histograms(gradients=["*"], every=Span(125, "st"))
    hooks: list[Hook] = [
        TimeSplit(HostClock(), node_rank=0, tell=False),
        LayerPictures(writer, board, FeatureMaps(layers=["*"], every=Span(125, "st"))),
        TensorHistograms(writer, board, shown),
        Curves(writer, [JsonLines(tmp_path / "metrics.jsonl", 1), board], None),
        LeakDetector(),
    ]
    sizes: dict[int, tuple[int, int]] = {}

    def note(step: int) -> None:
        if step in (249, 499, 749, 999):  # pictures were taken in these steps
            drawn = threading.Event()
            writer.put(drawn.set)
            assert drawn.wait(60)  # what still waits in the writer's queue holds tensors, as it should
            gc.collect()
            tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
            assert not any(t.grad_fn is not None and t.dim() == 0 for t in tensors)
            sizes[step] = tracemalloc.get_traced_memory()[0], len(tensors)

    tracemalloc.start()
    try:
        training(hooks, note, steps=1000)
    finally:
        tracemalloc.stop()
    assert said == []
    (_, first_tensors), (first, _), _, (last, last_tensors) = sizes.values()
    assert last_tensors <= first_tensors
    assert last - first < 30_000  # bytes in 500 steps; one float kept in each would be 12 000, a tensor 250 000
