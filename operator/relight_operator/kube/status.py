"""The status as an API server keeps it: the same model, times for people in RFC 3339, and patches of it.

One model, converted at this edge. In `JobStatus` every instant is unix seconds; on the wire those that people and other
tools read (`WIRE_TIMES`, among them metav1.Condition's) are RFC 3339 with microseconds, and those that only the
operator computes with stay numbers.
"""

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from relight_agent.files import clip
from relight_operator.api.status import Condition, JobStatus
from relight_operator.kube.slim import UNREADABLE

Json = dict[str, Any]


class NotOurs(ValueError):
    """Something else stands where a status of Relight's should."""


WIRE_TIMES = (
    ("startTime",),
    ("completionTime",),
    ("lastFailure", "time"),
    ("progress", "updated"),
    ("conditions", "*", "lastTransitionTime"),
    ("slots", "*", "exit", "time"),
    ("stall", "since"),
    ("stall", "found"),
    ("stragglers", "*", "since"),
    ("history", "*", "since"),
)
# What grows with what agents and people say; control must not depend on it.
_NOT_CONTROL = (("progress",), ("result", "metrics"), ("checkpoint", "notices"), ("stragglers",), ("history",))


_YEAR_10000 = 253_402_300_800.0  # unix seconds: RFC 3339 ends there


def rfc3339(seconds: float) -> str:
    """As in metav1.Time, with microseconds.

    >>> rfc3339(1700000000.25)
    '2023-11-14T22:13:20.250000Z'
    """
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def unix_seconds(text: str) -> float:
    """The instant of an RFC 3339 text. Raises ValueError."""
    return dt.datetime.fromisoformat(text).timestamp()


def parse(raw: Mapping[str, Any] | None) -> JobStatus:
    """The status in an object from the server. Raises NotOurs for one that is none."""
    found = raw or {}
    if UNREADABLE in found:
        raise NotOurs(f"the status is not one of Relight's: {clip(str(found[UNREADABLE]))}")
    try:
        return JobStatus.model_validate(_converted(found, _to_seconds))
    except ValidationError as error:  # its own text quotes what it has found
        places = ", ".join(".".join(map(str, e["loc"])) for e in error.errors(include_url=False)[:3])
        raise NotOurs(f"the status is not one of Relight's: {clip(places)}") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise NotOurs(f"the status is not one of Relight's: {clip(str(error))}") from None


def dump(status: JobStatus) -> Json:
    """The JSON object that is written, without empty texts: absent means the same, and some servers take "" for null."""
    return _converted(_without_empty(status.dump()), _to_text)


def merge_patch(raw: Mapping[str, Any], known: Mapping[str, Any], new: Mapping[str, Any]) -> Json:
    """The JSON merge patch (RFC 7396) that turns `raw`, as the server has it, into `new`: null where a key is to go.

    `known` is what was understood of `raw`: keys beyond it are a newer version's, and stay. Lists are replaced whole.
    """
    patch: Json = {key: None for key in known if key in raw and key not in new}
    for key, value in new.items():
        before = raw.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inside = known.get(key)
            inner = merge_patch(before, inside if isinstance(inside, Mapping) else {}, value)
            if inner:
                patch[key] = inner
        elif key not in raw or before != value:
            patch[key] = value
    return patch


def control_only(patch: Json) -> Json:
    """`patch` without what is only told to people: for a server that refused the whole."""
    for *parents, last in _NOT_CONTROL:
        patch = _without(patch, parents, last)
    return patch


def _without(value: Json, parents: list[str], last: str) -> Json:
    if not parents:
        return {k: v for k, v in value.items() if k != last}
    inner = value.get(parents[0])
    if not isinstance(inner, Mapping):
        return value
    return {**value, parents[0]: _without(dict(inner), parents[1:], last)}


def with_condition(status: JobStatus, condition: Condition) -> JobStatus:
    """`status` with `condition`, whose time is now; one that said the same keeps its own, and so does `status`."""
    old = next((c for c in status.conditions if c.type == condition.type), None)
    if old is not None and old.status == condition.status:
        condition = condition.model_copy(update={"last_transition_time": old.last_transition_time})
    if old == condition:
        return status
    kept = [c for c in status.conditions if c.type != condition.type]
    return status.model_copy(update={"conditions": [*kept, condition]})


def _without_empty(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_empty(v) for k, v in value.items() if v != ""}
    return [_without_empty(v) for v in value] if isinstance(value, list) else value


def _converted(value: Mapping[str, Any], convert: Callable[[Any], Any]) -> Json:
    converted = dict(value)
    for path in WIRE_TIMES:
        converted = _at(converted, path, convert)
    return converted


def _at(value: Any, path: tuple[str, ...], convert: Callable[[Any], Any]) -> Any:
    if not path:
        return convert(value)
    head, rest = path[0], path[1:]
    if head == "*":
        return [_at(v, rest, convert) for v in value] if isinstance(value, list) else value
    if not isinstance(value, Mapping) or value.get(head) is None:
        return value
    return {**value, head: _at(value[head], rest, convert)}


def _to_seconds(value: Any) -> Any:
    if isinstance(value, str):
        return unix_seconds(value)
    if isinstance(value, (int, float)) and not 0.0 <= value < _YEAR_10000:
        raise ValueError("a time out of range")
    return value


def _to_text(value: Any) -> Any:
    return rfc3339(value) if isinstance(value, (int, float)) else value
