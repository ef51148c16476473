"""Checkpoints in an object store, through fsspec: committed by their manifest, which is put last.

There are no renames: a checkpoint's files are written under their final names, and without a manifest they are nothing.
One that is set aside keeps its files and loses its manifest to `corrupt-<name>.json` or `fenced-<name>.json`.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from relight_trainer.checkpoint.errors import StorageFailed
from relight_trainer.checkpoint.place import MANIFEST, too_long

_CHUNK = 16 * 2**20
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class ObjectPlace:
    errors: tuple[type[Exception], ...] = (Exception,)  # what a store's library raises is its own affair

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._url = url.rstrip("/")
        self._fetched_of = ""
        self._fetched: dict[str, memoryview] = {}  # verified a moment ago, and wanted next

    @classmethod
    def at(cls, url: str) -> "ObjectPlace":
        """The store of a URL; credentials come from the job's Secret, else as its fsspec package finds them.

        Raises StorageFailed, WrongStorageOptions.
        """
        import fsspec

        from relight_trainer.storage_options import Discreet, discreet, options, redacted

        scheme = url.partition("://")[0]
        try:
            with discreet():
                filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options(url))
        except ImportError as error:
            package = _PACKAGES.get(scheme, "the fsspec package for it")
            raise StorageFailed(f"{url} cannot be reached: install {package} in the image ({error})") from None
        except ValueError as error:
            raise StorageFailed(f"{url} cannot be reached: {redacted(str(error))}") from None
        return cls(Discreet(filesystem), root, url)

    def __str__(self) -> str:
        return self._url

    def exists(self) -> bool:
        return True

    def prepare(self) -> None: ...

    def path(self, name: str) -> PurePosixPath:
        return PurePosixPath(self._root) / name

    def names(self, prefix: str) -> list[str]:
        files = [file for file in self._files() if file.startswith(prefix)]
        if prefix.startswith("step-"):
            return sorted(file.removesuffix(f"/{MANIFEST}") for file in files if file.endswith(f"/{MANIFEST}"))
        return sorted({file.partition("/")[0] for file in files})

    def read(self, name: str, most: int) -> bytes:
        if int(self._fs.info(self._at(name))["size"] or 0) > most:
            raise too_long(name, most)
        return self._all_of(name)

    def put(self, name: str, data: bytes) -> None:
        self._fs.pipe_file(self._at(name), data)

    def sizes(self, name: str) -> Mapping[str, int]:
        return {file.partition("/")[2]: size for file, size in self._files(name).items()}

    def fetch(self, name: str, file: str) -> memoryview:
        if self._fetched_of != name:
            self._fetched_of, self._fetched = name, {}
        if file not in self._fetched:
            self._fetched[file] = memoryview(self._all_of(f"{name}/{file}"))
        return self._fetched[file]

    def forget(self) -> None:
        self._fetched = {}

    def begin(self, name: str) -> str:
        if self._files(name):  # another job's, or one that was set aside
            return f"{name}.{secrets.token_hex(4)}"
        return name

    def write(self, begun: str, file: str, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
        digest = hashlib.sha256()
        size = 0
        with self._fs.open(self._at(f"{begun}/{file}"), "wb") as stream:
            for part in parts:
                view = memoryview(part)
                for at in range(0, len(view), _CHUNK):
                    chunk = view[at : at + _CHUNK]
                    digest.update(chunk)
                    stream.write(chunk)
                size += len(view)
        return size, digest.hexdigest()

    def commit(self, begun: str, name: str, manifest: bytes, check: Callable[[], None]) -> str:  # noqa: ARG002  # it has its name
        check()
        self.put(f"{begun}/{MANIFEST}", manifest)
        return begun

    def discard(self, begun: str) -> None:
        if MANIFEST not in self.sizes(begun):
            self.delete(begun)

    def sweep(self) -> None:
        committed = set(self.names("step-"))
        aside = [*self.names("corrupt-"), *self.names("fenced-")]
        kept = {name.partition("-")[2].removesuffix(".json") for name in aside}
        begun = {file.partition("/")[0] for file in self._files() if file.startswith("step-")}
        for name in begun - committed - kept:
            self.delete(name)

    def set_aside(self, name: str, prefix: str) -> str:
        aside = f"{prefix}-{name}.json"
        try:
            self.put(aside, self._all_of(f"{name}/{MANIFEST}"))
            self._fs.rm_file(self._at(f"{name}/{MANIFEST}"))
        except Exception:  # read-only storage: it is judged again next time
            return name
        return aside

    def delete(self, name: str) -> None:
        # The manifest first: what is half deleted must not be a candidate.
        for file in sorted(self._files(name), key=lambda file: not file.endswith(f"/{MANIFEST}")):
            self._fs.rm_file(self._at(file))

    def _all_of(self, name: str) -> bytes:
        data: bytes = self._fs.cat_file(self._at(name))
        return data

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _files(self, below: str = "") -> dict[str, int]:
        """The size of each object below `below`, by its name relative to the root."""
        self._fs.invalidate_cache()  # other processes write here too
        folder = f"{self._root}/{below}" if below else self._root
        try:
            found: Mapping[str, Mapping[str, Any]] = self._fs.find(folder, detail=True)
        except FileNotFoundError:
            return {}
        root = self._fs._strip_protocol(self._root)  # noqa: SLF001  # how fsspec spells names in a listing
        return {name[len(root) :].lstrip("/"): int(info["size"] or 0) for name, info in found.items()}
