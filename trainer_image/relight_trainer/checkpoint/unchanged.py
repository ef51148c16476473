"""Finds the entries of a state that need not be copied again, because a slot already holds the same bytes.

A tensor's version counter only says where it is worth while to look: it moves with most writes, but not with those under
`.data`, numpy or a kernel of one's own. Whether an entry is what it was is known otherwise, and of every write: on the
CPU from the page tables (`written`), on a device from a hash that is computed there (`fold`). Where the kernel offers
neither, everything is copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relight_trainer.checkpoint.container import Layout
from relight_trainer.checkpoint.fold import fold
from relight_trainer.checkpoint.memory import bytes_of, flat
from relight_trainer.checkpoint.written import PAGE, Range, WrittenPages

LEAST = 1 << 18  # bytes of an entry from which to look is cheaper than to copy
MOST = 4096  # entries that are looked at: each may split a mapping of the kernel's in three, of 65,530 that it allows
_LONGEST_WAIT = 64


@dataclass(eq=False)
class _Watched:
    """An entry of the layout that is large enough."""

    index: int
    versioned: list[Tensor]  # the tensors of the state that lie in it
    source: Tensor
    pages: Range  # the whole pages of it, on the CPU
    version: list[int] = field(default_factory=list)
    quiet: int = 0  # looks since the version moved
    wait: int = 0  # looks that it must have been quiet for until it is watched; doubled when that was in vain
    # On a device, the hash of what is copied; on the CPU, True while its pages are protected. None while it is not watched.
    proof: Any = None
    held: list[bool] = field(default_factory=lambda: [False, False])  # by slot, whether its bytes are there

    @property
    def place(self) -> tuple[int, torch.device]:
        return self.source.data_ptr(), self.source.device


class Unchanged:
    """Follows one layout after another. `look` comes before each write of a slot, `copied` after it."""

    def __init__(self) -> None:
        self._kernel: WrittenPages | None = None
        self._asked = False  # the kernel
        self._layout: Layout | None = None
        self._geometry: object = None
        self._watched: list[_Watched] = []

    def look(self, layout: Layout, tensors: Sequence[Tensor], geometry: object, slot: int) -> frozenset[int]:
        """The entries that `slot` holds as they are; `geometry` is another object where the tensors' memory is another."""
        if layout is not self._layout or geometry is not self._geometry:
            self._aim(layout, tensors)
            self._layout, self._geometry = layout, geometry
        if not self._watched:
            return frozenset()
        ready = [w for w in self._watched if self._is_quiet(w)]
        self._look_at_pages([w for w in ready if w.source.device.type == "cpu"])
        self._look_at_devices([w for w in ready if w.source.device.type != "cpu"])
        return frozenset(w.index for w in ready if w.held[slot])

    def copied(self, slot: int) -> None:
        """What is watched has been copied into `slot`, or was there."""
        for watched in self._watched:
            watched.held[slot] = watched.proof is not None

    def forget(self, slot: int) -> None:
        """`slot` holds nothing any more."""
        for watched in self._watched:
            watched.held[slot] = False

    def _aim(self, layout: Layout, tensors: Sequence[Tensor]) -> None:
        """Watch the entries of `layout`; what lies where it lay, and is in the same place of the slots, is known still."""
        known = {w.index: w for w in self._watched} if layout is self._layout else {}
        large = [i for i, entry in enumerate(layout.entries) if entry.bytes >= LEAST]
        large = sorted(sorted(large, key=lambda i: -layout.entries[i].bytes)[:MOST])
        within: dict[str, list[Tensor]] = {layout.entries[i].name: [] for i in large}
        if large:
            for view, tensor in zip(layout.views, tensors, strict=True):
                if view.entry in within:
                    within[view.entry].append(tensor)
        self._watched = []
        for i in large:
            entry = layout.entries[i]
            source = layout.source(i, tensors)
            if source.device.type == "cpu" and source.is_pinned():
                continue  # a device may write it past the page tables
            watched = _Watched(i, within[entry.name], source, _whole_pages(source.data_ptr(), entry.bytes))
            # What requires a gradient is most likely written by the next step: to protect it would be in vain.
            watched.wait = int(any(t.requires_grad for t in watched.versioned))
            old = known.get(i)
            if old is not None and old.place == watched.place:
                watched.version, watched.quiet, watched.wait = old.version, old.quiet, old.wait
                watched.proof, watched.held = old.proof, old.held
            self._watched.append(watched)

    def _is_quiet(self, watched: _Watched) -> bool:
        """Whether it is worth while to look at this one."""
        version = [_version(t) for t in watched.versioned]
        if version != watched.version:
            first, watched.version = not watched.version, version
            watched.quiet = 0
            _give_up(watched)
            return first and watched.wait == 0
        watched.quiet += 1
        return watched.quiet >= watched.wait

    def _look_at_pages(self, quiet: list[_Watched]) -> None:
        new = []
        for watched in quiet:
            if watched.proof is None:
                new.append(watched)
            elif self._kernel is None or not self._kernel.untouched(watched.pages):
                _in_vain(watched)
        if not new:
            return
        if not self._asked:
            self._asked, self._kernel = True, WrittenPages.open()
        if self._kernel is None:
            return
        for watched, known in zip(new, self._kernel.protect([w.pages for w in new]), strict=True):
            # Protected before it is copied: what is written meanwhile is seen the next time.
            watched.proof = True if known else None
            if not known:
                _in_vain(watched)

    @staticmethod
    def _look_at_devices(quiet: list[_Watched]) -> None:
        if not quiet:
            return
        computed = [fold(flat(w.source)) for w in quiet]
        hashes = [found.cpu() for found in computed]  # waited for once, when all are under way
        for watched, found in zip(quiet, hashes, strict=True):
            if watched.proof is None:
                watched.proof = found
            elif not torch.equal(found, watched.proof):
                _in_vain(watched)


def edges_of(source: Tensor, target: Tensor) -> list[tuple[memoryview, memoryview]]:
    """(target, source) of the bytes before the first and behind the last whole page of a CPU entry: a neighbour may be
    written in the same page, so that they are copied each time. On a device there are none.
    """
    if source.device.type != "cpu":
        return []
    size = source.numel() * source.element_size()
    address = source.data_ptr()
    start, end = (at - address for at in _whole_pages(address, size))
    into, out_of = bytes_of(target), bytes_of(source)
    return [(into[a:b], out_of[a:b]) for a, b in ((0, start), (end, size)) if a < b]


def _whole_pages(address: int, size: int) -> Range:
    return -(-address // PAGE) * PAGE, (address + size) // PAGE * PAGE


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001  # an inference tensor has no counter


def _give_up(watched: _Watched) -> None:
    watched.proof, watched.held = None, [False, False]


def _in_vain(watched: _Watched) -> None:
    """It has been written although its version says otherwise: look again later, and later still after that."""
    _give_up(watched)
    watched.quiet, watched.wait = 0, min(max(2, 2 * watched.wait), _LONGEST_WAIT)
