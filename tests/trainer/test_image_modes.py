"""Images of every depth, colour and orientation become the values that they show, or are refused by name."""

import io
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from relight_trainer.data.draws import Draw, shard
from relight_trainer.data.errors import BadData
from relight_trainer.data.images import pixels_of
from relight_trainer.data.loading import SampleFailed
from relight_trainer.data.splits import Splits, open_splits
from relight_trainer.settings.data import ImageFolder, Images, TarShards
from relight_trainer.settings.loader import Loader

pytestmark = pytest.mark.timeout(60)
SIDE = 8
PLAIN = {"size": SIDE, "test_crop": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3}
GREY = {**PLAIN, "channels": 1, "mean": [0.0], "std": [1.0]}
# From black to white: the same picture in 8 and in 16 bits, whatever it is kept in.
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)


def opened(root: Path, images: dict[str, Any]) -> Splits:
    given = {
        "type": "image_folder",
        "root": str(root),
        "train": "t",
        "test": "t",
        "images": images,
        "index": str(root / "i"),
    }
    return open_splits(ImageFolder.model_validate(given), Loader(workers=0), 0, torch.device("cpu"))


def read(root: Path, images: dict[str, Any], count: int) -> np.ndarray:
    """(count, height, width, channels) in 0 to 1, as the model gets them."""
    [batch] = opened(root, images).test.batches(shard(count, 0, 1, count))
    found: np.ndarray = batch.inputs.permute(0, 2, 3, 1).numpy()
    return found


def saved(root: Path, images: dict[str, Image.Image], **options: Any) -> Path:
    (root / "t" / "class").mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        image.save(root / "t" / "class" / name, **options)
    return root


def grey(bits: int, order: str = "<") -> Image.Image:
    if bits == 16:
        return Image.fromarray((RAMP * 65535).round().astype(f"{order}u2"))
    return Image.fromarray((RAMP * 255).round().astype(np.uint8))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
@pytest.mark.parametrize("images", [PLAIN, GREY], ids=["colour", "grey"])
def test_16_bits_are_scaled_by_their_own_white(tmp_path: Path, name: str, images: dict[str, Any]) -> None:
    found = read(saved(tmp_path, {name: grey(16)}), images, 1)[0]
    assert found.shape[2] == images.get("channels", 3)
    for channel in range(found.shape[2]):
        # Finer than the steps of 8 bits: nothing is rounded to them.
        assert np.abs(found[..., channel] - (RAMP * 65535).round() / 65535).max() < 1e-6


def test_16_bits_of_the_other_byte_order_are_the_same(tmp_path: Path) -> None:
    settings = Images.model_validate(GREY)
    little, big = (pixels_of(grey(16, order), settings, random.random, training=False) for order in "<>")
    assert np.array_equal(little, big)


def test_16_bits_may_be_augmented(tmp_path: Path) -> None:
    everything = {**PLAIN, "rand_augment": {"operations": 3}, "crop": "padded"}
    settings = Images.model_validate(everything)
    for seed in range(20):
        draws = [random.Random(seed) for _ in range(2)]
        deep, plain = (
            pixels_of(grey(bits), settings, draw.random, training=True)
            for bits, draw in zip((16, 8), draws, strict=True)
        )
        assert deep.shape == plain.shape == (SIDE, SIDE, 3)
        assert np.abs(deep.astype(float) - plain.astype(float)).mean() < 12  # each operation is of bytes


def test_modes_may_be_mixed_in_one_set(tmp_path: Path) -> None:
    shown = grey(8)
    images = {
        "0.png": shown,
        "1.png": grey(16),
        "2.png": shown.convert("RGB"),
        "3.png": shown.convert("RGBA"),
        "4.png": shown.convert("LA"),
        "5.png": shown.quantize(256, kmeans=1) if hasattr(shown, "quantize") else shown,
        "6.tif": shown.convert("RGB").convert("CMYK"),
        "7.png": shown.convert("P"),
    }
    found = read(saved(tmp_path, images), PLAIN, len(images))
    for i, picture in enumerate(found):
        assert np.abs(picture - RAMP[..., None]).max() < (0.04 if i == 5 else 0.005), i


def test_one_bit_is_black_or_white(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP > 0.5)
    assert image.mode == "1"
    assert np.array_equal(read(saved(tmp_path, {"a.png": image}), GREY, 1)[0, ..., 0], RAMP > 0.5)


