"""Image folders and tar shards: what is found, what is refused before the start, what an image becomes."""

import io
import math
import os
import random
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from relight_agent.exits import ExitCode
from relight_trainer.data import augment
from relight_trainer.data import folder as data_folder
from relight_trainer.data.draws import Draw, shard
from relight_trainer.data.errors import BadData
from relight_trainer.data.images import pixels_of
from relight_trainer.data.loading import SampleFailed
from relight_trainer.data.shards import expanded
from relight_trainer.data.splits import Splits, open_splits
from relight_trainer.settings.data import ImageFolder, Images, RandAugment, TarShards
from relight_trainer.settings.loader import Loader

CPU = torch.device("cpu")
PLAIN = {"size": 8, "test_crop": 1.0}


def picture(seed: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def folder(root: Path, files: dict[str, int]) -> Path:
    """PNG files below `root`, each of the seed that is given for its path."""
    for path, seed in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(root / path, format="PNG")
    return root


def small(root: Path) -> Path:
    files = {f"train/{animal}/{i}.png": 10 * number + i for number, animal in enumerate("abc") for i in range(4)}
    return folder(root, files | {"val/a/x.png": 90, "val/c/deeper/y.png": 91})


def opened(root: Path, workers: int = 0, seed: int = 0, **more: Any) -> Splits:
    given = {"type": "image_folder", "root": str(root), "images": PLAIN, "index": str(root.parent / "found"), **more}
    config = ImageFolder.model_validate(given)
    return open_splits(config, Loader(workers=workers), seed, CPU)


def test_classes_are_numbered_by_name_and_folders_in_them_are_searched(tmp_path: Path) -> None:
    splits = opened(small(tmp_path))
    assert (splits.train.size, splits.test.size) == (12, 2)
    [train] = splits.train.batches([Draw(0, np.arange(12))])
    [test] = splits.test.batches(shard(2, 0, 1, 8))
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert test.labels.tolist() == [0, 2]
    assert train.inputs.shape == (12, 3, 8, 8)
    assert train.inputs.is_contiguous()


def test_a_test_image_is_its_scaled_middle_normalised(tmp_path: Path) -> None:
    splits = opened(
        small(tmp_path), images={"size": 5, "test_crop": 0.5, "mean": [0.1, 0.2, 0.3], "std": [0.5, 1.0, 2.0]}
    )
    [batch] = splits.test.batches(shard(2, 0, 1, 8))
    for image, seed in zip(batch.inputs, (90, 91), strict=True):
        # half of the shorter side of 12x10, in the middle, is a square of 5 pixels: nothing is scaled
        middle = np.asarray(picture(seed).resize((5, 5), Image.Resampling.BILINEAR, box=(3.5, 2.5, 8.5, 7.5)))
        expected = (middle.astype(np.float64) / 255 - [0.1, 0.2, 0.3]) / [0.5, 1.0, 2.0]
        assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() < 1e-6


def test_links_are_followed(tmp_path: Path) -> None:
    plain = opened(small(tmp_path / "disk"))
    linked = tmp_path / "data" / "linked"
    linked.mkdir(parents=True)
    (tmp_path / "data" / "root").symlink_to(linked)  # to a link in it, to a folder, in which a file is a link
    (linked / "train").symlink_to(tmp_path / "disk" / "train")
    (linked / "val" / "a").mkdir(parents=True)
    (linked / "val" / "a" / "x.png").symlink_to(tmp_path / "disk" / "val" / "a" / "x.png")
    (linked / "val" / "c").symlink_to("../../../disk/val/c")
    splits = opened(tmp_path / "data" / "root")
    assert splits.identity.state_dict() == plain.identity.state_dict()


def missing(root: Path) -> None:
    (root / "train").rename(root / "Train_")


def dangling_root(root: Path) -> None:
    (root / "val").rename(root / "away")
    (root / "val").symlink_to("/nowhere/imagenet")


def dangling_file(root: Path) -> None:
    (root / "train" / "a" / "gone.jpg").symlink_to("/nowhere/1.jpg")


def dangling_class(root: Path) -> None:
    (root / "train" / "d").symlink_to("/nowhere/d")


def circle(root: Path) -> None:
    (root / "train" / "a" / "again").symlink_to(root / "train")


def empty_file(root: Path) -> None:
    (root / "val" / "a" / "0.jpg").touch()


def empty_class(root: Path) -> None:
    (root / "train" / "d").mkdir()
    (root / "train" / "d" / "notes.txt").write_text("nothing")


def strange_class(root: Path) -> None:
    (root / "val" / "a").rename(root / "val" / "z")


def loose_file(root: Path) -> None:
    picture(0).save(root / "train" / "0.png")


def empty_root(root: Path) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def not_a_folder(root: Path) -> None:
    (root / "val").rename(root / "away")
    (root / "val").write_text("a file")


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (missing, r'data\.train: .* has no train; found Train_, val; did you mean "Train_"\?'),
        (dangling_root, r"data\.test: .*/val is a link to /nowhere/imagenet, which is not there: is it mounted\?"),
        (dangling_file, r"data\.train: 1 links in .*/train lead nowhere: a/gone\.jpg"),
        (dangling_class, r"data\.train: 1 links in .*/train lead nowhere: d"),
        (circle, r".*/train/a/again is a link to a folder that it lies in"),
        (empty_file, r"data\.test: 1 files in .*/val are empty: a/0\.jpg"),
        (empty_class, r"data\.train: class folders in .*/train without an image: d"),
        (strange_class, r"data\.test: .*/val has the classes z, which the training does not have"),
        (loose_file, r"data\.train: .*/train/0\.png is in no class's folder; allowed: .*/train/<class>/0\.png"),
        (empty_root, r"data\.train: .* has no train; found nothing"),
        (not_a_folder, r"data\.test: .*/val is not a folder"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_the_start(tmp_path: Path, break_it: Any, text: str) -> None:
    break_it(small(tmp_path))
    with pytest.raises(BadData, match=text) as raised:
        opened(tmp_path)
    assert raised.value.exit_code is ExitCode.BAD_DATA


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    closed = small(tmp_path) / "train" / "b"
    closed.chmod(0)
    try:
        if os.access(closed, os.R_OK):
            pytest.skip("root may read everything")
        with pytest.raises(BadData, match=f"data.train: {closed}: Permission denied"):
            opened(tmp_path)
    finally:
        closed.chmod(0o755)


@pytest.mark.parametrize("damage", ["text", "cut", "gone"])
def test_an_image_that_cannot_be_read_ends_the_training_with_its_name(tmp_path: Path, damage: str) -> None:
    splits = opened(small(tmp_path), workers=1)
    victim = tmp_path / "train" / "b" / "2.png"
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(b"no image" if damage == "text" else victim.read_bytes()[:200])
    with pytest.raises(SampleFailed, match=rf"data\.train\[6\]: {victim}: ") as raised:
        list(splits.train.batches([Draw(0, np.arange(12))]))
    assert raised.value.exit_code is ExitCode.BAD_DATA


def test_the_fingerprint_tells_names_and_sizes(tmp_path: Path) -> None:
    def fingerprints(search: str) -> dict[str, Any]:
        """Of a member that has looked for itself."""
        return opened(tmp_path, index=str(tmp_path / search)).identity.state_dict()

    small(tmp_path)
    known = fingerprints("1")
    assert fingerprints("2") == known
    file = tmp_path / "train" / "a" / "0.png"
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    assert fingerprints("3")["train"] != known["train"]
    file.write_bytes(content)
    file.rename(file.with_name("9.png"))
    assert fingerprints("4")["train"] != known["train"]
    assert fingerprints("5")["test"] == known["test"]


def test_a_folder_is_searched_again_only_where_names_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Path] = []
    plain = data_folder.files_below

    def counted(folder: Path, *rest: Any) -> Any:
        searched.append(folder)
        return plain(folder, *rest)

    monkeypatch.setattr(data_folder, "files_below", counted)
    root, index = small(tmp_path / "data"), str(tmp_path / "index")
    known = opened(root, index=index)
    assert searched == [root / "train", root / "val"]
    again = opened(root, index=index)
    assert len(searched) == 2
    assert again.identity.state_dict() == known.identity.state_dict()
    [one], [two] = (list(s.test.batches(shard(2, 0, 1, 8))) for s in (known, again))
    assert torch.equal(one.inputs, two.inputs)
    for number, change in enumerate(
        [
            lambda: picture(7).save(root / "val" / "c" / "deeper" / "new.png"),
            (root / "val" / "c" / "deeper" / "new.png").unlink,
            lambda: (root / "val" / "a" / "x.png").rename(root / "val" / "a" / "z.png"),
        ]
    ):
        time.sleep(0.01)  # what a file system tells of time is coarse
        change()
        opened(root, index=index)
        assert searched[2:] == [root / "val"] * (number + 1)
    for file in Path(index).iterdir():
        file.write_bytes(b"half a file")
    assert opened(root, index=index).train.size == 12
    assert len(searched) == 7


def test_a_share_of_each_class_can_be_kept_for_tests(tmp_path: Path) -> None:
    splits = opened(small(tmp_path), test=None, test_fraction=0.25)
    [test] = splits.test.batches(shard(splits.test.size, 0, 1, 9))
    assert (splits.train.size, test.labels.tolist()) == (9, [0, 1, 2])
    other = opened(tmp_path, test=None, test_fraction=0.25, split_seed=1)
    assert other.identity.state_dict() != splits.identity.state_dict()


def test_augmentation_is_the_same_in_loader_processes_and_another_in_each_epoch(tmp_path: Path) -> None:
    everything = {"size": 8, "rand_augment": {}}
    small(tmp_path)
    one, two = opened(tmp_path, images=everything), opened(tmp_path, workers=2, images=everything)
    draws = [Draw(epoch, np.arange(12)[i : i + 5]) for epoch in range(2) for i in range(0, 12, 5)]
    first, second = list(one.train.batches(draws)), list(two.train.batches(draws))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0].inputs, first[3].inputs)
    assert not torch.equal(
        first[0].inputs, next(iter(opened(tmp_path, seed=1, images=everything).train.batches(draws))).inputs
    )


