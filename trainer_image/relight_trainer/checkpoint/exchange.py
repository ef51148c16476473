from typing import Protocol


class Exchange(Protocol):
    """How the ranks of one generation tell each other something, e.g. a key-value store they all reach."""

    def put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str, timeout: float) -> bytes:
        """The value put under `key`, waiting for it at most `timeout` seconds; raises after that."""
        ...
