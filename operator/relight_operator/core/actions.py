"""What `plan()` may ask for: the whole vocabulary, for pods and processes alike."""

from dataclasses import dataclass

from relight_operator.api.status import JobStatus


@dataclass(frozen=True)
class CreateMember:
    """Create the member of (slot, incarnation), or adopt it where it exists already and is ours."""

    slot: int
    incarnation: int
    avoid: tuple[str, ...] = ()  # machines to which it is not to come
    commit: str = ""  # of the job's code; "" before it is fixed


@dataclass(frozen=True)
class DeleteMember:
    """End a member: SIGTERM, then SIGKILL after `grace` seconds. Gone already is success."""

    slot: int
    incarnation: int
    uid: str
    grace: float


@dataclass(frozen=True)
class WriteStatus:
    """Write the whole status, against the resource version that was observed. Only then do agents hear of it."""

    status: JobStatus


@dataclass(frozen=True)
class EmitEvent:
    """Say something to people, once the status has been written."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class RequeueAfter:
    """Look again after `seconds` even if nothing happens."""

    seconds: float


Action = CreateMember | DeleteMember | WriteStatus | EmitEvent | RequeueAfter
