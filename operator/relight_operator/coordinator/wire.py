"""What agents send, bounded: nothing an agent says can make a status write fail.

Unknown fields are ignored, so protocol N talks to N-1 and N+1. Instants travel as ages in seconds of the agent's
monotonic clock, never as wall time.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from relight_agent.exits import Manner
from relight_agent.files import MAX_MESSAGE_BYTES, MAX_METRICS, MAX_NOTICES, plain
from relight_agent.ledger import KINDS
from relight_agent.reporting import MAX_STACKS
from relight_agent.stacks import MAX_FRAME_BYTES, MAX_FRAMES
from relight_operator.core.commands import AgentCommand
from relight_operator.core.observed import (
    AgentOutcome,
    AgentPace,
    AgentProgress,
    AgentSpent,
    AgentStall,
    AgentView,
    RankStack,
)

MAX_BODY_BYTES = 64 * 1024
WAIT_SECONDS = 20.0

# Nothing that a terminal would obey gets into a status: a member's own code decides what its agent says.
Word = Annotated[str, StringConstraints(max_length=64), AfterValidator(plain)]
Message = Annotated[str, StringConstraints(max_length=MAX_MESSAGE_BYTES), AfterValidator(plain)]
Id = Annotated[str, StringConstraints(max_length=128), AfterValidator(plain)]
Frame = Annotated[str, StringConstraints(max_length=MAX_FRAME_BYTES), AfterValidator(plain)]
Age = Annotated[float, Field(ge=0.0, le=1e9, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Metrics = Annotated[dict[Word, Word], Field(max_length=MAX_METRICS)]


class Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class ProgressReport(Wire):
    generation: Count
    step: Count
    total_steps: Count = 0
    epoch: Word = ""
    samples: Count = 0
    resumed_from: Count | None = None
    resumed_kind: Word = "scratch"
    metrics: Metrics = Field(default_factory=dict)
    snapshot: Count | None = None
    checkpoint: Count | None = None
    restored_age: Age | None = None
    first_step_age: Age | None = None
    notices: Annotated[list[Message], Field(max_length=MAX_NOTICES)] = Field(default_factory=list)


class SpentReport(Wire):
    """Kinds of a newer version's ledger are left out: what they took counts as unsaid."""

    generation: Count
    age: Age = 0.0
    seconds: Annotated[dict[Word, Age], Field(max_length=32)] = Field(default_factory=dict)


class OutcomeReport(Wire):
    generation: Count
    kind: Literal["completed", "stopped", "failed"]
    exit_code: Annotated[int, Field(ge=-255, le=255)] = 0
    step: Count = 0
    saved: bool = False
    rank: Count | None = None
    message: Message = ""
    age: Age = 0.0
    weights_digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    metrics: Metrics = Field(default_factory=dict)
    fingerprint: Word = ""
    exit_status: Annotated[int, Field(ge=0, le=255)] | None = None
    left: Count | None = None
    manner: Word = ""


class StallReport(Wire):
    generation: Count
    rank: Count
    section: Word
    step: Count = 0
    age: Age = 0.0


class StackReport(Wire):
    rank: Count
    section: Word = ""
    step: Count = 0
    age: Age = 0.0
    state: Annotated[str, StringConstraints(max_length=1), AfterValidator(plain)] = ""
    doing: Word = ""
    frames: Annotated[list[Frame], Field(max_length=MAX_FRAMES)] = Field(default_factory=list)


class StacksReport(Wire):
    id: Id
    ranks: Annotated[list[StackReport], Field(max_length=MAX_STACKS)] = Field(default_factory=list)


class PaceReport(Wire):
    generation: Count
    rank: Count
    own: Age
    step: Age


