"""`--chaos`: faults that the workers trigger themselves, at an exact step."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from relight_operator.errors import InvalidUsage

_FORM = re.compile(r"(?P<action>preempt|kill|announce|withdraw)-node:(?P<slot>\d{1,4})@step:(?P<step>\d{1,15})")
EXAMPLES = (
    "preempt-node:1@step:40 (SIGTERM, with the grace period), kill-node:0@step:80 (SIGKILL of everything at once), "
    "announce-node:1@step:40 (its machine is to go), withdraw-node:1@step:60 (it stays after all)"
)


@dataclass(frozen=True)
class Fault:
    """Fired once in a job's life, when the slot's worker has done `step` optimizer steps."""

    id: str
    action: str
    slot: int
    step: int

    def __str__(self) -> str:
        return f"{self.action}-node:{self.slot}@step:{self.step}"

    def dump(self) -> dict[str, object]:
        return {"id": self.id, "action": self.action, "slot": self.slot, "step": self.step}


def unfired(faults: Iterable[Fault], chaos_file: Path) -> list[Fault]:
    """Those that have not happened in the job's life: no worker that counts its steps got there."""
    return [f for f in faults if not Path(f"{chaos_file}.{f.id}.fired").exists()]


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
    return Fault(f"{index}-{text.replace(':', '-').replace('@', '-')}", match["action"], slot, step)
