"""Amounts as Kubernetes writes them: `8`, `500m`, `1.5`, `64Gi`, `1e3`; none below zero."""

import re
from decimal import Decimal

PATTERN = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?$"
EXAMPLES = "8, 500m, 64Gi"
MAX_LENGTH = 32

_WHOLE = re.compile(PATTERN.removesuffix("$") + r"\Z")  # Python's $ would let a final newline pass
_PARTS = re.compile(r"([0-9.]+)(.*)")
_FACTORS = {
    **{unit: Decimal(1024) ** (i + 1) for i, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))},
    **{unit: Decimal(1000) ** (i - 3) for i, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"))},
}


def amount(text: str) -> Decimal:
    """The exact value of `text`. Raises ValueError for anything that is not a quantity.

    >>> amount("1.5Ki")
    Decimal('1536.0')
    """
    if len(text) > MAX_LENGTH or not _WHOLE.match(text):
        raise ValueError(f"not a quantity: {text[:MAX_LENGTH]!r}")
    parts = _PARTS.search(text)
    assert parts is not None
    number, unit = parts.groups()
    return Decimal(number) * _FACTORS[unit] if unit in _FACTORS else Decimal(number + unit)


def is_whole(value: Decimal) -> bool:
    """Whether it has no fraction, however large it is: `%` fails beyond the context's precision."""
    return value == value.to_integral_value()
