"""Sends a state from the ranks that hold it to the others, without the tensors that a receiver has already built."""

import hashlib
import json
import mmap
import struct
from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

from relight_trainer.checkpoint.memory import Buffer
from relight_trainer.checkpoint.packed import Difference, Own, Packed, difference
from relight_trainer.peers import Peers
from relight_trainer.routes import routes

_SIZES = struct.Struct("<QQ")  # of the whole state, and of the digests as JSON


class Handed(NamedTuple):
    """A state that has come to this rank, or was here."""

    packed: Packed
    sent: int = 0  # bytes of tensors, to other ranks
    received: int = 0  # and from them


def hand_over(
    peers: Peers, held: Callable[[], Buffer] | None, own: Own, *, local_world: int, threads: int = 1
) -> Handed:
    """The state on every rank; called by all. `held` gives it where this rank holds it, and is None elsewhere.

    Ranks that hold it are sent nothing. Where one rank alone holds it, what is sent goes to all others at once.
    """
    holds = [bool(number) for [number] in peers.gather_numbers(held is not None)]
    packed = Packed(held(), threads=threads) if held is not None else None
    if holds.count(True) == 1 and len(holds) > 2:
        return _to_all(peers, packed, holds.index(True), own, threads)
    sent = received = 0
    for now in routes(holds, local_world):
        for source, target in now:
            if peers.rank == source:
                assert packed is not None
                sent += _give(peers, packed, target)
            elif peers.rank == target:
                packed, received = _take(peers, source, own, threads)
    assert packed is not None
    return Handed(packed, sent, received)


def compare(peers: Peers, packed: Packed, notes: Container[str] = frozenset()) -> Difference | None:
    """Where the ranks' states differ, the same on all ranks; None where they do not. Called by all.

    Of the objects named in `notes` the tensors alone are compared.
    """
    if peers.world == 1:
        return None
    compared = packed.without_text(notes)
    digests = peers.gather(hashlib.sha256(json.dumps(compared).encode()).digest())
    if all(digest == digests[0] for digest in digests):
        return None
    mine = json.dumps(compared).encode()
    everyones: list[Mapping[str, str]] = [
        json.loads(bytes(peers.broadcast(bytearray(mine) if peers.rank == rank else None, rank)))
        for rank in range(peers.world)
    ]
    return difference(everyones)


def _to_all(peers: Peers, packed: Packed | None, owner: int, own: Own, threads: int) -> Handed:
    header = peers.broadcast(_header(packed) if packed is not None else None, owner)
    filled = _Filled(header, own, threads) if packed is None else None
    into = filled.packed if filled is not None else packed
    assert into is not None
    masks = peers.gather(filled.wanted if filled is not None else bytes(len(into.entries)))
    runs = into.runs([any(wanted) for wanted in zip(*masks, strict=True)])
    for run in runs:
        peers.broadcast_into(run, owner)
    size = sum(map(len, runs))
    return Handed(into, sent=size) if filled is None else Handed(into, received=size)


def _give(peers: Peers, packed: Packed, target: int) -> int:
    header = _header(packed)
    peers.send(struct.pack("<Q", len(header)), target)
    peers.send(header, target)
    wanted = bytearray(len(packed.entries))
    peers.receive(wanted, target)
    runs = packed.runs([bool(is_wanted) for is_wanted in wanted])
    for run in runs:
        peers.send(run, target)
    return sum(map(len, runs))


def _take(peers: Peers, source: int, own: Own, threads: int) -> tuple[Packed, int]:
    own.prepare()  # while the other one computes its digests
    size = bytearray(8)
    peers.receive(size, source)
    header = bytearray(*struct.unpack("<Q", size))
    peers.receive(header, source)
    filled = _Filled(header, own, threads)
    peers.send(filled.wanted, source)
    runs = filled.packed.runs([bool(is_wanted) for is_wanted in filled.wanted])
    for run in runs:
        peers.receive(run, source)
    return filled.packed, sum(map(len, runs))


def _header(packed: Packed) -> bytearray:
    """What the receiver must know before it can say what it lacks."""
    digests = json.dumps({name: packed.digests[name] for name in packed.entries if packed.is_dense(name)}).encode()
    return bytearray(_SIZES.pack(len(packed.memory), len(digests)) + digests + bytes(packed.head))


class _Filled:
    """Memory for a state that is to come; what this rank has built the same itself stays where it is."""

    def __init__(self, header: Buffer, own: Own, threads: int) -> None:
        header = memoryview(header)
        size, length = _SIZES.unpack_from(header)
        digests: dict[str, str] = json.loads(bytes(header[_SIZES.size : _SIZES.size + length]))
        head = header[_SIZES.size + length :]
        memory = mmap.mmap(-1, size)  # pages that are not filled take no memory; who has a view of it keeps it
        memory[: len(head)] = bytes(head)
        self.packed = Packed(memory, threads=threads)
        wanted = bytearray()
        for name in list(self.packed.entries):
            digest = digests.get(name)
            mine = own.same(name, digest) if digest is not None else None
            if mine is not None and digest is not None:
                self.packed.lies_in(name, mine, digest, own)
            wanted.append(mine is None)
        self.wanted = bytes(wanted)
