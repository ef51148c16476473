"""What the agent says, and the two threads that say it: one reports changes, one holds a wait open for commands."""

import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional

from relight_agent import preflight
from relight_agent.channel import Channel, Refused, Unreachable
from relight_agent.files import MAX_METRICS, MAX_NOTICES, Outcome, Progress, clip
from relight_agent.identity import Identity
from relight_agent.ledger import Spent
from relight_agent.stacks import RankStack
from relight_agent.stalls import Pace

PROTOCOL = 1
REPORT_SECONDS = 1.0  # between reports while training
REPORT_TIMEOUT_SECONDS = 5.0
WAIT_SECONDS = 20.0  # how long the coordinator may hold a wait
RETRY_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
MAX_REFUSALS = 3
MAX_STACKS = 16  # of a member's workers, the likeliest culprits first


@dataclass(frozen=True)
class Stalled:
    """All unfinished workers of this member are overdue; the one that has been silent longest."""

    generation: int
    rank: int
    section: str
    step: int
    since: float  # CLOCK_MONOTONIC


@dataclass
class State:
    """Everything a report carries; instants are CLOCK_MONOTONIC here and ages on the wire."""

    state: str = "Starting"
    generation: int = 0
    terminating_at: Optional[float] = None
    stopping_at: Optional[float] = None  # when its workers were asked to stop because it leaves
    port: int = 0
    furthest_step: int = 0
    progress: Optional[Progress] = None
    spent: Optional[Spent] = None
    outcome: Optional[Outcome] = None
    outcome_generation: int = 0
    snapshot: Optional[Dict[str, int]] = None
    torch: str = ""
    python: str = ""
    timings: Dict[str, float] = field(default_factory=dict)
    stalled: Optional[Stalled] = None
    stacks_id: str = ""  # of the command that asked for them
    stacks: List[RankStack] = field(default_factory=list)
    pace: Optional[Pace] = None
    first_rank: int = 0  # of this member in `generation`
    notices: List[str] = field(default_factory=list)  # what a person should hear of this member


