"""What an agent is told: a pure function of the last acknowledged status. The coordinator adds nothing to it."""

from dataclasses import dataclass

from relight_agent.exits import ExitCode
from relight_agent.files import SUPERSEDED
from relight_operator.api.status import TERMINAL, JobStatus, WorldStatus
from relight_operator.core.slots import is_successor


@dataclass(frozen=True)
class AgentCommand:
    """`id` is derived from status, so the same status gives the same command, whoever asks and how often."""

    id: str
    op: str  # run | wait | dump | save | stop | exit
    generation: int = 0
    world: WorldStatus | None = None
    code: int = 0
    committed_step: int | None = None
    successor: bool = False  # of a run: somebody is made ready to take this member's place
    leaves: bool = False  # of a save: somebody else is to take this member's place
    profile: str = ""  # the id of a trace that its workers are to make; a `run` says it, for who has missed the first


def command_for(status: JobStatus, *, slot: int, incarnation: int, uid: str) -> AgentCommand:
    """The command of the member `uid` that runs as (slot, incarnation)."""
    holder = next((s for s in status.slots if s.slot == slot), None)
    generation = status.world.generation if status.world else 0
    if holder is not None and holder.incarnation < incarnation:
        # Members are created after the write that announces them: who is not known yet shows that the status is old.
        unknown = incarnation > holder.last_incarnation
        if unknown or is_successor(holder, incarnation, uid):
            return AgentCommand(f"wait:{generation}", "wait", generation)
        return AgentCommand(SUPERSEDED, "exit", code=ExitCode.STOPPED_UNSAVED)
    if holder is None or holder.incarnation > incarnation or holder.uid not in (None, uid):
        return AgentCommand(SUPERSEDED, "exit", code=ExitCode.STOPPED_UNSAVED)
    if status.phase in TERMINAL:
        code = ExitCode.COMPLETED if status.phase == "Succeeded" else _failed_code(status)
        return AgentCommand(f"exit:{status.phase}", "exit", code=code)
    if status.stop is not None:
        return AgentCommand(f"stop:{status.stop}", "stop", generation)
    world = status.world
    if world is None or status.recovery is not None or all(m.uid != uid for m in world.members):
        return AgentCommand(f"wait:{generation}", "wait", generation)
    stall = status.stall
    if stall is not None and stall.collecting and stall.generation == generation:
        return AgentCommand(stall.command, "dump", generation)
    resizing = status.resize is not None and status.resize.generation == generation
    if resizing or status.handover == generation:
        return AgentCommand(f"save:{generation}", "save", generation, leaves=holder.successor is not None)
    profile = status.profile.id if status.profile is not None and status.profile.generation == generation else ""
    succeeded = holder.successor is not None
    name = f"run:{generation}" + (":successor" if succeeded else "") + (f":profile:{profile}" if profile else "")
    step = status.checkpoint.step
    return AgentCommand(name, "run", generation, world, committed_step=step, successor=succeeded, profile=profile)


def _failed_code(status: JobStatus) -> int:
    code = status.last_failure.exit_code if status.last_failure is not None else None
    return code if code and code in set(ExitCode) else ExitCode.EXCEPTION
