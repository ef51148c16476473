"""Who is connected, who may connect, and who has to go for it. Decisions only: sockets are the endpoint's.

A connection without a valid token is a *stranger*. Strangers have a bound of their own, as have those of one address,
and make room for each other; nobody who has shown a valid token ever makes room for a stranger.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from relight_operator.coordinator.limits import Limits, Reason
from relight_operator.coordinator.rates import Rate, Rates


@dataclass(eq=False)
class Connection:
    """`close` ends it, at once."""

    peer: str  # address
    close: Callable[[], None]
    overdue_at: float  # the instant at which it is closed, unless something happens on it
    pod: str = ""  # uid of the pod whose token has been shown; "" for a stranger
    room: int = 0  # bytes that may come in before the next request is complete
    open: bool = True


@dataclass
class Connections:
    """Belongs to one event loop. `clock` is monotonic, in seconds. `refused` is told of each refusal."""

    limits: Limits
    clock: Callable[[], float]
    refused: Callable[[Reason], None] = lambda _: None
    _strangers: dict[str, dict[Connection, None]] = field(default_factory=dict)  # by address, the oldest first
    _pods: dict[str, dict[Connection, None]] = field(default_factory=dict)  # by uid, the oldest first
    _stranger_count: int = 0
    _known_count: int = 0

    def __post_init__(self) -> None:
        limits = self.limits
        self._opened = Rates(Rate(limits.opened_at_once, limits.opened_per_second), limits.peers)
        self._reports = Rates(Rate(limits.reports_at_once, limits.reports_per_second), limits.peers)

    @property
    def strangers(self) -> int:
        return self._stranger_count

    @property
    def known(self) -> int:
        """Connections on which a valid token has been shown."""
        return self._known_count

    def __iter__(self) -> Iterator[Connection]:
        for some in (*self._strangers.values(), *self._pods.values()):
            yield from some

    # -- coming and going

    def admit(self, peer: str, close: Callable[[], None]) -> Connection | None:
        """A new connection of `peer`; None where there is no room for it. Others may be closed to make room."""
        limits, now = self.limits, self.clock()
        if not self._opened.take(peer, now):
            self.refused(Reason.PEER_RATE)
            return None
        if len(self._strangers.get(peer, ())) >= limits.strangers_of_one_peer:
            self._expel(self._oldest_stranger(peer), Reason.PEER_CONNECTIONS)
        full = self._stranger_count >= limits.strangers
        if full or self._stranger_count + self._known_count >= limits.connections:
            reason = Reason.STRANGERS if full else Reason.CONNECTIONS
            heaviest = max(self._strangers, key=lambda p: len(self._strangers[p]), default=peer)
            # Where each has one, the first who came is the nearest to showing its token.
            if len(self._strangers.get(heaviest, ())) <= 1:
                self.refused(reason)
                return None
            self._expel(self._oldest_stranger(heaviest), reason)
        connection = Connection(peer, close, now + limits.show_token, room=limits.request_bytes)
        self._strangers.setdefault(peer, {})[connection] = None
        self._stranger_count += 1
        return connection

    def remove(self, connection: Connection) -> None:
        """It has been closed, by whomever."""
        if connection.open:
            connection.open = False
            self._take_out(connection)

    def _take_out(self, connection: Connection) -> None:
        table, key = (self._pods, connection.pod) if connection.pod else (self._strangers, connection.peer)
        some = table[key]
        del some[connection]
        if not some:
            del table[key]
        if connection.pod:
            self._known_count -= 1
        else:
            self._stranger_count -= 1

    def identify(self, connection: Connection, pod: str) -> None:
        """A valid token of the pod with this uid has been shown on it. The pod's oldest connections make room."""
        if connection.pod == pod or not connection.open:
            return
        if len(own := self._pods.get(pod, {})) >= self.limits.connections_of_one_pod:
            self._expel(next(iter(own)), Reason.POD_CONNECTIONS)
        self._take_out(connection)
        connection.pod = pod
        self._pods.setdefault(pod, {})[connection] = None
        self._known_count += 1

    def _oldest_stranger(self, peer: str) -> Connection:
        return next(iter(self._strangers[peer]))

    def _expel(self, connection: Connection, reason: Reason) -> None:
        self.remove(connection)
        self.refused(reason)
        connection.close()

    # -- what happens on them

    def received(self, connection: Connection, size: int) -> None:
        """`size` bytes have come in. Closes a connection whose request has no end."""
        connection.room -= size
        if connection.room < 0:
            self._expel(connection, Reason.TOO_LARGE)

    def began(self, connection: Connection) -> None:
        """The head of a request is there, and its body is to be read. A stranger gets no more time for that."""
        if connection.pod:
            connection.overdue_at = self.clock() + self.limits.body

    def holds(self, connection: Connection) -> None:
        """A request is held until there is something to answer."""
        connection.overdue_at = math.inf

    def ended(self, connection: Connection) -> None:
        """A request has been answered, or a message of a stream taken: the next one may come."""
        connection.room = self.limits.request_bytes
        if connection.pod:
            connection.overdue_at = self.clock() + self.limits.idle

    def close_overdue(self) -> None:
        now = self.clock()
        for connection in [c for c in self if c.overdue_at <= now]:
            self._expel(connection, Reason.IDLE if connection.pod else Reason.NO_TOKEN)

    def close_all(self) -> None:
        for connection in list(self):
            self.remove(connection)
            connection.close()

    def delay(self, pod: str) -> float:
        """The seconds for which a report of this pod has to wait, so that no pod takes all of the loop's time."""
        seconds = self._reports.delay(pod, self.clock())
        if seconds > 0:
            self.refused(Reason.POD_RATE)
        return seconds
