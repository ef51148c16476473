"""Which machines answer, and when one that does not is taken for dead. Pure but for the table it keeps.

A machine is dead when it has not been ready *and* nothing was heard of its members' agents for the job's
`disruption.deadMachine.unreachableFor`; and never while many machines went silent together: then it is the network, or
us, that is broken. A machine is leaving while it carries a taint that announces its end.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

OUTAGE_WINDOW_SECONDS = 300.0
OUTAGE_MACHINES = 3

_SILENT_TAINTS = ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")
# What clouds and autoscalers put on a machine before they end it; a final * stands for anything.
LEAVING_TAINTS = (
    "aws-node-termination-handler/*",
    "cloud.google.com/impending-node-termination",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
    "node.cloudprovider.kubernetes.io/shutdown",
    "node.kubernetes.io/out-of-service",
    "ToBeDeletedByClusterAutoscaler",
)


@dataclass(frozen=True)
class Machine:
    unready_since: float | None = None  # unix seconds, None while it answers
    removed: bool = False
    taints: frozenset[str] = frozenset()  # keys


class Machines:
    """What is known of the cluster's nodes."""

    def __init__(self) -> None:
        self._known: dict[str, Machine] = {}

    def put(self, node: Mapping[str, Any], now: float) -> bool:
        """Take a node in; whether it changed between answering and not, or in its taints."""
        name = node["metadata"]["name"]
        known = self._known.get(name, Machine())
        since = known.unready_since if known.unready_since is not None else now
        new = Machine(None if is_ready(node) else since, taints=_taints(node))
        self._known[name] = new
        return (known.unready_since is None, known.taints) != (new.unready_since is None, new.taints)

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

    def is_leaving(self, name: str, watched: Iterable[str]) -> bool:
        """Whether a taint announces the machine's end: one of `LEAVING_TAINTS`, or of `watched`, written like them."""
        return announces_end(self._known.get(name, Machine()).taints, watched)

    def dead_at(self, name: str, heard_at: float | None, now: float, unreachable: float) -> float | None:
        """The unix second from which a member on `name` may be taken for dead; None while its machine answers.

        `heard_at`: when its agent was last heard, None for never since this process leads. `unreachable`: the seconds
        for which nothing must have been heard.
        """
        since = self._known.get(name, Machine()).unready_since
        if since is None:
            return None
        at = max(since, heard_at if heard_at is not None else since) + unreachable
        return max(at, now + unreachable) if self._outage(now) else at

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
    return ready == "True" and _taints(node).isdisjoint(_SILENT_TAINTS)


def announces_end(taints: Iterable[str], watched: Iterable[str]) -> bool:
    """Whether one of these keys announces the end of the machine that carries it.

    >>> announces_end({"aws-node-termination-handler/spot-itn"}, ())
    True
    """
    patterns = (*LEAVING_TAINTS, *watched)
    exact = {p for p in patterns if not p.endswith("*")}
    starts = tuple(p[:-1] for p in patterns if p.endswith("*"))
    return any(key in exact or key.startswith(starts) for key in taints)


def _taints(node: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(str(t.get("key")) for t in (node.get("spec") or {}).get("taints") or ())
