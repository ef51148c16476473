"""The working state of one `plan()`: what is seen, and the status that is to be written."""

from dataclasses import dataclass, field

from relight_operator.api.status import Condition, JobStatus, SlotStatus, SuccessorStatus, WorldStatus
from relight_operator.core.actions import EmitEvent
from relight_operator.core.observed import AgentOutcome, Observed, SlotView


@dataclass
class Draft:
    """`status` starts as a copy of `seen.status`, which stays what was acknowledged."""

    seen: Observed
    now: float  # unix seconds
    status: JobStatus
    events: list[EmitEvent] = field(default_factory=list)
    wakeups: list[float] = field(default_factory=list)  # seconds from now after which to look again

    def __post_init__(self) -> None:
        self._by_uid = {m.uid: m for m in self.seen.members}

    def member(self, slot: SlotStatus | SuccessorStatus) -> SlotView | None:
        """The member that holds `slot`, or is to; None where none is recorded, or where it is gone without a trace."""
        return self._by_uid.get(slot.uid) if slot.uid is not None else None

    def name(self, slot: int, incarnation: int) -> str:
        return f"{self.seen.name}-{slot}-{incarnation}"

    def slot(self, number: int) -> SlotStatus:
        return next(s for s in self.status.slots if s.slot == number)

    def in_world(self, uid: str | None) -> bool:
        world = self.status.world
        return world is not None and uid is not None and any(m.uid == uid for m in world.members)

    def world_members(self) -> list[SlotView]:
        """Every member of the present world of which anything is known, the lost ones too."""
        return [m for m in self.seen.members if self.in_world(m.uid)]

    def holders(self) -> list[SlotView]:
        """Those members of the present world that still hold their slots and live."""
        members = (self.member(s) for s in self.status.slots if self.in_world(s.uid))
        return [m for m in members if m is not None and m.alive]

    def event(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.events.append(EmitEvent(reason, message, warning))

    def condition(self, kind: str, value: str, reason: str, message: str) -> None:
        conditions = self.status.conditions
        old = next((c for c in conditions if c.type == kind), None)
        since = old.last_transition_time if old is not None and old.status == value else self.now
        new = Condition(type=kind, status=value, reason=reason, message=message, last_transition_time=since)
        self.status.conditions = [*(c for c in conditions if c.type != kind), new]


def outcome_in(member: SlotView | None, world: WorldStatus) -> AgentOutcome | None:
    """How `world` ended at `member`, as far as its agent has said."""
    outcome = member.agent.outcome if member is not None and member.agent is not None else None
    return outcome if outcome is not None and outcome.generation == world.generation else None
