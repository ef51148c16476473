"""A cache whose entries may be large: it drops those that have not been asked for longest."""

from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


class WeightedCache(Generic[V]):
    """`limit` bounds the sum of the entries' weights. Belongs to one thread.

    The newest entry is kept whatever it weighs: a caller that puts an entry in may count on it until the next `put`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[str, tuple[V, int]] = OrderedDict()
        self.weight = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> V | None:
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: str, value: V, weight: int) -> None:
        self.pop(key)
        self._entries[key] = value, weight
        self.weight += weight
        while self.weight > self._limit and len(self._entries) > 1:
            _, (_, lost) = self._entries.popitem(last=False)
            self.weight -= lost

    def pop(self, key: str) -> V | None:
        found = self._entries.pop(key, None)
        if found is None:
            return None
        self.weight -= found[1]
        return found[0]
