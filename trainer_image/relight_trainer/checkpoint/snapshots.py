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

import torch
from torch import Tensor

from relight_agent.files import read_json, write_json
from relight_trainer.checkpoint import room, tagged
from relight_trainer.checkpoint.container import Head, Layout, State
from relight_trainer.checkpoint.errors import SnapshotsOff
from relight_trainer.checkpoint.manifest import Position
from relight_trainer.checkpoint.memory import bytes_of
from relight_trainer.checkpoint.repeated import Flattener
from relight_trainer.checkpoint.unchanged import Unchanged, edges_of

_LEAST_HEAD = 4096
_SMALL = 1 << 14  # bytes; torch copies more than that as fast, and without holding up other threads
_MARK_BYTES = 1024
_ZEROS = 1 << 20  # bytes written at once
_OPEN = ord(" ")  # what a mark begins with that is none


class Snapshots:
    """Two slots in `folder`, which is on a tmpfs. One writer at a time: the member's local rank 0."""

    def __init__(self, folder: Path, *, job_uid: str, config_hash: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._owner = {"job_uid": job_uid, "config_hash": config_hash}
        self._mark = json.dumps(self._owner)[:-1]
        self._slots = (_Slot(folder / "slot-0"), _Slot(folder / "slot-1"))
        self._next: int | None = None
        self._flatten = Flattener()
        self._tensors: Sequence[Tensor] = ()
        self._dtypes: list[torch.dtype] = []
        self._geometry: object = None
        self._layout = Layout((), (), ())
        self._head = Head((), {})
        self._unchanged = Unchanged()
        self.copied = 0  # bytes of tensors that the last write has copied

    def write(self, state: State, *, generation: int, step: int) -> None:
        """Copy the state into the older slot and close it. Tensors on a device are waited for.

        After the first two calls, and while names, sizes and aliases of the tensors stay the same, this only copies
        bytes into memory that is already there; and of a large tensor that has not been written since it was copied into
        this slot, next to none (see `unchanged`).
        Raises `SnapshotsOff` where two such states do not fit, `UnsupportedState` where the state cannot be saved; the
        newest closed slot stays as it is.
        """
        quoted, paths, tensors = self._flatten(state)
        self._lay_out(paths, tensors)
        if self._next is None:
            newest = self._newest()
            self._next = 1 - newest[1] if newest else 0
        slot, other = self._slots[self._next], self._slots[1 - self._next]
        slot.open()
        words = quoted.encode()
        if (slot.layout is not self._layout and slot.layout != self._layout) or len(words) > slot.room:
            # Room for the numbers in it to grow, the same in each process for the same state.
            least = len(self._head.bytes(json.loads(quoted))) * 5 // 4
            head_bytes = max(_LEAST_HEAD, 1 << least.bit_length())
            self._unchanged.forget(self._next)
            try:
                slot.map(self._layout, tensors, self._head, head_bytes)
                other.reserve(head_bytes + self._head.data_bytes)
            except SnapshotsOff:
                slot.drop()
                raise
        held = self._unchanged.look(self._layout, tensors, self._geometry, self._next)
        self.copied = slot.copy(words, tensors, self._geometry, held)
        self._unchanged.copied(self._next)
        slot.close(f'{self._mark},"generation":{generation},"step":{step},"bytes":{slot.bytes}}}'.encode())
        self._next = 1 - self._next

    def forget(self) -> None:
        """Leave no state behind that anybody could go on from. From any thread; a `write` under way needs another call."""
        for slot in self._slots:
            slot.forget()

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

    def _lay_out(self, paths: Sequence[tagged.Path], tensors: Sequence[Tensor]) -> None:
        if tensors is not self._tensors:
            self._tensors, self._dtypes = tensors, [t.dtype for t in tensors]
        # The same addresses and geometry are the same aliases; working those out takes longer than to compare.
        geometry = (
            [*map(Tensor.data_ptr, tensors)], [*map(Tensor.size, tensors)], [*map(Tensor.stride, tensors)], self._dtypes,
        )  # fmt: skip
        if geometry == self._geometry:
            return
        layout = Layout.of(paths, tensors)
        if layout != self._layout:
            self._layout, self._head = layout, Head.of(layout)
        self._geometry = geometry


class _Slot:
    def __init__(self, stem: Path) -> None:
        self.path = stem.with_suffix(".safetensors")
        self.layout: Layout | None = None
        self.room = 0  # for the state's text
        self.bytes = 0
        self._closed = stem.with_suffix(".json")
        self._memory: mmap.mmap | None = None
        self._words_at = self._words = 0  # where the text begins, and how long the longest was
        self._targets: list[Tensor] = []
        self._geometry: object = None  # of the tensors that the next two are for
        self._small: list[tuple[memoryview, memoryview]] = []
        self._data_bytes = 0
        self._large: list[int] = []
        self._edges: dict[int, list[tuple[memoryview, memoryview]]] = {}  # of entries that are here
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
            self._mark[0] = _OPEN

    def close(self, mark: bytes) -> None:
        """JSON in memory that outlives this process. Its first byte comes last, so that what is cut short is none."""
        if self._mark is None:
            write_json(self._closed, None)
            with self._closed.open("r+b") as file:
                file.truncate(_MARK_BYTES)
                self._mark = mmap.mmap(file.fileno(), _MARK_BYTES)
        self._mark[1:] = mark[1:].ljust(_MARK_BYTES - 1)
        self._mark[0] = mark[0]

    def reserve(self, size: int) -> None:
        """Take the memory for a first write, so that a lack of it is known now and not as a SIGBUS in mid-copy."""
        if not self.path.exists():
            _allocate(self.path, size)

    def map(self, layout: Layout, tensors: Sequence[Tensor], head: Head, head_bytes: int) -> None:
        """Make this slot as large as it must be and lay the entries of `layout` over it."""
        self._let_go()
        size = head_bytes + head.data_bytes
        if not self.path.exists() or self.path.stat().st_size != size:
            # A new file, never another size for the old one: whoever reads the old one keeps it whole.
            self.drop()
            _allocate(self.path, size)
        with self.path.open("r+b") as file:
            # Faulting the pages in one by one would cost the first write five times a copy.
            self._memory = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        before, after = head.framed(head_bytes)
        self.room = self._words = head_bytes - len(before) - len(after)
        self._words_at = len(before)
        self._memory[:head_bytes] = before + b" " * self.room + after
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        at = head_bytes
        for i, entry in enumerate(layout.entries):
            self._targets.append(layout.target(i, whole[at : at + entry.bytes], tensors))
            at += entry.bytes
        self.layout, self.bytes, self._data_bytes = layout, size, head.data_bytes

    def forget(self) -> None:
        """No closed state is found here any more."""
        self._closed.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def drop(self) -> None:
        """Give the memory back."""
        self._let_go()
        self.path.unlink(missing_ok=True)

    def copy(self, words: bytes, tensors: Sequence[Tensor], geometry: object, held: frozenset[int]) -> int:
        """Copy the state's text and `tensors` in; `geometry` is another object where their memory is another.

        Entries `held` are here as they are, but for their edges. Returns the bytes of tensors that have been copied.
        """
        assert self.layout is not None
        assert self._memory is not None
        if geometry is not self._geometry:
            self._aim(tensors)
            self._geometry = geometry
        self._words = max(self._words, len(words))
        self._memory[self._words_at : self._words_at + self._words] = words.ljust(self._words)
        self._words = len(words)
        for target, source in self._small:
            target[:] = source
        size = self._data_bytes
        for i in held:
            size -= self.layout.entries[i].bytes
            if (edges := self._edges.get(i)) is None:
                edges = self._edges[i] = edges_of(self.layout.source(i, tensors), self._targets[i])
            for target, source in edges:
                target[:] = source
                size += len(source)
        large = [i for i in self._large if i not in held] if held else self._large
        if large:
            sources = [self.layout.source(i, tensors) for i in large]
            with torch.no_grad():  # one call for all of them
                torch._foreach_copy_([self._targets[i] for i in large], sources)
        return size

    def _aim(self, tensors: Sequence[Tensor]) -> None:
        """Tell apart what torch copies and what is copied sooner than torch is called."""
        assert self.layout is not None
        sources = self.layout.all_sources(tensors)
        small = [
            s.device.type == "cpu" and e.bytes <= _SMALL for s, e in zip(sources, self.layout.entries, strict=True)
        ]
        self._large = [i for i, is_small in enumerate(small) if not is_small]
        self._edges = {}
        self._small = [
            (bytes_of(self._targets[i]), bytes_of(sources[i])) for i, is_small in enumerate(small) if is_small
        ]

    def _let_go(self) -> None:
        self.layout, self._memory, self._geometry, self.room = None, None, None, 0
        self._targets, self._small, self._large, self._edges = [], [], [], {}


def _take(descriptor: int, size: int) -> None:
    """Make an open file `size` bytes long, every one of which there is memory for."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        # A C library that does not write in the place of the call, as glibc does.
        os.ftruncate(descriptor, size)
        for at in range(0, size, _ZEROS):
            os.pwrite(descriptor, bytes(min(_ZEROS, size - at)), at)


def _allocate(path: Path, size: int) -> None:
    room.require(size)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _take(descriptor, size)
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
