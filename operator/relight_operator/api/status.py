"""The status of a TrainingJob: all that must survive an operator's death. `plan()` is the only writer."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class StatusModel(BaseModel):
    """camelCase in JSON, snake_case in Python; unknown keys of a newer version are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", allow_inf_nan=False)

    def dump(self) -> dict[str, Any]:
        """The JSON object, without what is not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


# What a second of a member can go to, each to exactly one, and what that means.
BUCKETS = {
    "productive": "steps done for the first time",
    "replayed": "steps done again after a loss",
    "data": "waiting for the next batch",
    "checkpoint": "held up by snapshots and checkpoints",
    "evaluation": "evaluation",
    "restore": "building model and data, and loading the state",
    "rendezvous": "forming the world",
    "hang": "a step that never ended",
    "drain": "saving and stopping for a disruption",
    "idle": "ready, and waiting for others or for a back-off",
    "start": "container, interpreter, imports",
    "pending": "waiting for a machine",
    "untold": "trained by a command that does not say more",
}
MAX_HISTORY = 20  # recoveries


class ExitStatus(StatusModel):
    """How the previous incarnation of a slot ended."""

    incarnation: int
    cause: str
    exit_code: int | None = None
    message: str = ""
    time: float = 0.0


class SuccessorStatus(StatusModel):
    """The next member of a slot, made ready while the present one is leaving; written ahead as every incarnation is."""

    incarnation: int
    uid: str | None = None
    machine: str = ""
    state: str = "Pending"  # Pending | Starting | Ready


class SlotStatus(StatusModel):
    """A slot and its current incarnation. No uid: the member may or may not have been created yet (write-ahead)."""

    slot: int
    incarnation: int = 0
    uid: str | None = None
    machine: str = ""
    # Pending | Starting | Ready | Spare (ready, and not in the world that runs) | Running | Stopping | Completed | Ended
    # | Released (not wanted any more)
    state: str = "Pending"
    completed: int | None = None  # the generation that this slot's agent reported completed
    failed_starts: int = 0  # incarnations in a row that could not start
    not_before: float = 0.0  # unix seconds: the next incarnation is not created earlier
    silent_since: float | None = None  # unix seconds: its member has not been heard since about then
    released: bool = False  # the job has become smaller: no member is wanted here, until it grows again
    exit: ExitStatus | None = None
    successor: SuccessorStatus | None = None
    last_incarnation: int = 0  # the highest ever announced: a successor that came to nothing has used up its number


class MemberStatus(StatusModel):
    rank: int  # node rank, always 0..n-1
    slot: int
    uid: str
    address: str
    machine: str = ""
    since: int = 0  # the generation from which on this member has been in each: whoever is longest holds the state


class HealthStatus(StatusModel):
    """`spec.health` in seconds, as the agents of a generation go by it."""

    startup: float = 1800.0
    heartbeat: float = 60.0
    no_progress: float = 1800.0


class WorldStatus(StatusModel):
    """One generation. Written before any agent hears of it; its members and address are never changed afterwards."""

    generation: int
    run_id: str
    master_slot: int
    master_address: str
    master_port: int
    members: list[MemberStatus]
    wanted: int = 0  # spec.nodes when it was formed
    resized: bool = False  # of another size than the generation before it
    previous_furthest_step: int = 0  # the furthest step any earlier generation had done
    resumed_from_step: int | None = None  # what this generation restored; None until one of its members has said so
    resumed_kind: str | None = None
    recovering_since: float | None = None  # the first sign of the loss or failure that this generation mends
    formed_at: float | None = None  # unix seconds
    seconds: dict[str, float] = Field(default_factory=dict)  # of each member, since then, in `goodput.buckets` already
    closed: list[int] = Field(default_factory=list)  # slots whose member's part in it is over, and accounted for
    recovered: bool = False  # a step beyond `previousFurthestStep` has been done
    health: HealthStatus = Field(default_factory=HealthStatus)


class RecoveryStatus(StatusModel):
    """The world of `generation` is over and the next one has not been formed. Agents are told to wait."""

    generation: int
    since: float  # unix seconds of the first sign
    noticed: float | None = None  # unix seconds
    cause: str
    detail: str = ""
    member: str = ""  # whose end it was, and on which machine
    machine: str = ""
    losses: int = 0  # members lost until now
    loss: bool = False  # a member of this world was lost
    judged: bool = False  # all its members have said how it ended, and a failure has been counted
    failed: bool = False  # one of its failures has been paid for: further ones cost nothing
    not_before: float = 0.0  # unix seconds: the next generation waits for the back-off


class RecoveryRecord(StatusModel):
    """A recovery of the past, in seconds since the first sign of what it mended. None: it did not come to that."""

    generation: int  # the one that ended
    since: float  # unix seconds
    cause: str
    detail: str = ""
    member: str = ""
    machine: str = ""
    losses: int = 0
    step: int = 0  # where training stood
    noticed: float = 0.0
    formed: float = 0.0
    restored: float | None = None
    recovered: float | None = None  # the first step beyond all that had been done before
    resumed_step: int | None = None
    resumed_kind: str | None = None
    lost_steps: int = 0


class ResizeStatus(StatusModel):
    """Generation `generation` is to stop at a step that its members agree on: the next one will be of another size."""

    generation: int
    since: float  # unix seconds


class HoldStatus(StatusModel):
    """How often in a row all members were released because a machine was missing, and until when they stay so."""

    attempts: int
    until: float | None = None  # unix seconds; None: they have not all gone yet, or are back


class Restarts(StatusModel):
    total: int = 0  # disruptions + failures
    disruptions: int = 0
    failures: int = 0
    counted: int = 0  # failures that count against retry.failures now
    by_cause: dict[str, int] = Field(default_factory=dict)
    counted_times: list[float] = Field(default_factory=list)  # unix seconds, those inside the window only
    storage_times: list[float] = Field(default_factory=list)  # the same for the storage's failures, which count apart
    rule_times: dict[str, list[float]] = Field(default_factory=dict)  # the same, by the rule that pays for them
    fingerprint: str = ""  # of the last exception that would be recognised, and the step at which it came
    fingerprint_step: int | None = None
    without_progress: int = 0  # generations in a row that ended in a failure without a newer state
    checkpoint_step: int | None = None  # the newest committed checkpoint when the last failure was counted


class ProgressStatus(StatusModel):
    step: int = 0
    total_steps: int = 0
    epoch: str = ""
    samples: int = 0
    percent: int = 0
    text: str = ""
    eta_seconds: int | None = None
    metrics: dict[str, str] = Field(default_factory=dict)
    updated: float = 0.0


class CheckpointStatus(StatusModel):
    step: int | None = None  # the newest committed one
    location: str = ""
    resumed_from_step: int | None = None
    snapshot_step: int | None = None
    notices: list[str] = Field(default_factory=list)


class Goodput(StatusModel):
    """`buckets`: member-seconds until `countedUntil` (unix seconds), by what they went to; see BUCKETS."""

    ratio: str | None = None  # productive / all but pending
    productive_seconds: float = 0.0
    buckets: dict[str, float] = Field(default_factory=dict)
    counted_until: float | None = None
    lost_steps: int = 0
    executed_steps: int = 0  # over all generations, replays included
    reached_step: int = 0  # where the training's state stands
    recoveries: int = 0
    last_recovery_seconds: str | None = None


class Failure(StatusModel):
    time: float
    cause: str
    machine: str = ""
    member: str = ""
    rank: int | None = None
    exit_code: int | None = None
    message: str = ""
    step: int | None = None  # steps done by then, where they are counted
    collateral: list[str] = Field(default_factory=list)  # members that failed because of it, the first few


class BlamedMachine(StatusModel):
    """A machine against which ends of members are held."""

    name: str
    times: list[float] = Field(default_factory=list)  # unix seconds, no more than it takes to be avoided


class StallStatus(StatusModel):
    """The newest stall: a generation in which no rank made progress, and the rank that held it up."""

    generation: int
    number: int = 1  # in this generation
    since: float  # unix seconds of the last sign of progress
    found: float  # unix seconds from which on every member was overdue
    collecting: bool = True  # members are asked for their stacks
    ended: bool = False  # the generation, or the job, was ended for it
    over: bool = False
    rank: int | None = None
    slot: int | None = None
    machine: str = ""
    member: str = ""
    section: str = ""  # start | data | train | evaluation | checkpoint | end | after
    step: int = 0  # steps that this rank has done
    frames: list[str] = Field(default_factory=list)  # of its Python stack, the innermost first
    message: str = ""

    @property
    def command(self) -> str:
        """The id of the command by which members are asked for their stacks."""
        return f"dump:{self.generation}.{self.number}"


class StragglerStatus(StatusModel):
    """A member that the others wait for in each step."""

    slot: int
    uid: str
    machine: str = ""
    node_rank: int = 0
    rank: int = 0
    share: str = ""  # of a step's time that they wait, when it was found
    since: float = 0.0  # unix seconds
    message: str = ""


class Result(StatusModel):
    weights_digest: str | None = None
    metrics: dict[str, str] = Field(default_factory=dict)
    steps: int = 0


class Condition(StatusModel):
    """metav1.Condition; the time is unix seconds here and RFC 3339 on the wire to an API server."""

    type: str
    status: str
    reason: str
    message: str = ""
    last_transition_time: float = 0.0


PHASES = (
    "Invalid", "Pending", "Suspended", "Queued", "Starting", "Running", "Recovering", "Resizing", "Succeeded", "Failed",
)  # fmt: skip
TERMINAL = frozenset({"Succeeded", "Failed"})


class CodeStatus(StatusModel):
    """What `spec.code` was at the job's first start."""

    commit: str