def drawing(seed: int) -> augment.Uniform:
    return random.Random(seed).random


def test_random_parts_lie_in_the_image_and_have_the_wanted_areas_and_shapes() -> None:
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    draw = drawing(0)
    areas, logs = [], []
    for _ in range(4000):
        box = augment.random_part(400, 400, scale, ratio, draw)
        assert 0 <= box.left <= box.right <= 400
        assert 0 <= box.top <= box.bottom <= 400
        width, height = box.right - box.left, box.bottom - box.top
        areas.append(width * height / 400**2)
        logs.append(math.log(width / height))
    assert 0.08 <= min(areas) < 0.085
    assert np.log(ratio[0]) - 1e-9 <= min(logs) <= max(logs) <= np.log(ratio[1]) + 1e-9
    # Large parts fit less often, so they are rarer than small ones; left and right, wide and high, are alike.
    assert 0.4 < np.mean(areas) < 0.54
    assert abs(np.mean(logs)) < 0.02
    assert augment.random_part(1000, 10, scale, ratio, draw)[1:] == (0, pytest.approx(506.67, abs=0.01), 10)


def test_images_of_every_mode_become_the_wanted_channels() -> None:
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        image = picture(0).convert("L").convert(mode) if mode in {"LA", "PA"} else picture(0).convert(mode)
        for channels in (1, 3):
            settings = Images.model_validate(
                {"size": 6, "channels": channels, "mean": [0.5] * channels, "std": [0.5] * channels}
            )
            for training in (False, True):
                pixels = pixels_of(image.copy(), settings, drawing(1), training=training)
                assert (pixels.shape, pixels.dtype) == ((6, 6, channels), np.uint8)


