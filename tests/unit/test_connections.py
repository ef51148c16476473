"""Which connections to the coordinator may be opened, and which have to go for it: decisions, without sockets."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from relight_operator.coordinator.connections import Connection, Connections
from relight_operator.coordinator.limits import Limits, Reason
from relight_operator.coordinator.rates import Rate, Rates

SMALL = Limits(
    connections=10, strangers=6, strangers_of_one_peer=3, connections_of_one_pod=2, show_token=10.0, body=5.0, idle=60.0,
    head_bytes=100, body_bytes=400, opened_at_once=1000, reports_at_once=3, reports_per_second=2.0,
)  # fmt: skip


@dataclass
class World:
    limits: Limits = SMALL
    now: float = 0.0
    said: list[Reason] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.it = Connections(self.limits, lambda: self.now, self.said.append)

    def admit(self, peer: str, name: str = "") -> Connection | None:
        return self.it.admit(peer, lambda: self.closed.append(name or peer))

    def known(self, pod: str, name: str = "") -> Connection:
        connection = self.admit(f"of {pod}", name or pod)
        assert connection is not None
        self.it.identify(connection, pod)
        return connection


def test_an_address_with_too_many_strangers_makes_room_for_its_own() -> None:
    w = World()
    for i in range(5):
        assert w.admit("a", f"a{i}") is not None
    assert w.closed == ["a0", "a1"]
    assert w.said == [Reason.PEER_CONNECTIONS] * 2
    assert w.it.strangers == 3


def test_where_there_are_too_many_strangers_the_address_with_most_of_them_makes_room() -> None:
    w = World()
    for i, peer in enumerate("aaabbc"):
        w.admit(peer, f"{peer}{i}")
    assert w.admit("d") is not None
    assert (w.closed, w.said) == (["a0"], [Reason.STRANGERS])


def test_where_each_stranger_has_an_address_of_its_own_the_first_who_came_stay() -> None:
    w = World()
    for peer in "abcdef":
        w.admit(peer)
    assert w.admit("g") is None
    assert (w.closed, w.said) == ([], [Reason.STRANGERS])


def test_strangers_never_displace_whoever_has_shown_a_valid_token() -> None:
    w = World()
    members = [w.known(f"pod {i}") for i in range(8)]
    for i in range(50):
        w.admit(f"{i % 7}", "stranger")
    assert all(m.open for m in members)
    assert set(w.closed) <= {"stranger"}
    assert w.it.known == 8
    assert w.it.strangers + w.it.known <= SMALL.connections


def test_a_member_gets_in_while_strangers_fill_everything() -> None:
    w = World()
    for i in range(50):
        w.admit(f"{i % 2}", "stranger")
    member = w.known("pod")
    assert member.open
    assert "pod" not in w.closed


def test_where_only_members_are_connected_nobody_else_is_let_in() -> None:
    w = World()
    for i in range(10):
        w.known(f"pod {i}")
    assert w.admit("x") is None
    assert (w.closed, w.said) == ([], [Reason.CONNECTIONS])


def test_a_pods_newest_connections_stay() -> None:
    w = World()
    for i in range(4):
        w.known("pod", f"pod{i}")
    assert w.closed == ["pod0", "pod1"]
    assert w.it.known == 2


def test_a_connection_that_was_closed_while_its_token_was_checked_is_not_counted() -> None:
    w = World()
    connection = w.admit("a")
    assert connection is not None
    w.it.remove(connection)
    w.it.identify(connection, "pod")
    w.it.remove(connection)
    assert (w.it.known, w.it.strangers, list(w.it)) == (0, 0, [])


def test_who_shows_no_valid_token_in_time_is_closed_whatever_it_sends() -> None:
    w = World()
    connection = w.admit("a")
    assert connection is not None
    w.now = 9.9
    w.it.close_overdue()
    assert connection.open
    w.it.began(connection)
    w.it.ended(connection)
    w.now = 10.0
    w.it.close_overdue()
    assert (w.closed, w.said) == (["a"], [Reason.NO_TOKEN])


def test_a_member_is_closed_when_it_is_silent_or_sends_half_a_body_and_never_while_it_waits() -> None:
    w = World()
    silent, half, waiting = (w.known(name) for name in ("silent", "half", "waiting"))
    for connection in (silent, half, waiting):
        w.it.ended(connection)
    w.it.began(half)
    w.it.began(waiting)
    w.it.holds(waiting)
    w.now = 5.0
    w.it.close_overdue()
    assert w.closed == ["half"]
    w.now = 60.0
    w.it.close_overdue()
    assert w.closed == ["half", "silent"]
    assert w.said == [Reason.IDLE] * 2
    w.now = 1e6
    w.it.close_overdue()
    assert waiting.open


def test_a_request_without_an_end_is_closed_and_a_long_life_is_not() -> None:
    w = World()
    member = w.known("pod")
    for _ in range(10):
        w.it.received(member, 500)
        assert member.open
        w.it.ended(member)
    w.it.received(member, 400)
    w.it.received(member, 101)
    assert (w.closed, w.said) == (["pod"], [Reason.TOO_LARGE])


def test_an_address_that_connects_too_often_waits_and_others_do_not() -> None:
    w = World(Limits(opened_at_once=3, opened_per_second=2.0))
    assert [w.admit("a") is not None for _ in range(5)] == [True] * 3 + [False] * 2
    assert w.admit("b") is not None
    assert w.said == [Reason.PEER_RATE] * 2
    w.now = 0.5
    assert [w.admit("a") is not None for _ in range(2)] == [True, False]


def test_a_pod_that_says_too_much_waits_longer_and_longer() -> None:
    w = World()
    assert [w.it.delay("pod") for _ in range(6)] == [0.0, 0.0, 0.0, 0.5, 1.0, 1.5]
    assert w.it.delay("another") == 0.0
    assert w.said == [Reason.POD_RATE] * 3
    w.now = 2.0
    assert w.it.delay("pod") == 0.0


def test_rates_of_a_bounded_number_of_keys_are_kept() -> None:
    rates = Rates(Rate(burst=1, per_second=1.0), keys=2)
    assert [rates.take(key, 0.0) for key in "aabc"] == [True, False, True, True]
    assert len(rates) == 2
    assert not rates.take("c", 0.0)
    assert rates.take("a", 0.0), "it was forgotten"


# (what, which): `which` names an address, a pod, or a connection that was opened earlier.
_steps = st.lists(st.tuples(st.sampled_from(["admit", "identify", "remove", "pass"]), st.integers(0, 30)), max_size=200)


@given(_steps)
def test_the_bounds_hold_after_any_sequence_of_events(steps: list[tuple[str, int]]) -> None:
    w = World()
    opened: list[Connection] = []
    for what, which in steps:
        before = {c for c in opened if c.open and c.pod}
        match what:
            case "admit":
                connection = w.admit(f"peer {which % 5}")
                if connection is not None:
                    opened.append(connection)
                assert before == {c for c in opened if c.open and c.pod}, "no member makes room for a stranger"
            case "identify" if opened:
                w.it.identify(opened[which % len(opened)], f"pod {which % 4}")
            case "remove" if opened:
                w.it.remove(opened[which % len(opened)])
            case "pass":
                w.now += which
                w.it.close_overdue()
        there = list(w.it)
        assert sorted(map(id, there)) == sorted(id(c) for c in opened if c.open)
        assert w.it.known == sum(1 for c in there if c.pod)
        assert w.it.strangers == sum(1 for c in there if not c.pod) <= SMALL.strangers
        assert len(there) <= SMALL.connections
        for some in ([c.peer for c in there if not c.pod], [c.pod for c in there if c.pod]):
            assert max((some.count(s) for s in some), default=0) <= 3
