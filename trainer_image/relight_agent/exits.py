"""The exit codes of a member, and what each one means: one table for status, metrics, events and docs.

torchrun's own exit code says nothing (1 even after a clean stop), so the agent ends with one of these and says the
same in its termination message.
"""

import enum
from typing import Dict, NamedTuple, Optional


class Class(str, enum.Enum):
    """How an end is treated: who pays for it, and whether to try again."""

    COMPLETED = "completed"
    FINAL = "final"  # retrying cannot help
    COUNTED = "counted"  # a failure, paid from retry.failures
    STORAGE = "storage"  # counted apart from the job's own failures
    COLLATERAL = "collateral"  # caused by another member's end
    DISRUPTION = "disruption"  # through no fault of the job: free
    MACHINE = "machine"  # free, and the machine is avoided

    def __str__(self) -> str:
        return self.value


class Cause(str, enum.Enum):
    """The reason of an end as status, events and metrics name it."""

    COMPLETED = "Completed"
    BAD_CONFIG = "BadConfig"
    BAD_DATA = "BadData"
    EXCEPTION = "Exception"
    STALL = "Stall"
    PEER_LOST = "PeerLost"
    MACHINE_UNHEALTHY = "MachineUnhealthy"
    STORAGE_FAILED = "StorageFailed"
    STOPPED = "Stopped"  # SIGTERM, and the backend knows no better name
    OUT_OF_MEMORY = "OutOfMemory"
    NON_FINITE_LOSS = "NonFiniteLoss"
    RANKS_DIFFER = "RanksDiffer"
    # What only a backend can know of a member's end.
    PREEMPTED = "Preempted"
    DELETED = "Deleted"
    MACHINE_LOST = "MachineLost"
    EVICTED = "Evicted"
    MACHINE_PRESSURE = "MachinePressure"
    MACHINE_SHUTDOWN = "MachineShutdown"
    MACHINE_LEAVING = "MachineLeaving"  # its end was announced, and another member took over before it came
    REJECTED = "Rejected"  # the machine refused it before anything ran
    LIMIT_EXCEEDED = "LimitExceeded"  # a limit of its own, other than memory's
    VANISHED = "Vanished"
    SUSPENDED = "Suspended"
    RESIZED = "Resized"

    def __str__(self) -> str:
        return self.value


class Manner(str, enum.Enum):
    """How a failed worker ended, in addition to its exit code. Only DIED can be caused by the machine."""

    UNKNOWN = ""  # a plain command, or an older agent
    DIED = "died"  # without an exception: killed, or a crash in native code
    EXITED = "exited"  # sys.exit with a number
    RAISED = "raised"  # an exception, or sys.exit with a text
    PERMANENT = "permanent"  # an exception that every other try would meet

    def __str__(self) -> str:
        return self.value


class ExitCode(enum.IntEnum):
    COMPLETED = 0
    BAD_CONFIG = 64
    BAD_DATA = 65
    EXCEPTION = 70
    STALL = 71
    PEER_LOST = 72
    MACHINE_UNHEALTHY = 73
    STORAGE_FAILED = 74
    STOPPED_SAVED = 75
    STOPPED_UNSAVED = 76
    OUT_OF_MEMORY = 77
    NON_FINITE_LOSS = 78
    RANKS_DIFFER = 79


class Exit(NamedTuple):
    cause: Cause
    klass: Class
    meaning: str


EXITS: Dict[ExitCode, Exit] = {
    ExitCode.COMPLETED: Exit(Cause.COMPLETED, Class.COMPLETED, "training completed"),
    ExitCode.BAD_CONFIG: Exit(Cause.BAD_CONFIG, Class.FINAL, "the configuration is wrong"),
    ExitCode.BAD_DATA: Exit(Cause.BAD_DATA, Class.FINAL, "the data, or every checkpoint, cannot be used"),
    ExitCode.EXCEPTION: Exit(Cause.EXCEPTION, Class.COUNTED, "the training code raised an exception or died"),
    ExitCode.STALL: Exit(Cause.STALL, Class.COUNTED, "a worker made no progress"),
    ExitCode.PEER_LOST: Exit(Cause.PEER_LOST, Class.COLLATERAL, "another member was lost"),
    ExitCode.MACHINE_UNHEALTHY: Exit(Cause.MACHINE_UNHEALTHY, Class.MACHINE, "the machine cannot run this job"),
    ExitCode.STORAGE_FAILED: Exit(Cause.STORAGE_FAILED, Class.STORAGE, "the checkpoint storage failed"),
    ExitCode.STOPPED_SAVED: Exit(Cause.STOPPED, Class.DISRUPTION, "stopped for a disruption, state saved"),
    ExitCode.STOPPED_UNSAVED: Exit(Cause.STOPPED, Class.DISRUPTION, "stopped for a disruption, state not saved"),
    ExitCode.OUT_OF_MEMORY: Exit(Cause.OUT_OF_MEMORY, Class.COUNTED, "out of memory"),
    ExitCode.NON_FINITE_LOSS: Exit(Cause.NON_FINITE_LOSS, Class.COUNTED, "the loss is not finite"),
    ExitCode.RANKS_DIFFER: Exit(
        Cause.RANKS_DIFFER, Class.FINAL, "ranks hold different values where all must hold the same"
    ),
}

# A backend's causes, which no exit code carries.
CAUSE_CLASS: Dict[Cause, Class] = {
    **{e.cause: e.klass for e in EXITS.values()},
    Cause.PREEMPTED: Class.DISRUPTION,
    Cause.DELETED: Class.DISRUPTION,
    Cause.MACHINE_LOST: Class.DISRUPTION,
    Cause.EVICTED: Class.DISRUPTION,
    Cause.MACHINE_PRESSURE: Class.DISRUPTION,
    Cause.MACHINE_SHUTDOWN: Class.DISRUPTION,
    Cause.MACHINE_LEAVING: Class.DISRUPTION,
    Cause.REJECTED: Class.DISRUPTION,
    Cause.LIMIT_EXCEEDED: Class.COUNTED,
    Cause.VANISHED: Class.DISRUPTION,
    Cause.SUSPENDED: Class.DISRUPTION,
    Cause.RESIZED: Class.DISRUPTION,
}

# What a rule about retries may name: failures of the job or its storage, and ends for which a machine is to blame.
_RULED_CLASSES = (Class.FINAL, Class.COUNTED, Class.STORAGE, Class.MACHINE)
# Ranks that differ hold no state to go on from: a retry would spread one rank's values and end in a wrong success.
RULED_CAUSES = tuple(c for c, k in CAUSE_CLASS.items() if k in _RULED_CLASSES and c is not Cause.RANKS_DIFFER)

# The root cause of a generation is chosen by class first, then by age: a peer's exception always follows the loss.
CLASS_ORDER = (
    Class.FINAL,
    Class.COUNTED,
    Class.STORAGE,
    Class.MACHINE,
    Class.DISRUPTION,
    Class.COLLATERAL,
    Class.COMPLETED,
)


def exit_of(code: Optional[int]) -> Exit:
    """The meaning of an exit code. One that is not ours (a library called `sys.exit(3)`) is an exception's.

    >>> exit_of(72).klass
    <Class.COLLATERAL: 'collateral'>
    """
    try:
        return EXITS[ExitCode(code)]  # type: ignore[arg-type]  # ExitCode(None) raises ValueError like any other stranger
    except ValueError:
        return EXITS[ExitCode.EXCEPTION]
