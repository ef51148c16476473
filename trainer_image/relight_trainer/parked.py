"""Workers that are there before their generation, with everything but a rank.

A fork inherits what the launcher has imported, but no CUDA context. So a member that waits for an order, a spare above all,
has its workers parked: forked, the job's libraries imported, the device's context open. Once the order is there, torch's
elastic agent takes them where it would have forked its own.

Code of the user's own is not run ahead: it may begin something that others see, or ask for its rank.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, NamedTuple, NoReturn

import torch
from torch.distributed.elastic.agent.server import local_elastic_agent
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext
from torch.multiprocessing.spawn import ProcessContext

from relight_agent.files import JobFile
from relight_trainer import generation, hygiene, learned_imports, worker

ASK_SECONDS = 10.0  # between two looks for what other members have learned of the job's imports


class Place(NamedTuple):
    """A parked worker, and the way to it."""

    process: ForkProcess
    pipe: "Connection[Any, Any]"

    def tell(self, **message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # its end is seen by its sentinel
            self.pipe.send_bytes(json.dumps(message).encode())


def host(orders: "Connection[Any, Any]", workers: int) -> int:
    """In a child of the launcher: park `workers` workers, and run the generation that `orders` will tell of.

    Returns what `generation.run` does. Where a worker has ended before, the generation forks its own.
    """
    os.setsid()
    places = [_park(i) for i in range(workers)]
    message = _wait_for_order(orders, places)
    if len(places) == workers:

        def start_processes(**options: Any) -> MultiprocessContext:
            context = _Taken(places, **options)
            context.start()
            return context

        # The elastic agent has no other way to be given workers.
        local_elastic_agent.start_processes = start_processes  # type: ignore[attr-defined,assignment]
    return generation.run(generation.Order.from_message(json.loads(message)), start_method="fork")


def _park(local_rank: int) -> Place:
    context = multiprocessing.get_context("fork")
    theirs, ours = context.Pipe(duplex=False)
    process = context.Process(target=_be_parked, args=(local_rank, theirs, os.getpid()))
    process.start()
    theirs.close()
    return Place(process, ours)


def _wait_for_order(orders: "Connection[Any, Any]", places: list[Place]) -> bytes:
    """The order. Meanwhile the workers hear what others import; `places` is empty in the end if one of them is gone."""
    folder = learned_imports.checkpoint_folder()
    inquiry: learned_imports.Inquiry | None = None
    told: set[str] = set()
    ask_at = time.monotonic()
    while not orders.poll():
        if folder and places and inquiry is None and time.monotonic() >= ask_at:
            inquiry = learned_imports.Inquiry(folder)
            ask_at = time.monotonic() + ASK_SECONDS
        ends = [place.process.sentinel for place in places]
        asked = [inquiry.fileno()] if inquiry is not None else []
        idle = ask_at - time.monotonic() if folder and places and inquiry is None else None
        ready = wait([orders, *ends, *asked], timeout=max(0.0, idle) if idle is not None else None)
        if inquiry is not None and asked[0] in ready and inquiry.is_over():
            new = [name for name in inquiry.names() if name not in told]
            inquiry = None
            told.update(new)
            for place in places if new else []:
                place.tell(imports=new)
        if any(end in ready for end in ends):
            _end(places)
    if inquiry is not None:
        inquiry.give_up()
    return orders.recv_bytes()


def _end(places: list[Place]) -> None:
    for place in places:
        place.process.kill()
        place.process.join()
        place.pipe.close()
    places.clear()


class _Taken(MultiprocessContext):
    """What torch's elastic agent holds its workers by, where they are there already."""

    def __init__(self, places: list[Place], **options: Any) -> None:
        super().__init__(**options)
        self._places = places

    def _start(self) -> None:
        for i, place in enumerate(self._places):
            place.tell(environment={**os.environ, **self.envs[i]})
        # No file tells of an exception: a worker says in its outcome how it ended.
        self._pc = ProcessContext(  # type: ignore[no-untyped-call]
            [place.process for place in self._places], [""] * len(self._places)
        )


def _be_parked(local_rank: int, pipe: "Connection[Any, Any]", parent: int) -> NoReturn:
    worker.begin(parent)
    environment = _get_ready(local_rank, pipe)
    os.environ.clear()
    os.environ.update(environment)
    worker.serve()


def _get_ready(local_rank: int, pipe: "Connection[Any, Any]") -> dict[str, str]:
    """The environment of a generation, once it is told. What is not done by then is left to who needs it."""
    names: list[str] = []
    device_open = False
    while True:
        message = json.loads(pipe.recv_bytes()) if pipe.poll(None if device_open and not names else 0.0) else {}
        if "environment" in message:
            environment: dict[str, str] = message["environment"]
            return environment
        names += message.get("imports", [])
        if not device_open:
            open_device(local_rank)
            device_open = True
        elif names:
            _import(names.pop(0))


def _import(name: str) -> None:
    with hygiene.forkable():  # one thread for each library, until the worker says how many
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # it is told by who cannot do without
            print(f"relight: {name} not imported ahead: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def open_device(local_rank: int) -> None:
    """Open the CUDA context of this worker's device, where the job has GPUs: half a second and more.

    Nothing else is set up there: libraries such as cuBLAS read their settings when they are used first.
    """
    if not JobFile.load(os.environ["RELIGHT_JOB_FILE"]).gpus or local_rank >= torch.cuda.device_count():
        return
    torch.cuda.set_device(local_rank)
    torch.empty(1, device=torch.device("cuda", local_rank))
    torch.cuda.synchronize()
