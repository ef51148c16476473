"""The ranks of one generation: the process group, the store, and the few exchanges the trainer needs of them.

Nothing is pickled: what is sent is bytes and numbers.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from relight_agent.exits import ExitCode
from relight_agent.stacks import FLIGHT, FLIGHT_PIPE
from relight_trainer.checkpoint.memory import Buffer

TIMEOUT = timedelta(minutes=5)  # longer than any section in which one rank works and the others wait
MARGIN_SECONDS = 60.0  # what a collective may take longer than the agents' longest limit
_CHUNK = 64 << 20  # bytes in one broadcast: what a GPU holds twice on the way


class Interrupted(Exception):
    """A wait was left because all ranks have agreed to stop."""


class Silent(Exception):
    """Not every rank came to form the world."""

    exit_code = ExitCode.PEER_LOST


def form(device: torch.device, members: Sequence[Mapping[str, Any]] = ()) -> None:
    """Form the default process group from torch's environment: gloo for the CPU, NCCL for CUDA.

    In names of this run alone: a worker of another, woken up at an address that is used again, meets nobody.
    `members` say by node rank where each runs. Raises Silent, which names the ranks that did not come.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    meet(connect(f"relight/{run}/form"), rank, world, members)
    init = partial(
        dist.init_process_group, store=connect(f"relight/{run}/group"), rank=rank, world_size=world, timeout=TIMEOUT
    )
    if device.type == "cuda":
        _record_flight()
        torch.cuda.set_device(device)
        init("nccl", device_id=device)
    else:
        init("gloo")
    # Before anything is loaded or built: every member can be reached, and adds up what it should.
    ones = torch.ones(1, device=device)
    dist.all_reduce(ones)
    if ones.item() != world:
        raise Silent(f"the sum of {world} ones over all ranks is {ones.item():g}")


