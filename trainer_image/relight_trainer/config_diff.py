"""How the configuration of a saved state differs from the present one, and whether training may go on with it.

Standard library only: what reads checkpoints runs in users' own images too.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relight_trainer.globs import fits

# They change nothing of what is trained.
_SAFE = ("data.index", "data.root", "evaluate", "init_from", "loader", "observe", "resume", "train.log_every")
_MAX_SHOWN = 60  # characters of a value


@dataclass(frozen=True)
class Difference:
    """At `path`, such as `optimizer.lr`, the saved configuration has `old` and the present one `new`; None: nothing."""

    path: str
    old: Any
    new: Any
    safe: bool  # whether it changes nothing of what is trained

    def __str__(self) -> str:
        if self.path.startswith("env."):  # of which the digests are known
            how = "is new" if self.old is None else "is gone" if self.new is None else "has another value"
            return f"{self.path} {how}"
        return f"{self.path}: {_shown(self.old)} -> {_shown(self.new)}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """The differences of two canonical configurations, by path."""
    by_metric = any(_kind(config, "schedule") == "plateau" for config in (old, new))
    return [
        Difference(path, was, now, _is_safe(path) and not (by_metric and fits(path, "evaluate")))
        for path, was, now in _walk(old, new, "")
    ]


def refused(found: Sequence[Difference], allowed: Sequence[str]) -> list[Difference]:
    """Those that are neither safe nor fit one of the patterns `allowed` (`optimizer.lr`, `schedule`, `*`)."""
    return [d for d in found if not d.safe and not any(fits(d.path, pattern) for pattern in allowed)]


def _walk(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _walk(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def _is_safe(path: str) -> bool:
    return any(fits(path, safe) for safe in _SAFE)


def _kind(config: Mapping[str, Any], section: str) -> Any:
    value = config.get(section)
    return value.get("type") if isinstance(value, Mapping) else None


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, default=str)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
