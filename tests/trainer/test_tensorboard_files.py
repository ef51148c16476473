"""What TensorBoard reads in our files, and what it would have read in its own: nothing more, nothing twice."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from relight_trainer.observe.curves import JsonLines, TensorBoard
from relight_trainer.observe.pictures import BINS, grid, histogram, reduced, sample_of
from relight_trainer.observe.tensorboard import EventFile, Histogram, crc32c, png


def read(folder: Path) -> EventAccumulator:
    everything = dict.fromkeys(("scalars", "histograms", "images"), 0)  # 0 is all of them
    accumulator = EventAccumulator(str(folder), size_guidance=everything)
    return accumulator.Reload()


def pixels_of(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_checksums_are_those_of_the_standard() -> None:
    # RFC 3720, B.4
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (300, 17)])
def test_a_png_decodes_to_its_pixels(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    image = Image.open(io.BytesIO(png(pixels)))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), pixels)


def independent_grid(maps: Any) -> Any:
    """Rows and columns put together, one pixel of black between: written another way than ours."""
    columns = int(np.ceil(np.sqrt(len(maps))))
    maps = [np.rint((m - m.min()) / max(m.max() - m.min(), 1e-300) * 255) for m in np.float64(maps)]
    maps += [np.zeros_like(maps[0])] * (-len(maps) % columns)
    padded = [np.pad(m, ((0, 1), (0, 1))) for m in maps]
    rows = [np.hstack(padded[i : i + columns]) for i in range(0, len(padded), columns)]
    return np.vstack(rows)[:-1, :-1].astype(np.uint8)


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17])
def test_the_grid_is_what_numpy_puts_together(count: int) -> None:
    maps = np.random.default_rng(count).normal(size=(count, 4, 7)).astype(np.float32)
    assert np.array_equal(grid(maps, 99), independent_grid(maps))
    assert np.array_equal(grid(maps, 2), independent_grid(maps[:2]))


def test_flat_maps_and_numbers_that_are_none_are_black() -> None:
    maps = np.float32([[[3, 3], [3, 3]], [[np.nan, np.inf], [0, 1]], [[np.nan] * 2] * 2])
    page = grid(maps, 9)
    assert np.array_equal(page, [[0, 0, 0, 0, 0], [0, 0, 0, 0, 255], [0] * 5, [0] * 5, [0] * 5])


def test_what_is_drawn_of_an_output_is_a_copy() -> None:
    output = torch.randn(3, 4, 5, 6, requires_grad=True) * 1
    drawn = sample_of(output)
    assert drawn is not None
    assert torch.equal(drawn, output[0])
    assert not drawn.requires_grad
    assert drawn.untyped_storage().data_ptr() != output.untyped_storage().data_ptr()
    shapes = {(2, 7, 9): (1, 7, 9), (2, 9): (1, 2, 9)}
    assert {s: tuple(d.shape) for s in shapes if (d := sample_of(torch.zeros(s))) is not None} == shapes
    assert [sample_of(torch.zeros(s)) for s in ((), (5,), (0, 3, 4, 4), (0, 3), (1, 2, 3, 4, 5))] == [None] * 5


VALUES = {
    "normal": torch.randn(1000, generator=torch.manual_seed(0)),
    "integers": torch.arange(10),
    "half": torch.randn(333, generator=torch.manual_seed(1)).bfloat16(),
    "double": torch.randn(64, 3, dtype=torch.float64, generator=torch.manual_seed(2)),
    "one": torch.tensor(4.0),
    "equal": torch.full((9,), -2.5),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_histogram_counts_as_numpy_does(name: str) -> None:
    values = VALUES[name]
    made, others = histogram(reduced(values).numpy())
    assert made is not None
    assert others == 0
    numbers = values.reshape(-1).double().numpy()
    assert (made.low, made.high, made.number) == (numbers.min(), numbers.max(), numbers.size)
    assert made.sum == pytest.approx(numbers.sum(), abs=1e-9)
    assert made.sum_squares == pytest.approx((numbers**2).sum())
    upto = [np.count_nonzero(numbers <= limit) for limit in made.limits]
    assert list(made.counts) == np.diff(upto, prepend=0).tolist()
    assert sum(made.counts) == numbers.size
    if made.low < made.high:
        expected = np.linspace(made.low, made.high, BINS + 1)[1:]
        assert made.limits == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_what_is_not_finite_is_counted_apart() -> None:
    values = torch.tensor([math.nan, 1.0, math.inf, 2.0, -math.inf])
    made, others = histogram(reduced(values).numpy())
    assert made is not None
    assert (made.low, made.high, made.number, made.sum, sum(made.counts), others) == (1, 2, 2, 3, 2, 3)
    assert histogram(reduced(torch.tensor([math.nan, math.inf])).numpy()) == (None, 2)


def test_everything_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    pixels = np.arange(35, dtype=np.uint8).reshape(5, 7)
    shown = Histogram(-1.0, 2.0, 5.0, 1.5, 7.25, [0.0, 1.0, 2.0], [2.0, 0.0, 3.0])
    file = EventFile(tmp_path / "events.out.tfevents.1", from_step=1, wall_time=100.0)
    for step in (1, 127, 128, 2**40):
        file.scalar("train/loss", 1 / step, step, 100.0 + step)
    for value in (math.nan, math.inf, 1e300):
        file.scalar("odd", value, 5, 1.0)
    file.histogram("weights", shown, 3, 101.0)
    file.image("Bild/ä", pixels, 4, 102.0)
    file.close()

    board = read(tmp_path)
    assert board.file_version == 2.0
    scalars = board.Scalars("train/loss")
    assert [(e.step, e.wall_time) for e in scalars] == [(s, 100.0 + s) for s in (1, 127, 128, 2**40)]
    assert [e.value for e in scalars] == [float(np.float32(1 / s)) for s in (1, 127, 128, 2**40)]
    assert [str(e.value) for e in board.Scalars("odd")] == ["nan", "inf", "inf"]
    [event] = board.Histograms("weights")
    read_back = event.histogram_value
    assert (read_back.min, read_back.max, read_back.num, read_back.sum, read_back.sum_squares) == shown[:5]
    assert (list(read_back.bucket_limit), list(read_back.bucket)) == (shown.limits, shown.counts)
    [image] = board.Images("Bild/ä")
    assert (image.step, image.width, image.height) == (4, 7, 5)
    assert np.array_equal(pixels_of(image.encoded_image_string), pixels)


def generation(folder: Path, number: int, resumed_at: int, last: int) -> None:
    """Steps of one generation: a loss at each, an evaluation after each tenth, done before the next step begins."""
    board, lines = TensorBoard(folder / "tensorboard", 1_760_000_000.0, number), JsonLines(folder / "m.jsonl", number)
    for sink in (board, lines):
        sink.open(resumed_at)
        for step in range(resumed_at, last + 1):
            if step > resumed_at:
                sink.scalars({"loss": float(number)}, step, 1.0, evaluation=False)
            if step % 10 == 0 and step:
                sink.scalars({"accuracy": float(number)}, step, 1.0, evaluation=True)
        sink.close()


def test_a_resumed_curve_goes_on_with_no_step_twice_and_none_missing(tmp_path: Path) -> None:
    cuts = [(1, 0, 57), (2, 55, 63), (3, 60, 71), (10, 60, 80)]  # (generation, resumed at, killed after)
    for number, resumed_at, last in cuts:
        generation(tmp_path, number, resumed_at, last)
        for path in (tmp_path / "tensorboard").glob(f"*/*.{number:06d}"):
            with path.open("ab") as file:
                file.write(path.read_bytes()[-40:-9])  # a machine lost in the middle of a record
        with (tmp_path / "m.jsonl").open("ab") as file:
            file.write(b'{"step": 3, "ti')
    generation(tmp_path, 11, 80, 80)

    def by(step: int, *, evaluation: bool = False) -> int:
        """The last generation that did the step, or the evaluation between it and the next one."""
        return [n for n, begin, end in [*cuts, (11, 80, 80)] if begin + (not evaluation) <= step <= end][-1]

    losses = [(e.step, e.value) for e in read(tmp_path / "tensorboard/train").Scalars("loss")]
    assert losses == [(step, by(step)) for step in range(1, 81)]
    accuracies = [(e.step, e.value) for e in read(tmp_path / "tensorboard/evaluation").Scalars("accuracy")]
    assert accuracies == [(step, by(step, evaluation=True)) for step in range(10, 81, 10)]

    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines if "loss" in line] == losses
    assert [(line["step"], line["accuracy"]) for line in lines if "accuracy" in line] == accuracies
    assert all(line["generation"] == line.get("loss", line.get("accuracy")) for line in lines)


def test_lines_hold_what_json_has_no_word_for_as_text(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "new" / "metrics.jsonl", 1)
    lines.open(0)
    lines.scalars({"loss": math.nan, "grad": -math.inf}, 1, 2.0, evaluation=False)
    lines.close()
    text = (tmp_path / "new" / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "time": 2.0, "generation": 1, "loss": "nan", "grad": "-inf"}\n'
