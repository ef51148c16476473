"""The rendezvous for torch's elastic agent: the coordinator has decided everything, so there is nothing to negotiate."""

import multiprocessing

from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

from relight_trainer.store import wait_for_store

BACKEND = "relight"
STORE_TIMEOUT_SECONDS = 30.0


class WorkersEnded(Exception):
    """All local workers have ended: the elastic agent has nothing left to do."""


class DecidedRendezvous(RendezvousHandler):
    """Node rank, world size and master as given; waits only for the master's store."""

    def __init__(self, *, run_id: str, address: str, port: int, node_rank: int, nodes: int) -> None:
        self._run_id = run_id
        self._address = address
        self._port = port
        self._node_rank = node_rank
        self._nodes = nodes

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Raises TimeoutError or store.WrongStore."""
        wait_for_store(self._address, self._port, self._run_id, timeout=STORE_TIMEOUT_SECONDS)
        # The elastic agent would use its store for ranks (TORCH_ELASTIC_WORKER_IDENTICAL spares it that) and for its
        # exit barrier (never reached). One that is local leaves no connection for the forked workers to inherit.
        return RendezvousInfo(HashStore(), self._node_rank, self._nodes, RendezvousStoreInfo(self._address, self._port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        """Asked at every turn of the elastic agent's loop; raises WorkersEnded after the last worker's end.

        Workers end by os._exit. Left alone, the elastic agent would wait for their return values, and then up to 300 s
        at its exit barrier for peers that may be dead.
        """
        if not multiprocessing.active_children():
            raise WorkersEnded
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


def _handler(parameters: RendezvousParameters) -> DecidedRendezvous:
    address, _, port = parameters.endpoint.rpartition(":")
    return DecidedRendezvous(
        run_id=parameters.run_id,
        address=address.strip("[]"),
        port=int(port),
        node_rank=int(parameters.config["node_rank"]),
        nodes=parameters.max_nodes,
    )


def register() -> None:
    """Make `rdzv_backend="relight"` known to torch, once or more often."""
    if BACKEND not in rendezvous_handler_registry._registry:  # noqa: SLF001  # it has no public question for this
        rendezvous_handler_registry.register(BACKEND, _handler)
