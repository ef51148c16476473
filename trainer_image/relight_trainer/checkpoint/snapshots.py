"""Snapshots: the newest training states of one member, in memory that outlives its workers.

    <folder>/slot-0.safetensors  slot-1.safetensors     the states, each a packed container
    <folder>/slot-0.json         slot-1.json            a slot is closed, and counts, only while this says of what step

The slots alternate, so that a write that is cut short never costs the state before it.
"""

import errno
import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from relight_agent.files import read_json, write_json
from relight_trainer.checkpoint import room, tagged
from relight_trainer.checkpoint.container import Head, Layout, State
from relight_trainer.checkpoint.errors import SnapshotsOff
from relight_trainer.checkpoint.manifest import Position
from relight_trainer.checkpoint.repeated import Flattener

_LEAST_HEAD = 4096
_BLANK = b" " * 1024  # of a mark: no JSON


class Snapshots:
    """Two slots in `folder`, which is on a tmpfs. One writer at a time: the member's local rank 0."""

    def __init__(self, folder: Path, *, job_uid: str, config_hash: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._owner = {"job_uid": job_uid, "config_hash": config_hash}
        self._slots = (_Slot(folder / "slot-0"), _Slot(folder / "slot-1"))
        self._next: int | None = None
        self._flatten = Flattener()
        self._key: object = None
        self._layout = Layout((), (), ())
        self._head = Head((), {})

    def write(self, state: State, *, generation: int, step: int) -> None:
        """Copy the state into the older slot and close it. Tensors on a device are waited for.

        After the first two calls, and while names, sizes and aliases of the tensors stay the same, this only copies
        bytes into memory that is already there.
        Raises `SnapshotsOff` where two such states do not fit, `UnsupportedState` where the state cannot be saved; the
        newest closed slot stays as it is.
        """
        text, paths, tensors = self._flatten(state)
        self._lay_out(paths, tensors)
        if self._next is None:
            newest = self._newest()
            self._next = 1 - newest[1] if newest else 0
        slot, other = self._slots[self._next], self._slots[1 - self._next]
        slot.open()
        head = self._head.bytes(text, slot.head_bytes)
        if slot.layout != self._layout or len(head) != slot.head_bytes:
            # Room for the numbers in it to grow, the same in each process for the same state.
            least = len(self._head.bytes(text)) * 5 // 4
            head = self._head.bytes(text, max(_LEAST_HEAD, 1 << least.bit_length()))
            try:
                slot.map(self._layout, tensors, len(head), len(head) + self._head.data_bytes)
                other.reserve(len(head) + self._head.data_bytes)
            except SnapshotsOff:
                slot.drop()
                raise
        slot.copy(head, tensors)
        slot.close({**self._owner, "generation": generation, "step": step, "bytes": slot.bytes})
        self._next = 1 - self._next

    def newest(self) -> Position | None:
        """The newest closed slot of this job uid and config hash."""
        found = self._newest()
        return found[0] if found else None

    def read(self) -> memoryview:
        """The newest closed slot's container, as `unpack` takes it: writable, private, valid until the second write
        after this. Raises `LookupError` where there is none.
        """
        found = self._newest()
        if found is None:
            raise LookupError("there is no closed snapshot of this job")
        with self._slots[found[1]].path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))

    def _newest(self) -> tuple[Position, int] | None:
        closed = ((slot.position(self._owner), i) for i, slot in enumerate(self._slots))
        return max(((position, i) for position, i in closed if position is not None), default=None)

    def _lay_out(self, paths: Sequence[tagged.Path], tensors: Sequence[torch.Tensor]) -> None:
        # The same addresses and geometry are the same aliases; working those out takes longer than to compare.
        key = [(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors]
        if key == self._key:
            return
        layout = Layout.of(paths, tensors)
        if layout != self._layout:
            self._layout, self._head = layout, Head.of(layout)
        self._key = key


class _Slot:
    def __init__(self, stem: Path) -> None:
        self.path = stem.with_suffix(".safetensors")
        self.layout: Layout | None = None
        self.head_bytes = 0
        self.bytes = 0
        self._closed = stem.with_suffix(".json")
        self._memory: mmap.mmap | None = None
        self._targets: list[torch.Tensor] = []
        self._mark: mmap.mmap | None = None

    def position(self, owner: dict[str, str]) -> Position | None:
        """Where the state of a closed slot stands, None for an open slot or another owner's."""
        mark = read_json(self._closed)
        if not isinstance(mark, dict) or any(mark.get(key) != value for key, value in owner.items()):
            return None
        try:
            if self.path.stat().st_size != mark["bytes"]:
                return None
            return Position(mark["generation"], mark["step"])
        except (FileNotFoundError, KeyError):
            return None

    def open(self) -> None:
        if self._mark is None:
            self._closed.unlink(missing_ok=True)
        else:
            self._mark[:] = _BLANK

    def close(self, mark: dict[str, Any]) -> None:
        """JSON in memory that outlives this process: what is cut short while it is written is none."""
        if self._mark is None:
            write_json(self._closed, None)
            with self._closed.open("r+b") as file:
                file.truncate(len(_BLANK))
                self._mark = mmap.mmap(file.fileno(), len(_BLANK))
        text = json.dumps(mark).encode()
        assert len(text) < len(_BLANK)
        self._mark[:] = text.ljust(len(_BLANK))

    def reserve(self, size: int) -> None:
        """Take the memory for a first write, so that a lack of it is known now and not as a SIGBUS in mid-copy."""
        if not self.path.exists():
            _allocate(self.path, size)

    def map(self, layout: Layout, tensors: Sequence[torch.Tensor], head_bytes: int, size: int) -> None:
        """Make this slot `size` bytes large and lay the entries of `layout` over it."""
        self.layout, self._memory, self._targets = None, None, []
        if not self.path.exists() or self.path.stat().st_size != size:
            # A new file, never another size for the old one: whoever reads the old one keeps it whole.
            self.drop()
            _allocate(self.path, size)
        with self.path.open("r+b") as file:
            # Faulting the pages in one by one would cost the first write five times a copy.
            self._memory = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        at = head_bytes
        for i, entry in enumerate(layout.entries):
            self._targets.append(layout.target(i, whole[at : at + entry.bytes], tensors))
            at += entry.bytes
        self.layout, self.head_bytes, self.bytes = layout, head_bytes, size

    def drop(self) -> None:
        """Give the memory back."""
        self.layout, self._memory, self._targets = None, None, []
        self.path.unlink(missing_ok=True)

    def copy(self, head: bytes, tensors: Sequence[torch.Tensor]) -> None:
        assert self.layout is not None
        assert self._memory is not None
        self._memory[: len(head)] = head
        with torch.no_grad():
            if self._targets:  # one call for all of them
                torch._foreach_copy_(self._targets, self.layout.all_sources(tensors))


def _allocate(path: Path, size: int) -> None:
    room.require(size)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG):
            raise
        free = os.statvfs(path.parent)
        raise SnapshotsOff(
            f"snapshots are off: two states of {size / 1e6:.1f} MB do not fit {path.parent} "
            f"({free.f_bavail * free.f_frsize / 1e6:.1f} MB free); give the member a larger /dev/shm to turn them on"
        ) from error
