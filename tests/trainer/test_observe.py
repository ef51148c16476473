"""What the section `observe` shows of a real training, and that the training does not notice."""

import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import worlds
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train_exact import job, result, until

from relight_agent.files import JobFile
from relight_trainer import train
from relight_trainer.config import BadConfig, parse
from relight_trainer.hooks import Hook, Hooks
from relight_trainer.models.digits_cnn import digits_cnn
from relight_trainer.observe.build import NowhereToWrite, hooks_for
from relight_trainer.observe.curves import (
    LINES,
    Curves,
    JsonLines,
    LayerPictures,
    TensorBoard,
    TensorHistograms,
    layers_of,
)
from relight_trainer.observe.mirror import EVERY_SECONDS, Mirror
from relight_trainer.observe.timing import TimeSplit
from relight_trainer.observe.writer import WAITING, Writer
from relight_trainer.settings.observe import FeatureMaps, Histograms, Observe
from relight_trainer.settings.spans import EpochSize, Span

pytestmark = pytest.mark.timeout(120)

EVERYTHING = {
    "tensorboard": True,
    "jsonl": True,
    "feature_maps": {"layers": ["*"], "every": "5st", "most": 9},
    "histograms": {"gradients": ["*"], "every": "5st"},
    "find_leaks": True,
}


def read(folder: Path) -> EventAccumulator:
    everything = dict.fromkeys(("scalars", "histograms", "images"), 0)
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def lines(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "checkpoints" / "metrics.jsonl").read_text().splitlines()]


def observed(root: Path, observe: dict[str, Any], **more: Any) -> JobFile:
    root.mkdir(exist_ok=True)
    return job(root, observe=observe, evaluate={"every": "4st"}, **more)


