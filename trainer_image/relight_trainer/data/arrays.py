"""Arrays of numpy as a data set, read in place."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from relight_trainer.data.errors import BadData, one_of, unreadable
from relight_trainer.data.fingerprint import digest
from relight_trainer.data.images import ImageSet, image_sets
from relight_trainer.data.labels import as_classes, as_numbers, is_real, is_whole
from relight_trainer.data.parts import Indices
from relight_trainer.data.paths import existing
from relight_trainer.data.rows import RowSet, finite_rows, row_sets
from relight_trainer.settings.data import Images

Array = npt.NDArray[Any]
_TORCHS = {np.dtype(kind) for kind in (bool, np.uint8, np.int8, np.int16, np.int32, np.int64)}
_LOCAL_HEADER = 30  # bytes of a zip's header of a member, before its name and its extra field


def mapped(path: Path, name: str, field: str) -> Array:
    """The array `name` in a .npz file or a folder of .npy files: mapped, or in memory where it is compressed.

    Raises BadData where it is not there or is no array.
    """
    try:
        if path.is_dir():
            return _mapped_file(path, name, field)
        with zipfile.ZipFile(path) as archive:
            return _mapped_member(path, archive, name, field)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise unreadable(f"{field}: {path}: {name}", error) from error


def _mapped_file(folder: Path, name: str, field: str) -> Array:
    missing = one_of(name, [file.stem for file in folder.glob("*.npy")], f"{field}: {folder}")
    if missing:
        raise missing
    array: Array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array


def _mapped_member(path: Path, archive: zipfile.ZipFile, name: str, field: str) -> Array:
    missing = one_of(name, [member.removesuffix(".npy") for member in archive.namelist()], f"{field}: {path}")
    if missing:
        raise missing
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        with archive.open(member) as unpacked:
            array: Array = np.lib.format.read_array(unpacked, allow_pickle=False)
            return array
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
        file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


class Pair:
    """Two arrays, inputs and labels: `images.Source` and `rows.Source`. Labels are in memory, int64 or float32."""

    def __init__(self, path: Path, inputs: str, labels: str, field: str) -> None:
        self._name = f"{path}:{inputs}"
        self._inputs = mapped(path, inputs, field)
        found = mapped(path, labels, field)
        for name, array in ((inputs, self._inputs), (labels, found)):
            if not is_real(array.dtype):
                raise BadData(f"{field}: {path}: {name} holds {array.dtype}; allowed: real numbers")
        if not self._inputs.ndim or found.ndim != 1 or len(self._inputs) != len(found) or not len(found):
            raise BadData(
                f"{field}: {path}: {inputs} of the shape {self._inputs.shape} and {labels} of {found.shape}; "
                "allowed: one label for each row of inputs, and a row at least"
            )
        if 0 in self._inputs.shape:
            raise BadData(
                f"{field}: {path}: {inputs} of the shape {self._inputs.shape}; allowed: at least one number in each row"
            )
        where = f"{field}: {path}: {labels}"
        whole = is_whole(found.dtype)
        self.labels: Array = as_classes(found, where) if whole else as_numbers(found, where)
        self.fingerprint = digest(str((self._inputs.shape, self._inputs.dtype)), self.labels.tobytes())

    def rows(self, chosen: Indices) -> Array:
        """The rows at `chosen` in a type that torch has, in this machine's byte order. Raises BadData.

        Floats come as float32: what is not finite there is refused, with its row.
        """
        found = np.asarray(self._inputs[chosen])
        if found.dtype.kind != "f":
            native = found.dtype.newbyteorder("=")
            return found.astype(native if native in _TORCHS else np.float32, copy=False)
        return finite_rows(found, chosen, self._name)

    def name(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(np.asarray(self._inputs[index]))

    def require_images(self) -> None:
        shape = self._inputs.shape
        if self._inputs.dtype != np.uint8 or len(shape) < 3 or shape[3:] not in {(), (3,)} or self.labels.dtype != int:
            raise BadData(
                f"{self._name}: {self._inputs.dtype} of the shape {shape}, labels of {self.labels.dtype}; allowed with "
                "data.images: uint8 of (n, height, width) or (n, height, width, 3), whole numbers as labels"
            )


def arrays(
    *,
    train: str,
    test: str | None,
    test_fraction: float,
    split_seed: int,
    inputs: str,
    labels: str,
    scale: float,
    images: Images | None,
) -> tuple[RowSet, RowSet] | tuple[ImageSet, ImageSet]:
    source = Pair(existing(train, "data.train"), inputs, labels, "data.train")
    other = None if test is None else Pair(existing(test, "data.test"), inputs, labels, "data.test")
    if images is None:
        return row_sets(source, other, scale, test_fraction, split_seed)
    for pair in (source, other):
        if pair is not None:
            pair.require_images()
    return image_sets(source, other, images, test_fraction, split_seed)
