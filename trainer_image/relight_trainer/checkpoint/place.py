"""Where checkpoints are: a folder that all machines share, or an object store."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Protocol

MANIFEST = "manifest.json"


class Place(Protocol):
    """What the rules of checkpoints need of a place. `str()` names it to a person.

    Names are relative to it. `errors` are what its operations raise when the storage refuses, FileNotFoundError apart.
    """

    errors: tuple[type[Exception], ...]

    def exists(self) -> bool: ...

    def prepare(self) -> None:
        """Make it a place that can be written to."""
        ...

    def path(self, name: str) -> PurePath: ...

    def names(self, prefix: str) -> list[str]:
        """What is at the top and begins with `prefix`, sorted."""
        ...

    def read(self, name: str, most: int) -> bytes:
        """A small file. Raises `ValueError` where it has more than `most` bytes."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write a small file, which is then there whole and for good."""
        ...

    def sizes(self, name: str) -> Mapping[str, int]:
        """The bytes of each file in checkpoint `name`; none where it is not there."""
        ...

    def fetch(self, name: str, file: str) -> memoryview:
        """A file of checkpoint `name`. Where that is expensive, it is kept until `forget` or another checkpoint's."""
        ...

    def forget(self) -> None: ...

    def begin(self, name: str) -> str:
        """Make room for a checkpoint that will be `name`; what its writers call it until it is committed."""
        ...

    def write(self, begun: str, file: str, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
        """Write a file of a begun checkpoint. Returns (bytes, SHA-256). Any rank."""
        ...

    def commit(self, begun: str, name: str, manifest: bytes, check: Callable[[], None]) -> str:
        """Make a begun checkpoint visible, at once and last of all; `check` may still refuse. Returns its name."""
        ...

    def discard(self, begun: str) -> None: ...

    def sweep(self) -> None:
        """Delete what was begun and never committed, and what was being deleted."""
        ...

    def set_aside(self, name: str, prefix: str) -> str:
        """Hide a checkpoint from `names("step-")`, and keep it as `<prefix>-...`; its name from then on."""
        ...

    def delete(self, name: str) -> None: ...


def place_of(location: str | Path) -> Place:
    """The place of a path or URL: `/ckpt`, `file:///ckpt`, `s3://bucket/ckpt`; whatever fsspec knows.

    Raises `StorageFailed` where there is no way to reach it.
    """
    text = str(location)
    if isinstance(location, Path) or "://" not in text:
        from relight_trainer.checkpoint.local_place import LocalPlace

        return LocalPlace(Path(location))
    if text.startswith("file://"):
        return place_of(Path(text.removeprefix("file://")))
    from relight_trainer.checkpoint.object_place import ObjectPlace

    return ObjectPlace.at(text)


def too_long(name: str, most: int) -> ValueError:
    return ValueError(f"{name.rpartition('/')[2]} has more than {most} bytes")
