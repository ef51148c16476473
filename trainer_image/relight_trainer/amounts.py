"""Amounts of memory and shapes, as people write and read them. Imports no torch."""

import re

from relight_agent.exits import ExitCode

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class BadSize(Exception):
    """What was given is not an amount of memory, or not a shape."""

    exit_code = ExitCode.BAD_CONFIG


def size(text: str) -> int:
    """Bytes: `80GiB`, `80Gi`, `141GB`, `1.5e9B`. Raises BadSize: without a unit nobody knows what was meant."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) ?(?:([KMGT]i?)B?|B)", text)
    if match is None and re.fullmatch(r"[0-9.]+(e[0-9]+)?", text):
        raise BadSize(f'"{text}" has no unit; allowed: {text}GiB, {text}GB, {text}MiB, ..., {text}B')
    try:
        assert match is not None
        return int(float(match[1]) * _UNITS[match[2] or ""])
    except (AssertionError, KeyError, ValueError):
        raise BadSize(f'"{text}" is not an amount of memory; allowed: 80GiB, 141GB, ...') from None


def shape(text: str) -> tuple[int, ...]:
    """`3x224x224`. Raises BadSize."""
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", text):
        raise BadSize(f'"{text}" is not the shape of a sample; allowed: 3x224x224, 16, ...')
    return tuple(map(int, text.split("x")))


def amount(count: int) -> str:
    """Bytes as a person reads them.

    >>> amount(1536)
    '1.5 KiB'
    """
    value, units = float(count), iter(("KiB", "MiB", "GiB", "TiB"))
    unit = "B"
    while value >= 1024 and (larger := next(units, None)):
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
