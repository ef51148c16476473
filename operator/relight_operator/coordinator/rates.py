"""Token buckets by key: how often somebody may do something. Pure but for the table that they keep."""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """`burst` at once, and `per_second` after that."""

    burst: float
    per_second: float


class Rates:
    """The buckets of at most `keys` keys: the key that was used longest ago is forgotten, which fills its bucket."""

    def __init__(self, rate: Rate, keys: int) -> None:
        self._rate = rate
        self._keys = keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and at which instant

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now: float) -> bool:
        """Use one of the key's; False where none is left, and nothing is used then."""
        left = self._left(key, now)
        taken = left >= 1.0
        self._keep(key, left - 1.0 if taken else left, now)
        return taken

    def delay(self, key: str, now: float) -> float:
        """Use one of the key's in any case; the seconds for which its user has to wait for it."""
        left = self._left(key, now) - 1.0
        self._keep(key, left, now)
        return max(0.0, -left / self._rate.per_second)

    def _left(self, key: str, now: float) -> float:
        left, at = self._buckets.get(key, (self._rate.burst, now))
        return min(self._rate.burst, left + (now - at) * self._rate.per_second)

    def _keep(self, key: str, left: float, now: float) -> None:
        self._buckets[key] = left, now
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
