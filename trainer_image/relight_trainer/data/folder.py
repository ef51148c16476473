"""Images in one folder for each class."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from relight_trainer.data.errors import BadData, few
from relight_trainer.data.fingerprint import digest
from relight_trainer.data.images import ImageSet, decoded, image_sets
from relight_trainer.data.kept import Arrays, kept, packed, unpacked
from relight_trainer.data.kept import folder as cache_folder
from relight_trainer.data.names import Names
from relight_trainer.data.paths import existing, files_below
from relight_trainer.settings.data import Images

_FORMAT = 1  # of what is kept
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"})


class Folder:
    """`images.Source` of a folder of class folders; classes are numbered in the order of their names."""

    def __init__(self, folder: Path, field: str, cache: Path, classes: list[str] | None = None) -> None:
        """`classes` are those of the training, where this is another part. Raises BadData where something is wrong."""
        file = cache / f"{folder.name}-{digest(str((_FORMAT, str(folder), classes)))}.npz"
        found = kept(file, _unchanged, lambda: _find(folder, field, classes))
        self.classes = unpacked(found["classes"])
        self.labels: npt.NDArray[np.int64] = found["labels"]
        self.fingerprint = str(found["fingerprint"])
        self._folder = folder
        self._names = Names(found["names"], found["ends"])

    def name(self, index: int) -> str:
        return f"{self._folder}/{self._names[index]}"

    def image(self, index: int) -> Image.Image:
        return decoded(Path(self.name(index)).read_bytes())


def image_folder(
    *,
    root: str,
    train: str,
    test: str | None,
    test_fraction: float,
    split_seed: int,
    index: str | None,
    images: Images,
) -> tuple[ImageSet, ImageSet]:
    base, cache = existing(root, "data.root"), cache_folder(index)
    source = Folder(existing(base / train, "data.train"), "data.train", cache)
    other = None if test is None else Folder(existing(base / test, "data.test"), "data.test", cache, source.classes)
    return image_sets(source, other, images, test_fraction, split_seed)


def _find(folder: Path, field: str, classes: list[str] | None) -> Arrays:
    if not folder.is_dir():
        raise BadData(f"{field}: {folder} is not a folder")
    files, folders = files_below(folder, ENDINGS, field)
    names = [file.path for file in files]
    loose = next((name for name in names if "/" not in name), None)
    if loose is not None:
        raise BadData(f"{field}: {folder}/{loose} is in no class's folder; allowed: {folder}/<class>/{loose}")
    if not names:
        raise BadData(f"{field}: {folder} holds no images in class folders; allowed: {', '.join(sorted(ENDINGS))}")
    with_images = sorted({name.partition("/")[0] for name in names})
    classes = with_images if classes is None else classes
    strange = sorted(set(with_images) - set(classes))
    if strange:
        raise BadData(f"{field}: {folder} has the classes {few(strange)}, which the training does not have")
    there = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    without = sorted(there - set(with_images))
    if without:
        raise BadData(f"{field}: class folders in {folder} without an image: {few(without)}")
    numbers = {name: number for number, name in enumerate(classes)}
    short = Names.of(names)
    return {
        "classes": packed(classes),
        "labels": np.array([numbers[name.partition("/")[0]] for name in names], dtype=np.int64),
        "names": short.data,
        "ends": short.ends,
        "fingerprint": np.array(digest("\0".join(classes), "\0".join(names), str([file.size for file in files]))),
        "folders": packed(path for path, _ in folders),
        "changed": np.array([changed for _, changed in folders]),
    }


def _unchanged(found: Arrays) -> bool:
    """Whether no folder has gained or lost a name: a stat for each class in place of one for each image."""
    folders = zip(unpacked(found["folders"]), found["changed"].tolist(), strict=True)
    return all(Path(path).stat().st_mtime_ns == changed for path, changed in folders)