@pytest.mark.skipif(not features.check("jpg"), reason="Pillow without JPEG")
def test_a_jpeg_decoded_small_looks_like_one_decoded_whole() -> None:
    x, y = np.meshgrid(np.linspace(0, 1, 640), np.linspace(0, 1, 480))
    smooth = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], -1)
    file = io.BytesIO()
    Image.fromarray((255 * smooth).astype(np.uint8)).save(file, "JPEG", quality=95)
    settings = Images.model_validate({"size": 56, "test_crop": 0.9})
    with Image.open(file) as lazy:
        ours = pixels_of(lazy, settings, drawing(0), training=False)
        assert lazy.size == (160, 120)  # a quarter, from which 108 pixels become 56
    with Image.open(file) as image:
        image.load()
        box = (640 / 2 - 216, 480 / 2 - 216, 640 / 2 + 216, 480 / 2 + 216)
        whole = np.asarray(image.resize((56, 56), Image.Resampling.BILINEAR, box=box))
    assert np.abs(ours.astype(int) - whole).mean() < 1.5


def test_a_padded_crop_moves_the_image_by_every_offset_alike() -> None:
    dot = Image.new("L", (9, 9))
    dot.putpixel((4, 4), 255)
    draw = drawing(0)
    places = [np.argwhere(np.asarray(augment.moved_a_little(dot, 2, draw)))[0] for _ in range(2500)]
    counts = np.zeros((9, 9))
    np.add.at(counts, tuple(np.transpose(places)), 1)
    assert counts[2:7, 2:7].sum() == 2500
    assert ((counts[2:7, 2:7] - 100) ** 2 / 100).sum() < 24 + 5 * 48**0.5  # chi squared, 24 degrees of freedom