class Look(Hook):
    """Sees by other means what the hooks under test see: the first convolution's output, and who else looks."""

    order = 95

    def run_begin(self, run: Any) -> None:
        self.folder = Path(run.session._context.job.checkpoint_dir)
        self.layer = next(path for path, m in run.model.named_modules() if isinstance(m, torch.nn.Conv2d))

    def step_begin(self, run: Any) -> None:
        if run.rank == 0:
            hooks = sum(len(m._forward_hooks) for m in run.model.modules())
            with (self.folder / "hooks").open("a") as file:
                file.write(f"{hooks}\n")
            if run.step == 0:
                self.handle = run.model.get_submodule(self.layer).register_forward_hook(self.save)
                (self.folder / "layer").write_text(self.layer)
                (self.folder / "layers").write_text(str(len(list(run.model.named_modules())) - 1))

    def save(self, module: Any, inputs: Any, output: torch.Tensor) -> None:
        np.save(self.folder / "first.npy", output[0].detach().numpy())
        self.handle.remove()


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of two members, everything shown, killed after steps 4 and 9 and gone on with from snapshots."""
    root = tmp_path_factory.mktemp("cut")
    the_job = observed(root, EVERYTHING, hooks=[{"type": f"{__name__}:Look"}])
    for generation, step in enumerate((4, 9), 1):
        worlds.run(until, 0, step, root=root, job=the_job, generation=generation)
    outcome = result(worlds.run(train.run, root=root, job=the_job, generation=3))
    (root / "result").write_text(json.dumps(outcome))
    return root


def test_a_training_that_is_watched_ends_with_the_same_weights_as_one_that_is_not(cut: Path, tmp_path: Path) -> None:
    unseen = observed(tmp_path, {"time_split": False, "machine": False})
    assert result(worlds.run(train.run, root=tmp_path, job=unseen)) == json.loads((cut / "result").read_text())
    assert not (tmp_path / "checkpoints" / "tensorboard").exists()


def test_curves_have_no_step_twice_though_it_was_done_more_than_once(cut: Path) -> None:
    board = read(cut / "checkpoints/tensorboard/train")
    losses = board.Scalars("loss")
    steps = [e.step for e in losses]
    assert steps == sorted(set(steps))
    # A process that dies at once takes with it what its writer has not come to yet.
    assert set(range(1, 13)) - set(steps) <= {4, 9}
    evaluations = read(cut / "checkpoints/tensorboard/evaluation")
    assert [e.step for e in evaluations.Scalars("test_accuracy")] == [4, 8, 12]
    final = json.loads((cut / "result").read_text())["metrics"]
    assert losses[-1].value == pytest.approx(float(final["loss"]))
    assert evaluations.Scalars("test_loss")[-1].value == pytest.approx(float(final["test_loss"]))

    said = lines(cut)
    assert [(n["step"], float(np.float32(n["loss"]))) for n in said if "loss" in n] == [
        (e.step, e.value) for e in losses
    ]
    assert [n["step"] for n in said if n.get("evaluation")] == [4, 8, 12]
    assert not any("test_loss" in n for n in said if not n.get("evaluation"))
    assert all(n["machine/memory_bytes"] > 0 for n in said if "loss" in n)
    assert "machine/memory_bytes" in board.Tags()["scalars"]


def test_histograms_and_pictures_are_of_the_steps_that_were_asked_for(cut: Path) -> None:
    board = read(cut / "checkpoints/tensorboard/train")
    tags = board.Tags()
    names = [tag.removeprefix("parameters/") for tag in tags["histograms"] if tag.startswith("parameters/")]
    assert sorted(tags["histograms"]) == sorted(f"{kind}/{n}" for kind in ("parameters", "gradients") for n in names)
    for tag in tags["histograms"]:
        assert [e.step for e in board.Histograms(tag)] == [1, 5, 10]
    assert tags["images"]
    for tag in tags["images"]:
        images = board.Images(tag)
        assert [e.step for e in images] == [1, 5, 10]
        decoded = np.asarray(Image.open(io.BytesIO(images[0].encoded_image_string)))
        assert decoded.shape == (images[0].height, images[0].width)


def test_a_feature_map_is_the_layers_output_as_numpy_draws_it(cut: Path) -> None:
    maps = np.load(cut / "checkpoints/first.npy").astype(np.float64)
    layer = (cut / "checkpoints/layer").read_text()
    image = read(cut / "checkpoints/tensorboard/train").Images(f"features/{layer}")[0]
    decoded = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    columns = int(np.ceil(np.sqrt(len(maps))))
    height, width = maps.shape[1:]
    assert len(maps) > 1
    for i, one in enumerate(maps):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        expected = np.rint((one - one.min()) / (one.max() - one.min()) * 255)
        assert np.array_equal(decoded[top : top + height, left : left + width], expected)


def test_between_the_steps_that_are_drawn_no_module_has_a_hook(cut: Path) -> None:
    layers = int((cut / "checkpoints/layers").read_text())
    assert (cut / "checkpoints/hooks").read_text().split() == [str(layers if s in (0, 4, 9) else 0) for s in range(12)]


def fastest(rounds: int, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of `rounds`."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def test_a_step_in_which_nothing_is_drawn_takes_less_than_a_hundredth_longer(tmp_path: Path) -> None:
    board, writer = TensorBoard(tmp_path, 1.0, 1), Writer(pytest.fail)
    every = Span(500, "st")
    model = digits_cnn(width=16)
    watching = Hooks(
        [
            LayerPictures(writer, board, FeatureMaps(layers=["*"], every=every)),
            TensorHistograms(writer, board, Histograms(gradients=["*"], every=every)),
            Curves(writer, [board]),
        ]
    )
    run: Any = SimpleNamespace(model=model, step=0, epoch_size=None, session=SimpleNamespace(say=pytest.fail))
    run.epoch_size = EpochSize(10, 640, 64)
    watching.run_begin(run)
    run.step = 7
    inputs, labels = torch.randn(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64)
    step = fastest(60, lambda: torch.nn.functional.cross_entropy(model(inputs), labels).backward())
    points = [getattr(watching, name) for name in ("step_begin", "forward_end", "gradients_ready", "update_end")]
    assert fastest(200, lambda: [point(run) for point in points]) < 0.01 * step
    watching.run_end(run)


def test_a_disk_that_fails_is_told_once_and_nothing_more_is_asked_of_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    curves = Curves(Writer(said.append), [JsonLines(tmp_path / "file" / "metrics.jsonl", 1)], None)
    run: Any = SimpleNamespace(step=0, session=SimpleNamespace(say=said.append))
    curves.run_begin(run)
    for _ in range(3):
        curves.logged(run, {"loss": 1.0})
    curves.run_end(run)
    [text] = said
    assert text.startswith("observe: nothing is shown any more, training goes on: ")


def test_a_disk_that_hangs_costs_values_and_no_time() -> None:
    said: list[str] = []
    writer, go_on, done = Writer(said.append), threading.Event(), []
    writer.put(lambda: done.append(go_on.wait(30)))
    began = time.monotonic()
    for _ in range(3 * WAITING):
        writer.put(lambda: done.append(True))
    assert not writer.close(timeout=0.05)
    assert time.monotonic() - began < 5
    assert said == ["observe: the storage is too slow for all that is to be shown: some of it is left out"]
    go_on.set()
    assert writer.close(timeout=30)
    assert WAITING <= len(done) <= WAITING + 2


def test_curves_in_an_object_store_are_gone_on_with_too(tmp_path: Path) -> None:
    url = f"memory://curves-{tmp_path.name}"
    now = [0.0]

    def generation(number: int, resumed_at: int, last: int) -> None:
        folder = tmp_path / str(number)
        mirror = Mirror(folder, url, clock=lambda: now[0])
        sinks = [JsonLines(folder / LINES, number), TensorBoard(folder / "tensorboard", 1.0, number)]
        curves = Curves(Writer(pytest.fail), sinks, mirror=mirror)
        run: Any = SimpleNamespace(step=resumed_at, session=SimpleNamespace(say=pytest.fail))
        curves.run_begin(run)
        while run.step < last:
            run.step += 1
            curves.logged(run, {"loss": float(number)})
        curves.run_end(run)

    generation(1, 0, 5)
    generation(2, 3, 6)
    store = fsspec.filesystem("memory")
    root = f"/curves-{tmp_path.name}"
    said = [json.loads(line) for line in store.cat_file(f"{root}/{LINES}").splitlines()]
    assert [(n["step"], n["loss"]) for n in said] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
    store.get(f"{root}/tensorboard", str(tmp_path / "board"), recursive=True)
    assert [(e.step, e.value) for e in read(tmp_path / "board/train").Scalars("loss")] == [
        (n["step"], n["loss"]) for n in said
    ]


def test_an_object_store_is_written_to_now_and_then(tmp_path: Path) -> None:
    now, folder = [0.0], tmp_path / "here"
    mirror = Mirror(folder, f"memory://now-and-then-{tmp_path.name}", clock=lambda: now[0])
    store, path = fsspec.filesystem("memory"), f"/now-and-then-{tmp_path.name}/a/file"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "file").write_text("1")
    mirror.push_if_due()
    assert not store.exists(path)
    now[0] = EVERY_SECONDS
    mirror.push_if_due()
    assert store.cat_file(path) == b"1"
    store.rm(path)
    mirror.push()
    assert not store.exists(path), "a file that has not changed is not sent again"


def test_a_pattern_that_matches_nothing_is_a_wrong_configuration() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Sequential(torch.nn.ReLU()))
    assert [path for path, _ in layers_of(model, ["1*"])] == ["1", "1.0"]
    with pytest.raises(BadConfig, match=r'^observe\.feature_maps\.layers\[1\]: matches no module .*"2\.\*"; allowed: '):
        layers_of(model, ["0", "2.*"])


def test_curves_without_a_place_are_a_wrong_configuration(tmp_path: Path) -> None:
    context: Any = SimpleNamespace(job=observed(tmp_path, {}, checkpoints=False), rank=1, node_rank=1, run_dir=tmp_path)
    with pytest.raises(NowhereToWrite, match=r"^observe\.jsonl: there is nowhere to write; allowed: "):
        hooks_for(Observe(jsonl=True), context, torch.device("cpu"))
    assert [type(hook) for hook in hooks_for(Observe(), context, torch.device("cpu"))] == [TimeSplit]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"histograms": {}},
            'observe.histograms: is shown in TensorBoard alone, which is off; found "tensorboard: false"',
        ),
        ({"tensorbord": True}, 'observe.tensorbord: unknown field; found "tensorbord"; did you mean "tensorboard"?'),
        ({"tensorboard": True, "feature_maps": {"layers": []}}, "observe.feature_maps.layers: too few items"),
        ({"profile_steps": 0}, "observe.profile_steps: out of range; found 0; allowed: 1 or more"),
    ],
)
def test_what_is_wrong_in_the_section_is_said(section: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig) as raised:
        parse({"observe": section})
    assert str(raised.value).startswith(f"config.{said}")
