"""What an API server's answer means: one tree, and one table from (status, reason, cause) to exactly one class.

KubeError
  NotFound                 404
  AlreadyExists            409 on a name that is taken
  Conflict                 409 on a resource version or a precondition: observe again
  Gone                     410 a list or watch that has expired: list again
  Invalid                  400, 422 and what else cannot become right by trying again
  Unauthorized             401 our own credentials
  Forbidden                403 by RBAC: a person must act
    QuotaExceeded          403 by a quota; a pod in its grace period still counts, so it may pass by itself
    PodSecurity            403 by an admission policy
    NamespaceTerminating   403 the namespace is going: nothing more is to be made in it
  Retryable                the same request may succeed later
    TooManyRequests        429, and what carries Retry-After
    Unavailable            5xx, time-outs, no connection: on a create the outcome is unknown
  NotConfigured            neither a service account nor a KUBECONFIG says which server
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class KubeError(Exception):
    """`str()` is the server's message; `status` the HTTP status, 0 where there was no answer."""

    def __init__(
        self, message: str = "", *, status: int = 0, reason: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class NotConfigured(KubeError):
    pass


class NotFound(KubeError):
    pass


class AlreadyExists(KubeError):
    pass


class Conflict(KubeError):
    pass


class Gone(KubeError):
    pass


class Invalid(KubeError):
    pass


class Unauthorized(KubeError):
    pass


class Forbidden(KubeError):
    pass


class QuotaExceeded(Forbidden):
    pass


class PodSecurity(Forbidden):
    pass


class NamespaceTerminating(Forbidden):
    pass


class Retryable(KubeError):
    pass


class TooManyRequests(Retryable):
    pass


class Unavailable(Retryable):
    pass


class Answer(NamedTuple):
    """What the table looks at: HTTP status, `Status.reason`, the reasons of its causes, its message."""

    status: int
    reason: str
    causes: frozenset[str]
    message: str


class Rule(NamedTuple):
    matches: Callable[[Answer], bool]
    klass: type[KubeError]


def _status(*codes: int) -> Callable[[Answer], bool]:
    return lambda a: a.status in codes


# The first rule that matches. 403 and 409 mean several things each, and old servers say which in words only.
TABLE: tuple[Rule, ...] = (
    Rule(_status(401), Unauthorized),
    Rule(lambda a: a.status == 403 and "NamespaceTerminating" in a.causes, NamespaceTerminating),
    Rule(lambda a: a.status == 403 and "because it is being terminated" in a.message, NamespaceTerminating),
    Rule(lambda a: a.status == 403 and ("exceeded quota" in a.message or "failed quota" in a.message), QuotaExceeded),
    Rule(lambda a: a.status == 403 and ("violates PodSecurity" in a.message or "PodSecurityPolicy" in a.message), PodSecurity),
    Rule(_status(403), Forbidden),
    Rule(_status(404), NotFound),
    Rule(lambda a: a.status == 409 and a.reason == "AlreadyExists", AlreadyExists),
    Rule(_status(409), Conflict),
    Rule(_status(410), Gone),
    Rule(_status(408), Unavailable),
    Rule(_status(429), TooManyRequests),
    Rule(lambda a: 400 <= a.status < 500, Invalid),
    Rule(lambda _: True, Unavailable),
)  # fmt: skip


def error_of(status: int, body: Any = None, *, retry_after: str | None = None) -> KubeError:
    """The error that an answer stands for. `body`: a Status object, or whatever came instead of one."""
    value: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    details = value.get("details") if isinstance(value.get("details"), Mapping) else {}
    causes = frozenset(str(c.get("reason", "")) for c in (details or {}).get("causes") or () if isinstance(c, Mapping))
    message = str(value.get("message") or "") or (f"HTTP {status}" if status else "no answer")
    answer = Answer(status, str(value.get("reason") or ""), causes, message)
    klass = next(rule.klass for rule in TABLE if rule.matches(answer))
    return klass(message, status=status, reason=answer.reason, retry_after=_seconds(retry_after))


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdigit() else None
