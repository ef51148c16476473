"""Images in tar files (the webdataset format), each read through once and from then on by position."""

import glob
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from relight_trainer.data.errors import BadData, few, unreadable
from relight_trainer.data.fingerprint import digest
from relight_trainer.data.images import ImageSet, decoded, image_sets
from relight_trainer.data.kept import Arrays, kept, packed, unpacked
from relight_trainer.data.kept import folder as cache_folder
from relight_trainer.data.names import Names
from relight_trainer.data.paths import existing
from relight_trainer.settings.data import Images

_FORMAT = 1  # of what is kept
_MOST = np.iinfo(np.int64).max
_PARTS = {"keys", "places", "labels"}


class Index(NamedTuple):
    """Where the images in a tar file are, one row for each sample."""

    keys: list[str]
    places: npt.NDArray[np.int64]  # (n, 2): the position of the first byte, and how many
    labels: npt.NDArray[np.int64]  # (n,)


def expanded(pattern: str) -> list[str]:
    """The paths that `pattern` stands for, in order: ranges are written out, then *, ? and [...] looked up.

    >>> expanded("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207  # paths as given
    first, last = found.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [path for n in numbers for path in expanded(f"{pattern[: found.start()]}{n}{pattern[found.end() :]}")]


def read_index(path: Path, image: Iterable[str], label: str) -> Index:
    """Read through the tar file. Raises BadData for what is no such file, or lacks a part of a sample."""
    endings = frozenset(image)
    try:
        with tarfile.open(path, "r:") as tar:
            rows = list(_samples(tar, path, endings, label))
    except tarfile.ReadError as error:
        compressed = path.suffix in {".gz", ".tgz", ".bz2", ".xz", ".zst"}
        hint = ": a compressed tar file has no positions, unpack it" if compressed else ""
        raise BadData(f"{path}: not a tar file ({error}){hint}") from error
    except OSError as error:
        raise unreadable(str(path), error) from error
    if not rows:
        raise BadData(f"{path} holds no samples; allowed: pairs such as 0001.{min(endings)} and 0001.{label}")
    keys, places, labels = zip(*rows, strict=True)
    return Index(list(keys), np.array(places, dtype=np.int64), np.array(labels, dtype=np.int64))


def _samples(
    tar: tarfile.TarFile, path: Path, endings: frozenset[str], label: str
) -> Iterator[tuple[str, tuple[int, int], int]]:
    files = (member for member in tar if member.isfile() and not _is_hidden(member.name))
    for key, members in groupby(files, lambda member: _key(member.name)):
        named = list(members)
        parts = {member.name[len(key) + 1 :].lower(): member for member in named}
        if len(parts) != len(named):
            raise BadData(f"{path}: sample {key} has two files of one ending: {few(sorted(m.name for m in named))}")
        images = [part for ending, part in parts.items() if ending in endings]
        if len(images) != 1 or label not in parts:
            wanted = f"one of {', '.join(sorted(endings))} and {label}"
            raise BadData(f"{path}: sample {key} has {few(sorted(parts))}; allowed: {wanted}")
        content = tar.extractfile(parts[label])
        text = content.read(32).strip() if content else b""
        if not text.isdigit() or int(text) > _MOST:
            raise BadData(f"{path}: {parts[label].name} is {text!r}; allowed: a whole number from 0")
        if images[0].size == 0 or images[0].offset_data + images[0].size > path.stat().st_size:
            raise BadData(f"{path}: {images[0].name} is empty or cut off")
        yield key, (images[0].offset_data, images[0].size), int(text)


def _is_hidden(name: str) -> bool:
    """Whether the file is none of the data's: macOS puts `._0001.jpg` with attributes beside each file in a tar."""
    return name.rpartition("/")[2].startswith(".")


def _key(name: str) -> str:
    """What the files of a sample have in common: the name up to the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def index_of(path: Path, image: list[str], label: str, cache: Path) -> Index:
    """The index of a tar file, out of `cache` where it has one of just this file."""
    status = path.stat()
    name = digest(str((_FORMAT, str(path), status.st_size, status.st_mtime_ns, image, label)))
    arrays = kept(
        cache / f"{path.name}-{name}.npz",
        lambda found: found.keys() >= _PARTS,
        lambda: _packed_index(path, image, label),
    )
    return Index(unpacked(arrays["keys"]), arrays["places"], arrays["labels"])


def _packed_index(path: Path, image: list[str], label: str) -> Arrays:
    index = read_index(path, image, label)
    return {**index._asdict(), "keys": packed(index.keys)}


class Shards:
    """`images.Source` of tar files."""

    def __init__(self, pattern: str, image: list[str], label: str, cache: Path, field: str) -> None:
        self._paths = [existing(path, field) for path in expanded(pattern)]
        if not self._paths:
            raise BadData(f"{field}: nothing is called {pattern}; {Path(pattern).parent} is looked in")
        indices = [index_of(path, image, label, cache) for path in self._paths]
        self.labels = np.concatenate([index.labels for index in indices])
        self._places = np.concatenate([index.places for index in indices])
        self._shard = np.repeat(np.arange(len(indices)), [len(index.labels) for index in indices])
        self._keys = Names.of(key for index in indices for key in index.keys)
        files = [path.name for path in self._paths]
        self.fingerprint = digest(*files, self._keys.data.tobytes(), self._places.tobytes(), self.labels.tobytes())

    def name(self, index: int) -> str:
        return f"{self._paths[self._shard[index]]}:{self._keys[index]}"

    def image(self, index: int) -> Image.Image:
        position, size = self._places[index].tolist()
        return decoded(os.pread(_opened(self._paths[self._shard[index]]), size, position))


@lru_cache(maxsize=256)
def _opened(path: Path) -> int:
    """A descriptor that stays open: forked loader processes may share it, as reading moves no position."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def tar_shards(
    *,
    train: str,
    test: str | None,
    test_fraction: float,
    split_seed: int,
    image: list[str],
    label: str,
    index: str | None,
    images: Images,
) -> tuple[ImageSet, ImageSet]:
    cache = cache_folder(index)
    source = Shards(train, image, label, cache, "data.train")
    other = None if test is None else Shards(test, image, label, cache, "data.test")
    return image_sets(source, other, images, test_fraction, split_seed)