class Reporter:
    """Shares the state with the coordinator. `on_event` is called from its threads with the agent's events."""

    def __init__(self, me: Identity, on_event: Callable[[str, Any], None]) -> None:
        self._me = me
        self._on_event = on_event
        self._lock = threading.Lock()
        self._state = State()
        self._seq = 0
        self._changed = threading.Event()
        self._last_command = ""  # the newest one heard
        self._acknowledged = ""  # the newest one obeyed
        self._refusals = 0
        self.answered_at = time.monotonic()  # when the coordinator last said anything
        self._closing = False
        self._clock_compared = False
        self._commit = me.job.commit()

    def start(self) -> None:
        for target in (self._report_for_ever, self._wait_for_ever):
            threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True).start()

    def update(self, **changes: Any) -> None:
        """Change the state and have it reported now."""
        with self._lock:
            for name, value in changes.items():
                setattr(self._state, name, value)
        self._changed.set()

    def observe(self, **changes: Any) -> None:
        """Change the state; the next report carries it."""
        with self._lock:
            for name, value in changes.items():
                setattr(self._state, name, value)

    def notice(self, text: str) -> None:
        """Tell a person: in the log, and in status. From any thread."""
        print(f"relight-agent: {text}", flush=True)
        with self._lock:
            self._state.notices = [*self._state.notices, clip(text)][-MAX_NOTICES:]
        self._changed.set()

    def acknowledge(self, command: str) -> None:
        """The agent has obeyed `command`: nothing that it was told before will be begun any more."""
        with self._lock:
            self._acknowledged = command
        self._changed.set()

    def last_words(self, timeout: float) -> None:
        """One more report before the agent ends, if anybody listens."""
        self._closing = True
        channel = self._channel()
        try:
            channel.post("/v1/report", self.body(), timeout=timeout)
        except (Refused, Unreachable):
            pass
        channel.close()

    def _channel(self) -> Channel:
        return Channel(self._me.coordinator_url, self._me.token_file, self._me.ca_file)

    def body(self) -> Dict[str, Any]:
        with self._lock:
            self._seq += 1
            now, state, me = time.monotonic(), self._state, self._me

            def age(at: Optional[float]) -> Optional[float]:
                return None if at is None else round(max(0.0, now - at), 6)

            progress = outcome = None
            if state.progress is not None:
                p = state.progress
                progress = {
                    "generation": p.generation,
                    "step": p.step,
                    "totalSteps": p.total_steps,
                    "epoch": clip(str(p.epoch), 32),
                    "samples": p.samples,
                    "resumedFrom": p.resumed_from if p.restored_at is not None else None,
                    "resumedKind": p.resumed_kind,
                    "metrics": {clip(k, 64): clip(str(v), 64) for k, v in list(p.metrics.items())[:MAX_METRICS]},
                    "snapshot": p.snapshot,
                    "checkpoint": p.checkpoint,
                    "formedAge": age(p.formed_at),
                    "restoredAge": age(p.restored_at),
                    "firstStepAge": age(p.first_step_at),
                    "notices": [clip(n) for n in p.notices[-MAX_NOTICES:]],
                }
            spent = None
            if state.spent is not None:
                seconds = {kind: round(max(0.0, s), 6) for kind, s in state.spent.seconds.items()}
                spent = {"generation": state.generation, "age": age(state.spent.until), "seconds": seconds}
            if state.outcome is not None:
                o = state.outcome
                result = o.result if isinstance(o.result, dict) else {}
                metrics = result.get("metrics")
                outcome = {
                    "generation": state.outcome_generation,
                    "kind": o.kind,
                    "exitCode": o.exit_code,
                    "step": o.step,
                    "saved": o.saved,
                    "rank": o.rank,
                    "message": clip(o.message),
                    "age": age(o.at),
                    "weightsDigest": result.get("weightsDigest"),
                    "fingerprint": o.fingerprint,
                    "exitStatus": o.exit_status,
                    "left": o.left,
                    "manner": o.manner,
                    "metrics": {
                        clip(str(k), 64): clip(str(v), 64) for k, v in list((metrics or {}).items())[:MAX_METRICS]
                    },
                }
            return {
                "protocol": PROTOCOL,
                "job": f"{me.job.namespace}/{me.job.name}",
                "jobUid": me.job.uid,
                "slot": me.slot,
                "incarnation": me.incarnation,
                "uid": me.uid,
                "bootId": me.boot_id,
                "seq": self._seq,
                "state": state.state,
                "generation": state.generation,
                "terminatingAge": age(state.terminating_at),
                "stoppingAge": age(state.stopping_at),
                "port": state.port,
                "address": me.address,
                "furthestStep": state.furthest_step,
                "configHash": me.job.config_hash,
                "commit": self._commit,
                "torch": state.torch,
                "python": state.python,
                "timings": state.timings,
                "notices": state.notices,
                "progress": progress,
                "spent": spent,
                "outcome": outcome,
                "acknowledged": self._acknowledged,
                **self._of_progress(state, now),
            }

    def _of_progress(self, state: State, now: float) -> Dict[str, Any]:
        """What is reported of workers that make none, or little."""
        found: Dict[str, Any] = {}
        if (s := state.stalled) is not None:
            found["stall"] = {
                "generation": s.generation, "rank": s.rank, "section": s.section, "step": s.step,
                "age": round(max(0.0, now - s.since), 3),
            }  # fmt: skip
        if state.stacks_id:
            worst = sorted(state.stacks, key=lambda r: (r.doing != "", r.step, r.rank))[:MAX_STACKS]
            found["stacks"] = {
                "id": state.stacks_id,
                "ranks": [
                    {
                        "rank": r.rank, "section": r.section, "step": r.step, "age": round(r.silent, 3),
                        "state": r.state, "doing": r.doing, "frames": r.frames,
                    }
                    for r in worst
                ],
            }  # fmt: skip
        if (p := state.pace) is not None:
            rank = state.first_rank + p.local_rank
            found["pace"] = {
                "generation": state.generation,
                "rank": rank,
                "own": round(p.own, 6),
                "step": round(p.step, 6),
            }
        return found

    def _post(self, channel: Channel, path: str, body: Dict[str, Any], timeout: float) -> Optional[Dict[str, Any]]:
        try:
            answer = channel.post(path, body, timeout=timeout)
        except Refused:
            self.answered_at = time.monotonic()
            self._refusals += 1
            if self._refusals == MAX_REFUSALS:
                self._on_event("refused", None)
            return None
        except Unreachable:
            return None
        self._refusals = 0
        self.answered_at = time.monotonic()
        if channel.ahead is not None and not self._clock_compared:
            self._clock_compared = True
            if (text := preflight.skew(channel.ahead)) is not None:
                self.notice(text)
        return answer

    def _report_for_ever(self) -> None:
        channel, attempt = self._channel(), 0
        while not self._closing:
            self._changed.wait(REPORT_SECONDS)
            if not self._changed.is_set() and self._state.state != "Running":
                continue
            self._changed.clear()
            if self._post(channel, "/v1/report", self.body(), REPORT_TIMEOUT_SECONDS) is None:
                self._changed.set()
                time.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                attempt += 1
            else:
                attempt = 0

    def _wait_for_ever(self) -> None:
        channel, attempt = self._channel(), 0
        while not self._closing:
            body = {**self.body(), "after": self._last_command}
            answer = self._post(channel, "/v1/wait", body, WAIT_SECONDS + 10.0)
            if answer is None:
                time.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                attempt += 1
                continue
            attempt = 0
            command = answer.get("command")
            if isinstance(command, dict) and command.get("id") != self._last_command:
                self._last_command = str(command.get("id"))
                self._on_event("command", command)


def process_age() -> float:
    """Seconds since this process was started: what the interpreter and the imports have taken so far."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        line = file.read()
    started_ticks = int(line[line.rindex(")") + 2 :].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
