"""Which machines answer, and when one that does not is taken for dead. Pure but for the table it keeps.

A machine is dead when it has not been ready *and* nothing was heard of its members' agents for `UNREACHABLE_SECONDS`;
and never while many machines went silent together: then it is the network, or us, that is broken.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNREACHABLE_SECONDS = 30.0
OUTAGE_WINDOW_SECONDS = 300.0
OUTAGE_MACHINES = 3

_SILENT_TAINTS = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")


@dataclass(frozen=True)
class Machine:
    unready_since: float | None = None  # unix seconds, None while it answers
    removed: bool = False


class Machines:
    """What is known of the cluster's nodes."""

    def __init__(self) -> None:
        self._known: dict[str, Machine] = {}

    def put(self, node: Mapping[str, Any], now: float) -> bool:
        """Take a node in; whether it changed between answering and not."""
        name = node["metadata"]["name"]
        known = self._known.get(name, Machine())
        if is_ready(node):
            self._known[name] = Machine()
            return known.unready_since is not None
        since = known.unready_since if known.unready_since is not None else now
        self._known[name] = Machine(since)
        return known.unready_since is None

    def remove(self, name: str, now: float) -> None:
        """The node object was deleted: its pods' end is the cluster's to declare, and ours after the usual wait."""
        known = self._known.get(name, Machine())
        since = known.unready_since if known.unready_since is not None else now
        self._known[name] = Machine(since, removed=True)

    def forget_removed(self, in_use: set[str]) -> None:
        """Drop deleted machines that no pod names any more."""
        self._known = {n: m for n, m in self._known.items() if not m.removed or n in in_use}

    def is_ready(self, name: str) -> bool:
        """Whether the machine answers, as far as is known."""
        return self._known.get(name, Machine()).unready_since is None

    def dead_at(self, name: str, heard_at: float | None, now: float) -> float | None:
        """The unix second from which a member on `name` may be taken for dead; None while its machine answers.

        `heard_at`: when its agent was last heard, None for never since this process leads.
        """
        since = self._known.get(name, Machine()).unready_since
        if since is None:
            return None
        at = max(since, heard_at if heard_at is not None else since) + UNREACHABLE_SECONDS
        return max(at, now + UNREACHABLE_SECONDS) if self._outage(now) else at

    def _outage(self, now: float) -> bool:
        silent = [
            m for m in self._known.values()
            if m.unready_since is not None and not m.removed and m.unready_since > now - OUTAGE_WINDOW_SECONDS
        ]  # fmt: skip
        there = [m for m in self._known.values() if not m.removed]
        return len(silent) >= OUTAGE_MACHINES and 2 * len(silent) > len(there)


def is_ready(node: Mapping[str, Any]) -> bool:
    """Whether the node's own conditions and taints say that it answers."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    ready = next((c.get("status") for c in conditions if c.get("type") == "Ready"), "Unknown")
    taints = (node.get("spec") or {}).get("taints") or ()
    return ready == "True" and not any(t.get("key") in _SILENT_TAINTS for t in taints)
