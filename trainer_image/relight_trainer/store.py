"""The process group's key-value store: on the master, in a process of its own that outlives the workers."""

import contextlib
import signal
import socket
import time
from datetime import timedelta
from typing import NoReturn

from torch.distributed import TCPStore  # type: ignore[attr-defined]

RUN_ID_KEY = "relight/run_id"
_RETRY_SECONDS = 0.01


class WrongStore(Exception):
    """Something listens at the master's address, but it is not this generation's store."""


def listen(address: str, port: int) -> socket.socket:
    """A listening socket at exactly this address (the store knows no passwords). Raises OSError where it is taken."""
    family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((address, port), family=family, backlog=1024)


def serve(listener: socket.socket, run_id: str) -> NoReturn:
    """Be the store of `run_id` until killed."""
    address, port = listener.getsockname()[:2]
    store = TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=30),
        master_listen_fd=listener.detach(),
    )
    store.set(RUN_ID_KEY, run_id)
    while True:
        signal.pause()


def wait_for_store(address: str, port: int, run_id: str, *, timeout: float) -> None:
    """Return once the store of `run_id` answers at this address; nothing stays open.

    Raises TimeoutError after `timeout` seconds, WrongStore where another run's store answers.
    """
    deadline = time.monotonic() + timeout
    _wait_for_listener(address, port, deadline)
    left = timedelta(seconds=max(1.0, deadline - time.monotonic()))
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=left)
    found = store.get(RUN_ID_KEY).decode("utf-8", "replace")
    if found != run_id:
        raise WrongStore(f"the store at {address}:{port} belongs to run {found!r}, not to {run_id!r}")


def _wait_for_listener(address: str, port: int, deadline: float) -> None:
    """Poll for it: torch's own client would sleep half a second after the first refusal."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no store at {address}:{port}")
        with contextlib.suppress(OSError):
            socket.create_connection((address, port), timeout=left).close()
            return
        time.sleep(_RETRY_SECONDS)