def meet(
    store: Store, rank: int, world: int, members: Sequence[Mapping[str, Any]] = (), timeout: timedelta = TIMEOUT
) -> None:
    """Wait until every rank is here. Raises Silent, which names those that are not."""
    keys = [str(i) for i in range(world)]
    store.set(keys[rank], "here")
    try:
        store.wait(keys, timeout)
    except dist.DistStoreError:
        missing = [i for i in range(world) if not store.check([keys[i]])]
        if not missing:
            return
        per_node = max(1, world // len(members)) if members else 1
        names = ", ".join(
            _where(i, members[i // per_node] if i // per_node < len(members) else {}) for i in missing[:8]
        )
        raise Silent(f"waited {timeout.total_seconds():.0f} s for {names}: not come to form the world") from None


def _where(rank: int, member: Mapping[str, Any]) -> str:
    machine, address = member.get("machine"), member.get("address")
    place = ", ".join(str(p) for p in (machine, address) if p)
    return f"rank {rank} ({place})" if place else f"rank {rank}"


def _record_flight() -> None:
    """Have NCCL note its last collectives, and write them down when the agent asks, or when one times out."""
    folder = os.environ.get("RELIGHT_GENERATION_DIR")
    if folder is None:
        return
    # Which collective each rank is at tells who is behind. With Python's stacks it could wait for the GIL of who hangs.
    wanted = {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",  # the older names, here and below
        "TORCH_INCLUDE_STACK_TRACE": "0",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": f"{folder}/{FLIGHT}",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": f"{folder}/{FLIGHT}",
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": f"{folder}/{FLIGHT_PIPE}",
    }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


class Patience:
    """The time-out of the default process group's collectives, as long as the agent says that a rank may be silent.

    It is the second line: what it finds, the agents have found before, unless they are gone.
    """

    def __init__(self, told: Callable[[], float | None]) -> None:
        self._told = told
        self._seconds: float | None = None

    def follow(self) -> None:
        """Take over what is told now."""
        told = self._told()
        if told is None or told == self._seconds:
            return
        self._seconds = told
        _set_timeout(timedelta(seconds=told + MARGIN_SECONDS))


def _set_timeout(timeout: timedelta) -> None:
    """Give the collectives of the default process group `timeout`; no change where this torch's backend cannot take it.

    What torch's own `_set_pg_timeout` does; but that only warns where TORCH_DISTRIBUTED_DEBUG=DETAIL has wrapped the
    backend, and ends the training where warnings are errors.
    """
    group: Any = dist.distributed_c10d._get_default_group()  # noqa: SLF001  # here and below: no public name in torch 2.13
    for device in group._device_types:  # noqa: SLF001
        backend = group._get_backend(device)  # noqa: SLF001
        setter = getattr(getattr(backend, "wrapped_pg", backend), "_set_default_timeout", None)
        if setter is not None:
            setter(timeout)


def connect(prefix: str) -> Store:
    """A client of its own to this generation's store, so that waiting on it holds up nobody else."""
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=TIMEOUT,
    )
    return PrefixStore(prefix, store)


class StoreExchange:
    """`checkpoint.Exchange` over a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, key: str, value: bytes) -> None:
        self._store.set(key, value)  # type: ignore[arg-type]  # torch's stub says text, torch takes bytes

    def get(self, key: str, timeout: float) -> bytes:
        self._store.wait([key], timedelta(seconds=timeout))
        value: bytes = self._store.get(key)
        return value


def _chunks(data: Buffer) -> Iterator[torch.Tensor]:
    view = memoryview(data)
    if view.readonly:  # sent from, and never written to
        view = memoryview(bytearray(view))
    if view:
        yield from torch.split(torch.frombuffer(view, dtype=torch.uint8), _CHUNK)


class Peers:
    """Collectives over bytes and sums, on the device that the process group's backend works on."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self.waiting = False  # for the others, in `sum`
        on_cpu = "gloo" in dist.get_backend_config()
        self.device = torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())

    def gather(self, value: bytes) -> list[bytes]:
        """Each rank's `value`, by rank; all must be of one length."""
        mine = torch.frombuffer(bytearray(value), dtype=torch.uint8).to(self.device)
        all_of_them = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(all_of_them, mine)
        return [bytes(t.tolist()) for t in all_of_them]

    def gather_numbers(self, *numbers: int) -> list[list[int]]:
        """Each rank's `numbers`, by rank."""
        mine = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        all_of_them = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(all_of_them, mine)
        return [t.tolist() for t in all_of_them]

    def broadcast(self, data: bytearray | memoryview | None, owner: int) -> bytearray | memoryview:
        """`owner`'s bytes on every rank; only the owner gives any."""
        [size] = self.gather_numbers(len(data) if data is not None else 0)[owner]
        if data is None or self.rank != owner:
            data = bytearray(size)
        self.broadcast_into(memoryview(data), owner)
        return data

    def broadcast_into(self, data: memoryview, owner: int) -> None:
        """`owner`'s bytes into `data` of every other rank, which is as long as its."""
        for chunk in _chunks(data):
            moved = chunk.to(self.device)
            dist.broadcast(moved, owner)
            if self.rank != owner and moved is not chunk:
                chunk.copy_(moved)

    def send(self, data: Buffer, target: int) -> None:
        """To one rank, which calls `receive` with as many bytes."""
        for chunk in _chunks(data):
            dist.send(chunk.to(self.device), target)

    def receive(self, into: bytearray | memoryview, source: int) -> None:
        """What one rank sends."""
        for chunk in _chunks(into):
            moved = chunk if self.device.type == "cpu" else torch.empty_like(chunk, device=self.device)
            dist.recv(moved, source)
            if moved is not chunk:
                chunk.copy_(moved)

    def sum(self, tensor: torch.Tensor, interrupted: Callable[[], bool]) -> torch.Tensor:
        """The sum over ranks, in place. Raises Interrupted when `interrupted()` turns true while peers are waited for."""
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None
        self.waiting = True
        try:
            while not work.is_completed():
                if interrupted():
                    raise Interrupted
                time.sleep(0.0005)
        finally:
            self.waiting = False
        work.wait()  # raises what went wrong
        return tensor