def test_flips_come_as_often_as_wanted() -> None:
    image, draw = picture(0), drawing(0)
    mirrored = np.asarray(image)[:, ::-1]
    flips = [np.array_equal(np.asarray(augment.flipped(image, 0.3, draw)), mirrored) for _ in range(2000)]
    assert abs(np.mean(flips) - 0.3) < 0.04


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_operation_of_rand_augment_keeps_size_and_mode_and_most_change_something(mode: str) -> None:
    image = picture(0, (16, 16)).convert(mode)
    changed = set()
    for operation in range(14):
        draws = iter([operation / 14 + 0.01, 0.2])
        result = augment.rand_augment(image, 1, 9.0, lambda draws=draws: next(draws))  # type: ignore[misc]
        assert (result.size, result.mode) == (image.size, mode)
        if np.asarray(result).tobytes() != np.asarray(image).tobytes():
            changed.add(operation)
    # Not the identity; nor, on an image that has every value, the contrast; nor, on a grey one, the colour.
    assert len(changed) >= 11
    assert RandAugment().operations == 2


def tar(path: Path, samples: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def shards(root: Path) -> str:
    for number in range(3):
        samples = {f"dir/{number}{i}": (png(10 * number + i), f"{i % 2}\n".encode()) for i in range(4)}
        content = {
            f"{key}.{ending}": part
            for key, pair in samples.items()
            for ending, part in zip(("png", "cls"), pair, strict=True)
        }
        tar(root / f"train-{number:03}.tar", content)
    return f"{root}/train-{{000..002}}.tar"


def sharded(pattern: str, cache: Path, workers: int = 0, **more: Any) -> Splits:
    given = {"type": "tar_shards", "train": pattern, "index": str(cache), "images": PLAIN, "test_fraction": 0.5, **more}
    return open_splits(TarShards.model_validate(given), Loader(workers=workers), 0, CPU)


def test_shards_hold_what_a_folder_of_the_same_images_holds(tmp_path: Path) -> None:
    plain = {"size": 8, "crop": "center", "flip": 0.0, "test_crop": 1.0}
    pattern = shards(tmp_path)
    files = {f"train/{i % 2}/{number}{i}.png": 10 * number + i for number in range(3) for i in range(4)}
    images = opened(folder(tmp_path / "folder", files), test=None, images=plain)
    expected = {
        x.numpy().tobytes(): y.item()
        for b in images.train.batches([Draw(0, np.arange(images.train.size))])
        for x, y in zip(*b, strict=True)
    }
    for workers in (0, 2):
        splits = sharded(pattern, tmp_path / "cache", workers, test=pattern, images=plain)
        assert splits.train.size == splits.test.size == 12
        batches = list(splits.train.batches([Draw(0, np.array([11, 0, 5])), Draw(0, np.array([5]))]))
        assert torch.equal(batches[0].inputs[2], batches[1].inputs[0])
        assert batches[0].labels.tolist() == [1, 0, 1]
        found = {
            x.numpy().tobytes(): y.item()
            for b in splits.test.batches(shard(12, 0, 1, 5))
            for x, y in zip(*b, strict=True)
        }
        assert len(found) == 12
        assert expected.items() <= found.items()


def test_shards_are_read_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, cache = shards(tmp_path), tmp_path / "cache"
    known = sharded(pattern, cache).identity.state_dict()
    assert len(list(cache.iterdir())) == 3
    changed = {"a.png": png(1), "a.cls": b"0", "b.png": png(2), "b.cls": b"0"}
    opened_paths: list[Any] = []
    plain = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda path, mode: opened_paths.append(path) or plain(path, mode))
    assert sharded(pattern, cache).identity.state_dict() == known
    assert opened_paths == []
    other = tar(tmp_path / "train-001.tar", changed)
    opened_paths.clear()
    assert sharded(pattern, cache).identity.state_dict() != known
    assert opened_paths == [other]
    for file in cache.iterdir():
        file.write_bytes(b"half a file")
    assert sharded(f"{tmp_path}/train-*.tar", cache).train.size == 5
    read_only = tmp_path / "file"
    read_only.touch()
    assert sharded(pattern, read_only / "below").train.size == 5


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        ({"a.png": b"x"}, r"sample a has png; allowed: one of jpeg, jpg, png, webp and cls"),
        ({"a.png": b"x", "a.jpg": b"x", "a.cls": b"0"}, r"sample a has cls, jpg, png; allowed: one of"),
        ({"a.png": b"x", "a.cls": b"cat"}, r"a\.cls is b'cat'; allowed: a whole number from 0"),
        ({"a.png": b"", "a.cls": b"1"}, r"a\.png is empty or cut off"),
        ({}, r"holds no samples; allowed: pairs such as 0001\.jpeg and 0001\.cls"),
    ],
)
def test_shards_without_image_or_class_are_refused(tmp_path: Path, samples: dict[str, bytes], text: str) -> None:
    path = tar(tmp_path / "a.tar", samples)
    with pytest.raises(BadData, match=f"{path}:? ?{text}"):
        sharded(str(path), tmp_path / "cache")


def test_what_is_no_tar_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(BadData, match=r"not a tar file .*: a compressed tar file has no positions, unpack it"):
        sharded(f"{tmp_path}/a.tar.gz", tmp_path / "cache")
    with pytest.raises(BadData, match=r"data\.train: nothing is called .*/b\*\.tar"):
        sharded(f"{tmp_path}/b*.tar", tmp_path / "cache")
    with pytest.raises(BadData, match=r'data\.train: .* has no a\.tar; found a\.tar\.gz; did you mean "a\.tar\.gz"\?'):
        sharded(f"{tmp_path}/a.tar", tmp_path / "cache")
    cut = Path(expanded(shards(tmp_path))[0])
    cut.write_bytes(cut.read_bytes()[:700])
    with pytest.raises(BadData, match=r"not a tar file|cut off"):
        sharded(str(cut), tmp_path / "cache")


def test_ranges_in_a_pattern_are_written_out() -> None:
    assert expanded("/d/{0..1}-{09..11}.tar") == [f"/d/{a}-{b}.tar" for a in "01" for b in ("09", "10", "11")]
