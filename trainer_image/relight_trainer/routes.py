"""Plans which rank sends a state to which other rank."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

Route = tuple[int, int]  # from rank, to rank


def routes(holds: Sequence[bool], local_world: int) -> list[list[Route]]:
    """Rounds of routes after which every rank holds the state, given which ranks hold it now.

    Within a round each rank sends to one other at most, or receives; whoever has received sends in the next round. Each
    machine (`local_world` ranks that follow each other) is sent the state once; the rest is done within it.

    >>> routes([True, False, False, False], 1)
    [[(0, 1)], [(0, 2), (1, 3)]]
    >>> routes([True, True, False, False], 2)
    [[(0, 2)], [(2, 3)]]
    """
    machines = [range(at, at + local_world) for at in range(0, len(holds), local_world)]
    without = [machine for machine in machines if not any(holds[rank] for rank in machine)]
    # One sender of each machine before a second one of any: machines do not share a link.
    holders = sorted((rank for rank, held in enumerate(holds) if held), key=lambda rank: (rank % local_world, rank))
    between = _doubling(holders, [machine[0] for machine in without])
    received = {machine[0] for machine in without}
    within = [
        _doubling(
            [rank for rank in machine if holds[rank] or rank in received],
            [rank for rank in machine if not holds[rank] and rank not in received],
        )
        for machine in machines
    ]
    return between + [[route for now in at_once for route in now] for at_once in zip_longest(*within, fillvalue=())]


def _doubling(holders: Iterable[int], lacking: Sequence[int]) -> list[list[Route]]:
    have, left = [*holders], [*lacking]
    rounds = []
    while left:
        now = list(zip(have, left, strict=False))
        rounds.append(now)
        have += [to for _, to in now]
        left = left[len(now) :]
    return rounds
