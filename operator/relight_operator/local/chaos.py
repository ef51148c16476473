"""`--chaos`: faults that the workers trigger themselves, at an exact step."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from relight_operator.api.durations import seconds
from relight_operator.errors import InvalidUsage

_FORM = re.compile(
    r"(?P<action>preempt|kill|lose|announce|withdraw)-node:(?P<slot>\d{1,4})@step:(?P<step>\d{1,15})"
    r"(?:,for:(?P<seconds>[0-9hms]{1,20}))?"
)
EXAMPLES = (
    "preempt-node:1@step:40 (SIGTERM, with the grace period), kill-node:0@step:80 (SIGKILL of everything at once), "
    "announce-node:1@step:40 (its machine is to go), withdraw-node:1@step:60 (it stays after all), "
    "lose-node:1@step:40 (killed, and no machine for another member of that slot), lose-node:1@step:40,for:30s (for so long)"
)
FOR_EVER = float("inf")


@dataclass(frozen=True)
class Fault:
    """Fired once in a job's life, when the slot's worker has done `step` optimizer steps."""

    id: str
    action: str
    slot: int
    step: int
    text: str = ""
    away: float = 0.0  # seconds for which there is no machine for the slot's next member

    def __str__(self) -> str:
        return self.text

    def dump(self) -> dict[str, object]:
        """What the workers are given: to them a node that is lost is one that is killed."""
        action = "kill" if self.action == "lose" else self.action
        return {"id": self.id, "action": action, "slot": self.slot, "step": self.step}

    def fired_at(self, chaos_file: Path) -> float | None:
        """The unix second at which it happened, None where it has not."""
        try:
            return Path(f"{chaos_file}.{self.id}.fired").stat().st_mtime
        except FileNotFoundError:
            return None


def unfired(faults: Iterable[Fault], chaos_file: Path) -> list[Fault]:
    """Those that have not happened in the job's life: no worker that counts its steps got there."""
    return [f for f in faults if f.fired_at(chaos_file) is None]


def away_until(faults: Iterable[Fault], chaos_file: Path, slot: int) -> float:
    """The unix second until which there is no machine for the next member of `slot`; 0 for now."""
    fired = ((f, f.fired_at(chaos_file)) for f in faults if f.slot == slot and f.action == "lose")
    return max((at + f.away for f, at in fired if at is not None), default=0.0)


def parse(text: str, *, nodes: int, index: int) -> Fault:
    """Raises InvalidUsage that says what is allowed."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise InvalidUsage(f'--chaos: found "{text}"; allowed: {EXAMPLES}')
    slot, step = int(match["slot"]), int(match["step"])
    if slot >= nodes:
        allowed = "0" if nodes == 1 else f"0 to {nodes - 1}"
        raise InvalidUsage(f'--chaos: found "{text}": the job has no slot {slot}; allowed: {allowed}')
    if step < 1:
        raise InvalidUsage(f'--chaos: found "{text}": a fault is fired after a step; allowed: 1 or more')
    action, away = match["action"], match["seconds"]
    if away is not None and action != "lose":
        raise InvalidUsage(f'--chaos: found "{text}": only lose-node takes for:; allowed: {EXAMPLES}')
    try:
        gone = FOR_EVER if away is None else seconds(away)
    except ValueError:
        raise InvalidUsage(f'--chaos: found "{text}": {away} is no duration; allowed: {EXAMPLES}') from None
    return Fault(f"{index}-{re.sub('[:@,]', '-', text)}", action, slot, step, text, gone if action == "lose" else 0.0)
