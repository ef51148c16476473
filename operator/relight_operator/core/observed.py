"""What a reconciler sees of one job, in words that know neither pods nor processes."""

from dataclasses import dataclass, field

from relight_agent.exits import Cause, Class, Manner
from relight_operator.api.job import JobSpec
from relight_operator.api.status import JobStatus


@dataclass(frozen=True)
class AgentOutcome:
    """How a generation ended at one member: the root cause among its local workers."""

    generation: int
    kind: str  # completed | stopped | failed
    exit_code: int
    step: int = 0
    saved: bool = False
    rank: int | None = None
    message: str = ""
    at: float = 0.0  # unix seconds, from the age that the agent gave
    weights_digest: str | None = None
    metrics: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""  # recognises an exception that comes again; "" where it could not
    exit_status: int | None = None  # of the user's code, where it is no code of ours
    manner: Manner = Manner.UNKNOWN  # of a failure: how the worker ended
    left: int | None = None  # a rank of this member that ended with 0 while its peers still wanted it


@dataclass(frozen=True)
class AgentProgress:
    """Progress of `generation` as this member's local rank 0 wrote it."""

    generation: int
    step: int
    total_steps: int = 0
    epoch: str = ""
    samples: int = 0
    resumed_from: int | None = None
    resumed_kind: str = "scratch"
    metrics: dict[str, str] = field(default_factory=dict)
    snapshot: int | None = None
    checkpoint: int | None = None
    restored_at: float | None = None  # unix seconds, as the next
    first_step_at: float | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class AgentStall:
    """All unfinished workers of a member are overdue: the one that has been silent longest."""

    generation: int
    rank: int
    section: str
    step: int
    since: float  # unix seconds of its last sign of progress


@dataclass(frozen=True)
class RankStack:
    """What one worker was doing when it was asked."""

    rank: int
    section: str
    step: int
    silent: float  # seconds
    state: str  # the kernel's letter for its process
    doing: str  # collective | backward | code; "" where it did not answer
    frames: tuple[str, ...] = ()


@dataclass(frozen=True)
class AgentPace:
    """What a step takes the slowest worker of a member: its own work, and the whole, in seconds."""

    generation: int
    rank: int
    own: float
    step: float


@dataclass(frozen=True)
class AgentSpent:
    """What the seconds of `generation` at this member have gone to, by its workers' ledger, from its beginning to `until`."""

    generation: int
    until: float  # unix seconds
    seconds: dict[str, float]  # by bucket


@dataclass(frozen=True)
class AgentView:
    """The last report of one agent."""

    state: str  # Starting | Ready | Running | Stopping
    generation: int = 0  # the last generation it started, 0 for none
    terminating_at: float | None = None  # unix seconds at which it got SIGTERM
    stopping_at: float | None = None  # unix seconds at which it asked its workers to stop because it leaves
    port: int = 0  # found free just now, for the store of a next generation
    acknowledged: str = ""  # the id of the last command that it took
    furthest_step: int = 0  # steps done in `generation`, by the heartbeats of its workers
    config_hash: str = ""
    commit: str = ""  # of the job's code that it has
    protocol: int = 1
    torch: str = ""
    notices: tuple[str, ...] = ()
    progress: AgentProgress | None = None
    spent: AgentSpent | None = None
    outcome: AgentOutcome | None = None
    stall: AgentStall | None = None
    stacks_id: str = ""  # of the command that asked for them
    stacks: tuple[RankStack, ...] = ()
    pace: AgentPace | None = None
    heard_at: float | None = None  # unix seconds of this report
    hung_up_at: float | None = None  # unix seconds: its wait broke off then, and nothing has been heard since


@dataclass(frozen=True)
class MemberEnd:
    """How a member ended, as the backend's classifier says."""

    cause: Cause
    klass: Class
    at: float  # unix seconds of the first sign
    exit_code: int | None = None
    message: str = ""
    rank: int | None = None


@dataclass(frozen=True)
class SlotView:
    """One member that exists, or whose end is known: the pod or process of (slot, incarnation)."""

    slot: int
    incarnation: int
    uid: str
    machine: str = ""
    address: str = ""
    deleting: bool = False
    leaving: Cause | None = None  # why it will end, though it lives: it was told to, or its machine is announced to go
    gone_by: float | None = None  # unix seconds at which it will be killed; None where nobody has set a time
    end: MemberEnd | None = None  # None: alive
    agent: AgentView | None = None  # None: nothing heard from this uid since the coordinator started
    unplaced_since: float | None = None  # unix seconds: no machine has been found for it since then
    avoids: bool = False  # it was created to stay away from some machines

    @property
    def alive(self) -> bool:
        return self.end is None

    @property
    def told(self) -> bool:
        """It has been told to end, and nothing takes that back."""
        return self.deleting or (self.agent is not None and self.agent.terminating_at is not None)


@dataclass(frozen=True)
class Observed:
    """One job: its frozen spec, the last acknowledged status, and its members, of any incarnation.

    `members` may be behind, but a uid that the status records is missing only if a live look has shown that it is gone.
    """

    name: str
    spec: JobSpec
    status: JobStatus
    members: tuple[SlotView, ...] = ()
    config_hash: str = ""
    listening_since: float = 0.0  # unix seconds: who has not been heard may have spoken before that
    local: bool = False  # by `relight run`: a person waits for it, and its one machine stays the same
    stop: str | None = None  # the id of a stop asked for from outside the spec (Ctrl-C)
    profile: str = ""  # the id of a trace asked for from outside the spec; "" for none
    progress_interval: float = 10.0  # seconds between status writes that carry nothing but progress
    jitter: float = 0.5  # drawn from [0, 1) anew for each look: what is tried again is not tried by all jobs at once
