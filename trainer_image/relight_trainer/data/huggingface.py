"""Data sets of the Hugging Face hub, through the library `datasets`."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from relight_trainer.data.errors import BadData, UnfitData, one_of
from relight_trainer.data.fingerprint import digest
from relight_trainer.data.images import ImageSet, image_sets
from relight_trainer.data.labels import as_classes, as_numbers, is_real, is_whole
from relight_trainer.data.parts import Indices
from relight_trainer.data.rows import RowSet, finite_rows, row_sets
from relight_trainer.settings.data import Images


class Table:
    """One split of the library's, two of its columns: `images.Source` and `rows.Source`."""

    def __init__(self, split: Any, inputs: str, labels: str, field: str) -> None:
        for column, option in ((inputs, "data.inputs"), (labels, "data.labels")):
            missing = one_of(column, split.column_names, f"{option}: {field}")
            if missing:
                raise missing
        self.labels: npt.NDArray[Any] = _labels(split[labels], f"{field}: {labels}")
        # The library's own fingerprint tells the caches of two members apart, not only their data.
        self.fingerprint = digest(str(split.features), inputs, labels, self.labels.tobytes())
        self._split = split
        self._inputs = inputs
        self._field = field

    def name(self, index: int) -> str:
        return f"{self._field}[{index}]"

    def image(self, index: int) -> Image.Image:
        found = self._split[index][self._inputs]
        if not isinstance(found, Image.Image):
            raise TypeError(f"{self._inputs} is of {type(found).__name__}, no image: data.images null is for numbers")
        return found

    def rows(self, chosen: Indices) -> npt.NDArray[np.float32]:
        found = np.asarray(self._split[chosen.tolist()][self._inputs])
        if not is_real(found.dtype):
            raise BadData(
                f"{self._field}: {self._inputs} holds {found.dtype}; allowed: real numbers, the same count in each row"
            )
        return finite_rows(found, chosen, f"{self._field}: {self._inputs}")


def _labels(column: Any, field: str) -> npt.NDArray[Any]:
    """The column as classes, or as numbers to predict where it holds floats. Raises BadData."""
    found = np.asarray(column)
    if not is_real(found.dtype) or found.ndim != 1:
        raise BadData(f"{field} holds {found.dtype} of the shape {found.shape}; allowed: one number for each sample")
    return as_classes(found, field) if is_whole(found.dtype) else as_numbers(found, field)


def huggingface(
    *,
    path: str,
    name: str | None,
    revision: str | None,
    train: str,
    test: str | None,
    test_fraction: float,
    split_seed: int,
    inputs: str,
    labels: str,
    images: Images | None,
) -> tuple[ImageSet, ImageSet] | tuple[RowSet, RowSet]:
    splits = _load(path, name, revision)

    def table(split: str, field: str) -> Table:
        missing = one_of(split, splits, f"{field}: {path}")
        if missing:
            raise missing
        return Table(splits[split], inputs, labels, field)

    source = table(train, "data.train")
    other = None if test is None else table(test, "data.test")
    if images is None:
        return row_sets(source, other, 1.0, test_fraction, split_seed)
    return image_sets(source, other, images, test_fraction, split_seed)


def _load(path: str, name: str | None, revision: str | None) -> Any:
    try:
        import datasets  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        raise UnfitData("data.type: huggingface needs the library datasets: pip install relight[huggingface]") from None
    try:
        if (Path(path) / "dataset_dict.json").exists():  # of save_to_disk
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path, name, revision=revision)
    except (OSError, ValueError) as error:  # what the library raises for names, networks and files alike
        raise BadData(f"data.path: {path}: {next(iter(str(error).splitlines()), type(error).__name__)}") from error
