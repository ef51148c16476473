"""Durations as Kubernetes writes them: `90s`, `10m`, `1h30m`, `250ms`."""

import re

PATTERN = r"^([0-9]+(ms|s|m|h))+$"
EXAMPLES = "90s, 10m, 1h30m"
MAX_LENGTH = 64

_WHOLE = re.compile(PATTERN.removesuffix("$") + r"\Z")  # Python's $ would let a final newline pass
_PART = re.compile(r"([0-9]+)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# 9999 years: what a float and every clock still holds; more digits than this are a slip of the keyboard.
MAX_SECONDS = 3.15e11


def seconds(text: str) -> float:
    """`text` in seconds. Raises ValueError for anything that is not a duration.

    >>> seconds("1h30m")
    5400.0
    """
    if len(text) > MAX_LENGTH or not _WHOLE.match(text):
        raise ValueError(f"not a duration: {text[:MAX_LENGTH]!r}")
    total = sum(int(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    if total > MAX_SECONDS:
        raise ValueError(f"longer than 9999 years: {text}")
    return total
