"""How the ranks of one generation agree on what each of them did."""

import json
from collections.abc import Callable
from typing import Any, Protocol

from relight_trainer.checkpoint import errors
from relight_trainer.checkpoint.errors import CheckpointError


class Exchange(Protocol):
    """A key-value store that all ranks reach."""

    def put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str, timeout: float) -> bytes:
        """The value put under `key`, waiting for it at most `timeout` seconds; raises after that."""
        ...


def all_or_none(
    exchange: Exchange, key: str, act: Callable[[], Any], *, rank: int, world: int, timeout: float
) -> list[Any]:
    """Run `act` on every rank and return what it gave on each (JSON values), once it has ended on all.

    Raises on every rank where it raised on any: there the error itself, elsewhere the first rank's as a
    `CheckpointError` of the same kind. `key` must be new. Errors of the exchange are passed on as they are.
    """
    own: Exception | None = None
    try:
        said: dict[str, Any] = {"value": act()}
    except Exception as error:
        own = error
        said = {"error": str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"}
        said["kind"] = type(error).__name__
    if rank == 0:
        everyone = [said, *(json.loads(exchange.get(f"{key}/{r}", timeout)) for r in range(1, world))]
        exchange.put(f"{key}/all", json.dumps(everyone).encode())
    else:
        exchange.put(f"{key}/{rank}", json.dumps(said).encode())
        everyone = json.loads(exchange.get(f"{key}/all", timeout))
    if own is not None:
        raise own
    for r, said in enumerate(everyone):
        if "error" in said:
            raise _kind(said["kind"])(f"rank {r}: {said['error']}")
    return [said["value"] for said in everyone]


def _kind(name: str) -> type[CheckpointError]:
    kind = getattr(errors, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, CheckpointError) else CheckpointError
