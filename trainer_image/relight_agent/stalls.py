"""When a worker has been silent for too long: limits learned from the run itself, and a watch over one generation.

A worker that makes progress says so in its heartbeat; how long it may be silent depends on what it is doing. Synchronous
ranks wait for each other, so that one that is stuck silences all: which is why a member has stalled only once *each* of
its workers is overdue, and a job once all its members have. A rank that evaluates while the others wait is not overdue
for as long as its own section allows, and neither is the job.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence, Tuple

FACTOR = 5.0  # of the longest silence that was followed by progress, as NVIDIA's resiliency extension has it
FIRST_STEPS = 5  # of a generation: compilers and libraries that try out their kernels are at work
MAX_TICK_SECONDS = 1.0  # what one look can add to a silence: who did not look does not know

Beat = Tuple[str, int, float]  # as Heartbeat.read gives it


@dataclass(frozen=True)
class Health:
    """`spec.health` in seconds. Defaults are those of the API."""

    startup: float = 1800.0  # until the world has formed and restored, and again until its first step is done
    heartbeat: float = 60.0  # the least silence that is too long
    no_progress: float = 1800.0  # the most that is not, and the limit of what has not been seen in this run yet

    @classmethod
    def from_world(cls, value: Any) -> "Health":
        """From the world in a `run` command; of a coordinator that says nothing of it, the defaults."""
        given = value if isinstance(value, dict) else {}
        names = {"startup": "startup", "heartbeat": "heartbeat", "noProgress": "no_progress"}
        found = {ours: float(given[theirs]) for theirs, ours in names.items() if theirs in given}
        return cls(**found)


def limit(slowest: Optional[float], health: Health, stalls: int = 0) -> float:
    """How many seconds of silence are too many, where the longest that ended well was `slowest`, None if not known yet.

    Each stall that this member has been through doubles it: what is only slow gets its time in the end.

    >>> limit(0.1, Health(heartbeat=60)), limit(30.0, Health()), limit(None, Health())
    (60.0, 150.0, 1800.0)
    """
    if slowest is None:
        return health.no_progress
    patience = max(FACTOR * slowest, health.heartbeat) * 2.0 ** min(stalls, 30)
    return min(patience, health.no_progress)


@dataclass
class Learned:
    """What a member has seen of its workers, over all generations: the longest silences that were followed by progress.

    `data` counts as `train`: a step is the two together. An own script evaluates wherever it likes, most often at an
    epoch's end, so that its steps are not known before one has been seen.
    """

    slowest: Dict[str, float] = field(default_factory=dict)  # by section
    stalls: int = 0
    whole_epoch: bool = False

    def note(self, section: str, seconds: float) -> None:
        section = _kind(section)
        self.slowest[section] = max(seconds, self.slowest.get(section, 0.0))

    def limit(self, section: str, health: Health) -> float:
        if section == "after":  # done once: what has been seen of it says nothing of what comes
            return health.no_progress
        section = _kind(section)
        known = self.slowest.get(section) if section != "train" or self.whole_epoch else None
        return limit(known, health, self.stalls)

    def longest(self, health: Health) -> float:
        """The longest that any section may be silent: no time-out of a collective may be shorter."""
        return max(self.limit(section, health) for section in ("train", "evaluation", "checkpoint"))


def _kind(section: str) -> str:
    return "train" if section == "data" else section


class Silence(NamedTuple):
    """A worker that is overdue."""

    local_rank: int
    section: str
    step: int  # steps that it has done
    seconds: float
    limit: float


@dataclass
class _Worker:
    beat: Optional[Beat] = None
    silent: float = 0.0
    first_step: Optional[int] = None  # at which this generation's training began


class Watch:
    """Over the workers of one generation at one member. `opaque`: one that shows no heartbeat may never have any."""

    def __init__(self, learned: Learned, health: Health, workers: int, *, now: float, opaque: bool) -> None:
        self._learned = learned
        self._health = health
        self._workers = [_Worker() for _ in range(workers)]
        self._looked_at = now
        self._opaque = opaque
        self._epoch: Optional[int] = None
        self._epoch_seen = -1  # the step at which it turned

    def look(
        self,
        now: float,
        beats: Sequence[Optional[Beat]],
        *,
        ended: FrozenSet[int] = frozenset(),
        epoch: Optional[int] = None,
    ) -> Optional[Silence]:
        """The longest silence where every worker that has not `ended` is overdue; None where one may still go on.

        `now` and beats are of one monotonic clock. A time in which nobody looked (a paused machine) is not silence.
        `epoch`: the number of whole ones that training has behind it.
        """
        tick, self._looked_at = min(max(0.0, now - self._looked_at), MAX_TICK_SECONDS), now
        overdue: List[Silence] = []
        patient = False
        for i, (worker, beat) in enumerate(zip(self._workers, beats)):
            if i in ended:
                continue
            self._hear(worker, beat, tick)
            allowed = self._allowed(worker)
            if allowed is None or worker.silent <= allowed:
                patient = True
            else:
                section, step = (worker.beat[0], worker.beat[1]) if worker.beat is not None else ("start", 0)
                overdue.append(Silence(i, section, step, worker.silent, allowed))
        self._count_epochs(epoch, beats)
        return None if patient or not overdue else max(overdue, key=lambda s: s.seconds)

    def _hear(self, worker: _Worker, beat: Optional[Beat], tick: float) -> None:
        before = worker.beat
        if beat == before:
            worker.silent += tick
            return
        if before is not None and beat is not None and self._past_first_steps(worker):
            self._learned.note(before[0], min(worker.silent + tick, max(0.0, beat[2] - before[2])))
        worker.beat = beat
        worker.silent = 0.0
        if worker.first_step is None and beat is not None and beat[0] != "start":
            worker.first_step = beat[1]

    def _allowed(self, worker: _Worker) -> Optional[float]:
        if worker.beat is None:
            return None if self._opaque else self._health.startup
        section, step, _ = worker.beat
        if section == "start" or (_kind(section) == "train" and step == worker.first_step):
            return self._health.startup
        if not self._past_first_steps(worker):
            return self._health.no_progress
        return self._learned.limit(section, self._health)

    @staticmethod
    def _past_first_steps(worker: _Worker) -> bool:
        if worker.beat is None or worker.first_step is None:
            return False
        return _kind(worker.beat[0]) != "train" or worker.beat[1] >= worker.first_step + FIRST_STEPS

    def _count_epochs(self, epoch: Optional[int], beats: Sequence[Optional[Beat]]) -> None:
        """What comes between two epochs has been seen once the step after it is done."""
        step = max((b[1] for b in beats if b is not None), default=0)
        if epoch is None or self._learned.whole_epoch:
            return
        if self._epoch is not None and epoch > self._epoch:
            if self._epoch_seen < 0:
                self._epoch_seen = step
            self._learned.whole_epoch = step > self._epoch_seen + 1
        else:
            self._epoch = epoch


class Pace(NamedTuple):
    """What a step took a worker of this member: its own work, and the whole with all waiting, in seconds."""

    local_rank: int
    own: float
    step: float


class Paces:
    """The pace of this member's workers over the last `window` seconds or more.

    `own` numbers are cumulative, of which nothing is known but that they grow: (seconds of own work, steps done in them).
    """

    def __init__(self, window: float = 30.0, steps: int = 10) -> None:
        self._window = window
        self._steps = steps
        self._since: Dict[int, Tuple[float, float, int]] = {}  # by local rank: when, and the numbers then
        self._paces: Dict[int, Pace] = {}

    def look(self, now: float, own: Mapping[int, Tuple[float, int]]) -> Optional[Pace]:
        """The pace of the slowest worker by its own work; None where nothing is known yet."""
        for rank, (seconds, steps) in own.items():
            at, seconds_then, steps_then = self._since.setdefault(rank, (now, seconds, steps))
            done = steps - steps_then
            if now - at >= self._window and done >= self._steps:
                self._paces[rank] = Pace(rank, (seconds - seconds_then) / done, (now - at) / done)
                self._since[rank] = (now, seconds, steps)
        return max(self._paces.values(), key=lambda p: p.own, default=None)