class Report(Wire):
    """The body of both /v1/report and /v1/wait."""

    protocol: Annotated[int, Field(ge=1)]
    job: Annotated[str, StringConstraints(max_length=320, pattern=r"^[^/]+/[^/]+$")]
    job_uid: Word
    slot: Annotated[int, Field(ge=0, lt=1000)]
    incarnation: Count
    uid: Word
    boot_id: Word
    seq: Count
    state: Literal["Starting", "Ready", "Running", "Stopping"]
    generation: Count = 0
    terminating_age: Age | None = None
    stopping_age: Age | None = None
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    address: Word = ""
    furthest_step: Count = 0
    config_hash: Word = ""
    commit: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})?$")] = ""
    torch: Word = ""
    python: Word = ""
    timings: Annotated[dict[Word, float], Field(max_length=8)] = Field(default_factory=dict)
    notices: Annotated[list[Message], Field(max_length=MAX_NOTICES)] = Field(default_factory=list)
    progress: ProgressReport | None = None
    spent: SpentReport | None = None
    outcome: OutcomeReport | None = None
    stall: StallReport | None = None
    stacks: StacksReport | None = None
    pace: PaceReport | None = None
    after: Id = ""
    acknowledged: Id = ""


def _manner(word: str) -> Manner:
    """One of a newer version's agent is not known here."""
    return Manner(word) if word in set(Manner) else Manner.UNKNOWN


def view(report: Report, *, heard_at: float) -> AgentView:
    """The report in the core's words. `heard_at`: the unix second at which it came in, from which ages are counted."""

    def instant(age: float | None) -> float | None:
        return None if age is None else heard_at - age

    progress = spent = outcome = None
    if report.progress is not None:
        p = report.progress
        progress = AgentProgress(
            generation=p.generation, step=p.step, total_steps=p.total_steps, epoch=p.epoch, samples=p.samples,
            resumed_from=p.resumed_from, resumed_kind=p.resumed_kind, metrics=p.metrics, snapshot=p.snapshot,
            checkpoint=p.checkpoint, restored_at=instant(p.restored_age), first_step_at=instant(p.first_step_age), notices=tuple(p.notices),
        )  # fmt: skip
    if report.spent is not None:
        seconds = {kind: s for kind, s in report.spent.seconds.items() if kind in KINDS}
        spent = AgentSpent(report.spent.generation, heard_at - report.spent.age, seconds)
    if report.outcome is not None:
        o = report.outcome
        outcome = AgentOutcome(
            generation=o.generation, kind=o.kind, exit_code=o.exit_code, step=o.step, saved=o.saved, rank=o.rank,
            message=o.message, at=heard_at - o.age, weights_digest=o.weights_digest, metrics=o.metrics,
            fingerprint=o.fingerprint, exit_status=o.exit_status, left=o.left, manner=_manner(o.manner),
        )  # fmt: skip
    stall = pace = None
    if report.stall is not None:
        s = report.stall
        stall = AgentStall(s.generation, s.rank, s.section, s.step, since=heard_at - s.age)
    if report.pace is not None:
        pace = AgentPace(**report.pace.model_dump())
    stacks = report.stacks or StacksReport(id="")
    return AgentView(
        state=report.state, generation=report.generation, terminating_at=instant(report.terminating_age),
        stopping_at=instant(report.stopping_age), port=report.port, acknowledged=report.acknowledged, furthest_step=report.furthest_step, config_hash=report.config_hash,
        commit=report.commit, protocol=report.protocol, torch=report.torch, progress=progress, spent=spent, outcome=outcome,
        stall=stall, stacks_id=stacks.id, stacks=tuple(_stack(r) for r in stacks.ranks), pace=pace, heard_at=heard_at,
        notices=tuple(report.notices),
    )  # fmt: skip


def _stack(report: StackReport) -> RankStack:
    return RankStack(
        rank=report.rank, section=report.section, step=report.step, silent=report.age, state=report.state,
        doing=report.doing, frames=tuple(report.frames),
    )  # fmt: skip


def command_body(command: AgentCommand) -> dict[str, Any]:
    """The answer to a wait."""
    body: dict[str, Any] = {"id": command.id, "op": command.op, "generation": command.generation}
    if command.op == "exit":
        body["code"] = int(command.code)
    if command.op == "run":
        body["successor"] = command.successor
    if command.op == "save":
        body["leaves"] = command.leaves
    if command.world is not None:
        body["world"] = command.world.dump()
        body["committedStep"] = command.committed_step
    if command.profile:
        body["profile"] = command.profile
    return {"command": body}
