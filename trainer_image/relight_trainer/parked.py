"""Workers that are there before their generation, with everything but a rank.

A fork inherits what the launcher has imported, but no CUDA context. So a member that waits for an order, a spare above all,
has its workers parked: forked, the context of the core's device open, imported what the job's other members have come to
need. Once the order is there, torch's elastic agent takes them where it would have forked its own.

Nothing of the user's own is run ahead, and for a script no device is opened: it may choose its devices itself, begin what
others see, or ask for its rank.
"""

import contextlib
import fcntl
import importlib
import json
import multiprocessing
import os
import sys
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, NamedTuple, NoReturn

import torch
from torch.distributed.elastic.agent.server import local_elastic_agent
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext, PContext
from torch.multiprocessing.spawn import ProcessContext

from relight_agent.files import GenerationFolder, JobFile
from relight_trainer import generation, hygiene, worker

_END_SECONDS = 5.0  # for a killed worker to be gone; one that a driver holds may never be
_PIPE_BYTES = 1 << 20  # a long list of imports fits in without a reader


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
    places: list[Place] = []
    for i in range(workers):
        places.append(_park(i, [orders, *(place.pipe for place in places)]))
    order = generation.Order.from_message(_wait_for_order(orders, places))
    if places:
        _offer(places)
    return generation.run(order, start_method="fork")


def _park(local_rank: int, not_its: "list[Connection[Any, Any]]") -> Place:
    context = multiprocessing.get_context("fork")
    theirs, ours = context.Pipe(duplex=False)
    with contextlib.suppress(OSError):  # beyond what this user may have
        fcntl.fcntl(ours.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    process = context.Process(target=_be_parked, args=(local_rank, theirs, [*not_its, ours], os.getpid()))
    process.start()
    theirs.close()
    return Place(process, ours)


def _wait_for_order(orders: "Connection[Any, Any]", places: list[Place]) -> Any:
    """The order. Until it comes, workers are told what to import; if one of them ends, the others go too."""
    while True:
        ends = [place.process.sentinel for place in places]
        ready = wait([orders, *ends])
        if any(end in ready for end in ends):
            _end(places)
        if orders in ready:
            message = json.loads(orders.recv_bytes())
            if "imports" not in message:
                return message
            for place in places:
                place.tell(imports=message["imports"])


def _end(places: list[Place]) -> None:
    for place in places:
        place.process.kill()
    for place in places:
        place.process.join(_END_SECONDS)
        place.pipe.close()
    places.clear()


def _offer(places: list[Place]) -> None:
    """Have torch's elastic agent in this process take these workers: it has no other way to be given any."""
    fork = local_elastic_agent.start_processes  # type: ignore[attr-defined]

    def start_processes(**options: Any) -> PContext:
        if not all(place.process.is_alive() for place in places):
            _end(places)
            forked: PContext = fork(**options)
            return forked
        taken = _Taken(places, **options)
        taken.start()
        return taken

    local_elastic_agent.start_processes = start_processes  # type: ignore[attr-defined,assignment]


class _Taken(MultiprocessContext):
    """What torch's elastic agent holds its workers by, where they are there already."""

    def __init__(self, places: list[Place], **options: Any) -> None:
        super().__init__(**options)
        self._places = places

    def _start(self) -> None:
        folder = GenerationFolder(os.environ["RELIGHT_GENERATION_DIR"])
        for i, place in enumerate(self._places):
            # Told here: the worker may be in an import that never ends, or ends it.
            folder.write_pid(i, place.process.pid)
            place.tell(environment={**os.environ, **self.envs[i]})
        # No file tells of an exception: a worker says in its outcome how it ended.
        self._pc = ProcessContext(  # type: ignore[no-untyped-call]
            [place.process for place in self._places], [""] * len(self._places)
        )


def _be_parked(
    local_rank: int, pipe: "Connection[Any, Any]", not_ours: "list[Connection[Any, Any]]", parent: int
) -> NoReturn:
    for connection in not_ours:
        connection.close()
    worker.begin(parent)
    before = dict(os.environ)
    told = _get_ready(local_rank, pipe)
    # What the imports have set stays, as it would if they had come later.
    for name in before.keys() - told.keys():
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in told.items() if before.get(name) != value})
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
            device_open = True
            try:
                open_device(local_rank)
            except Exception:
                # Where a generation has begun meanwhile, its worker meets this again, and knows what to make of it.
                if not pipe.poll():
                    raise
        elif names:
            _import(names.pop(0))


def _import(name: str) -> None:
    with hygiene.forkable():  # one thread for each library, until the worker says how many
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # it is told by who cannot do without
            print(f"relight: {name} not imported ahead: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def open_device(local_rank: int) -> None:
    """Open the CUDA context of this worker's device, where the core trains and the job has GPUs: half a second and more.

    Nothing else is set up there, nor is the device made the current one: libraries such as cuBLAS read their settings when
    they are used first.
    """
    job = JobFile.load(os.environ["RELIGHT_JOB_FILE"])
    if job.entry["kind"] != "config" or not job.gpus or local_rank >= torch.cuda.device_count():
        return
    torch.empty(1, device=torch.device("cuda", local_rank))
    torch.cuda.synchronize(local_rank)