def test_16_bits_in_colour_are_right_to_a_step_of_8(tmp_path: Path) -> None:
    import struct
    import zlib

    rows = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)
    data = b"".join(b"\0" + row.tobytes() for row in (rows * 65535).round().astype(">u2"))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    (tmp_path / "t" / "class").mkdir(parents=True)
    (tmp_path / "t" / "class" / "a.png").write_bytes(file)
    assert np.abs(read(tmp_path, PLAIN, 1)[0] - rows).max() <= 1 / 255


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(RAMP.astype(np.float32)), "floats"),
        (Image.fromarray((RAMP * 65535).astype(np.int32)), "whole numbers"),
    ],
)
def test_32_bits_are_refused_by_the_files_name(tmp_path: Path, image: Image.Image, kind: str) -> None:
    splits = opened(saved(tmp_path, {"a.tif": image, "b.png": grey(8)}), PLAIN)
    with pytest.raises(
        SampleFailed, match=rf"class/a\.tif: .*its pixels are {kind} of 32 bits, .*allowed: 8 or 16 bits"
    ):
        list(splits.test.batches(shard(2, 0, 1, 2)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_an_image_is_turned_as_its_camera_says(tmp_path: Path, orientation: int, name: str) -> None:
    x, y = np.meshgrid(np.linspace(0, 1, 96), np.linspace(0, 1, 48))
    image = Image.fromarray((255 * np.stack([x, y, x * y], -1)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved(tmp_path, {name: image}, exif=exif, **({"quality": 95} if name == "a.jpg" else {}))
    with Image.open(tmp_path / "t" / "class" / name) as file:
        upright = ImageOps.exif_transpose(file).convert("RGB")
        upright.load()
    upright = Image.fromarray(np.asarray(upright))  # knows nothing of EXIF
    assert upright.size == ((96, 48) if orientation < 5 else (48, 96))
    close = 2.0 if name == "a.jpg" else 0.0
    for crop in ({}, {"test_crop": 0.7}):
        settings = Images.model_validate({**PLAIN, **crop})
        for training in (False, True):
            with Image.open(tmp_path / "t" / "class" / name) as file:
                ours = pixels_of(file, settings, random.Random(3).random, training=training)
            theirs = pixels_of(upright, settings, random.Random(3).random, training=training)
            assert np.abs(ours.astype(float) - theirs).mean() <= close


def shards(path: Path, content: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as file:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return str(path)


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (SIDE, SIDE), value).save(file, "PNG")
    return file.getvalue()


def sharded(pattern: str, cache: Path) -> Splits:
    given = {"type": "tar_shards", "train": pattern, "test": pattern, "images": PLAIN, "index": str(cache)}
    return open_splits(TarShards.model_validate(given), Loader(workers=0), 0, torch.device("cpu"))


def test_what_macos_puts_beside_the_files_of_a_tar_is_no_sample(tmp_path: Path) -> None:
    content = {"./._a.png": b"attributes", "./a.png": png(10), "./._a.cls": b"attributes", "./a.cls": b"1", "./.DS_Store": b"x",
               "d/._b.png": b"attributes", "d/b.png": png(20), "d/b.cls": b"0"}  # fmt: skip
    splits = sharded(shards(tmp_path / "t.tar", content), tmp_path / "cache")
    [batch] = splits.test.batches([Draw(0, np.arange(2))])
    assert batch.labels.tolist() == [1, 0]
    assert (batch.inputs[:, 0, 0, 0] * 255).round().tolist() == [10, 20]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            {"a.png": png(1), "a.PNG": png(2), "a.cls": b"1"},
            r"sample a has two files of one ending: a\.PNG, a\.cls, a\.png",
        ),
        ({"a.png": png(1), "a.cls": b"1" * 20}, r"a\.cls is b'1+'; allowed: a whole number from 0"),
        ({"a.png": png(1), "a.cls": b"-1"}, r"a\.cls is b'-1'; allowed: a whole number from 0"),
    ],
)
def test_a_sample_of_a_tar_that_is_not_plain_is_refused(tmp_path: Path, content: dict[str, bytes], text: str) -> None:
    with pytest.raises(BadData, match=text):
        sharded(shards(tmp_path / "t.tar", content), tmp_path / "cache")
