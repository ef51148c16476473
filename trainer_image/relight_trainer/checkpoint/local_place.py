"""Checkpoints in a folder: durable by fsync, committed by a rename."""

import contextlib
import mmap
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from relight_agent.files import fsync_folder
from relight_trainer.checkpoint.disk import write_file
from relight_trainer.checkpoint.place import MANIFEST, too_long


class LocalPlace:
    errors: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def exists(self) -> bool:
        return self._folder.is_dir()

    def prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self._folder / name

    def names(self, prefix: str) -> list[str]:
        return sorted(path.name for path in self._folder.glob(f"{prefix}*"))

    def read(self, name: str, most: int) -> bytes:
        try:
            with (self._folder / name).open("rb") as file:
                data = file.read(most + 1)
            if len(data) > most:
                raise too_long(name, most)
            return data
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from None

    def put(self, name: str, data: bytes) -> None:
        temporary = self._folder / f".{name}.{secrets.token_hex(4)}"
        try:
            write_file(temporary, [data])
            temporary.replace(self._folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(self._folder)

    def sizes(self, name: str) -> Mapping[str, int]:
        try:
            return {path.name: path.stat().st_size for path in (self._folder / name).iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def fetch(self, name: str, file: str) -> memoryview:
        with (self._folder / name / file).open("rb") as opened:
            try:
                return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
            except ValueError:  # an empty file cannot be mapped
                return memoryview(b"")

    def forget(self) -> None: ...

    def begin(self, name: str) -> str:
        begun = f"tmp-{name}-{secrets.token_hex(4)}"
        (self._folder / begun).mkdir(parents=True)
        return begun

    def write(self, begun: str, file: str, parts: Iterable[bytes | memoryview]) -> tuple[int, str]:
        folder = self._folder / begun
        folder.mkdir(exist_ok=True)  # a shared folder may show it late
        record = write_file(folder / file, parts)
        fsync_folder(folder)
        return record

    def commit(self, begun: str, name: str, manifest: bytes, check: Callable[[], None]) -> str:
        folder, target = self._folder / begun, self._folder / name
        write_file(folder / MANIFEST, [manifest])
        fsync_folder(folder)
        check()
        if target.exists():
            # Another job's of the same name, or damaged: it stays a candidate under another name.
            target.rename(self._folder / f"{name}.{secrets.token_hex(4)}")
        folder.rename(target)
        fsync_folder(self._folder)
        return name

    def discard(self, begun: str) -> None:
        shutil.rmtree(self._folder / begun, ignore_errors=True)

    def sweep(self) -> None:
        for leftover in (*self.names("tmp-"), *self.names("trash-")):
            shutil.rmtree(self._folder / leftover, ignore_errors=True)

    def set_aside(self, name: str, prefix: str) -> str:
        aside = self._folder / f"{prefix}-{name}"
        if aside.exists():
            aside = aside.with_name(f"{aside.name}-{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):  # read-only storage: it is judged again next time
            (self._folder / name).rename(aside)
            return aside.name
        return name

    def delete(self, name: str) -> None:
        trash = self._folder / f"trash-{name}-{secrets.token_hex(4)}"
        (self._folder / name).rename(trash)
        shutil.rmtree(trash)
