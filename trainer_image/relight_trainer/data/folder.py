"""Images in one folder for each class."""

from pathlib import Path

import numpy as np
from PIL import Image

from relight_trainer.data.errors import BadData, few
from relight_trainer.data.fingerprint import digest
from relight_trainer.data.images import ImageSet, decoded, image_sets
from relight_trainer.data.names import Names
from relight_trainer.data.paths import existing, files_below
from relight_trainer.settings.data import Images

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"})


class Folder:
    """`images.Source` of a folder of class folders; classes are numbered in the order of their names."""

    def __init__(self, folder: Path, field: str, classes: list[str] | None = None) -> None:
        """`classes` are those of the training, where this is another part. Raises BadData where something is wrong."""
        if not folder.is_dir():
            raise BadData(f"{field}: {folder} is not a folder")
        found = files_below(folder, ENDINGS, field)
        names = [file.path for file in found]
        loose = next((name for name in names if "/" not in name), None)
        if loose is not None:
            raise BadData(f"{field}: {folder}/{loose} is in no class's folder; allowed: {folder}/<class>/{loose}")
        if not names:
            raise BadData(f"{field}: {folder} holds no images in class folders; allowed: {', '.join(sorted(ENDINGS))}")
        with_images = sorted({name.partition("/")[0] for name in names})
        self.classes = with_images if classes is None else classes
        self._check(folder, field, with_images)
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = np.array([numbers[name.partition("/")[0]] for name in names], dtype=np.int64)
        self.fingerprint = digest("\0".join(self.classes), "\0".join(names), str([file.size for file in found]))
        self._folder = folder
        self._names = Names(names)

    def name(self, index: int) -> str:
        return f"{self._folder}/{self._names[index]}"

    def image(self, index: int) -> Image.Image:
        return decoded(Path(self.name(index)).read_bytes())

    def _check(self, folder: Path, field: str, with_images: list[str]) -> None:
        strange = sorted(set(with_images) - set(self.classes))
        if strange:
            raise BadData(f"{field}: {folder} has the classes {few(strange)}, which the training does not have")
        folders = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        without = sorted(folders - set(with_images))
        if without:
            raise BadData(f"{field}: class folders in {folder} without an image: {few(without)}")


def image_folder(
    *, root: str, train: str, test: str | None, test_fraction: float, split_seed: int, images: Images
) -> tuple[ImageSet, ImageSet]:
    base = existing(root, "data.root")
    source = Folder(existing(base / train, "data.train"), "data.train")
    other = None if test is None else Folder(existing(base / test, "data.test"), "data.test", source.classes)
    return image_sets(source, other, images, test_fraction, split_seed)