class ProfileStatus(StatusModel):
    """A trace of the next steps that somebody has asked for, of the generation that ran then."""

    id: str
    generation: int


class JobStatus(StatusModel):
    observed_generation: int = 0
    phase: str = "Pending"
    stop: str | None = None  # the id of a stop that is under way: every agent saves and ends (suspend, Ctrl-C)
    stopping_since: float | None = None
    conditions: list[Condition] = Field(default_factory=list)
    slots: list[SlotStatus] = Field(default_factory=list)
    code: CodeStatus | None = None
    profile: ProfileStatus | None = None
    world: WorldStatus | None = None
    recovery: RecoveryStatus | None = None
    handover: int | None = None  # the generation that is to stop for the sake of a leaving member
    resize: ResizeStatus | None = None
    hold: HoldStatus | None = None
    nodes_at_start: int = 0  # spec.nodes at the job's first look
    # Against a run in one world of `nodesAtStart`: bit-equal, sample-exact (the same samples in each step, rounded in another
    # order: a generation was of another size), or approximate (elastic.batch Flexible: an own script's batch has changed).
    exactness: str = ""
    ready_nodes: int = 0
    nodes_ready: str = ""
    selector: str = ""
    restarts: Restarts = Field(default_factory=Restarts)
    progress: ProgressStatus | None = None
    checkpoint: CheckpointStatus = Field(default_factory=CheckpointStatus)
    goodput: Goodput = Field(default_factory=Goodput)
    history: list[RecoveryRecord] = Field(default_factory=list)  # the last MAX_HISTORY
    last_failure: Failure | None = None
    blamed_machines: list[BlamedMachine] = Field(default_factory=list)
    stall: StallStatus | None = None
    stragglers: list[StragglerStatus] = Field(default_factory=list)
    result: Result | None = None
    start_time: float | None = None
    active_seconds: float = 0.0  # before `activeSince`; suspended time does not count
    active_since: float | None = None
    completion_time: float | None = None
