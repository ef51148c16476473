"""Amounts as Kubernetes writes them."""

import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relight_operator.api import quantities
from relight_operator.api.quantities import amount

# The pattern that Kubernetes' own resources carry.
KUBERNETES = (
    r"(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?"
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", "8"), ("500m", "0.5"), ("1.5", "1.5"), (".5", "0.5"), ("5.", "5"), ("+2", "2"), ("64Gi", 64 * 2**30), ("1.5Ki", 1536),
        ("1k", 1000), ("1E", 10**18), ("1Ei", 2**60), ("1e3", 1000), ("1E3", 1000), ("2e-2", "0.02"), ("100n", "0.0000001"), ("3u", "0.000003"),
    ],
)  # fmt: skip
def test_an_amount_is_exact(text: str, value: str | int) -> None:
    assert amount(text) == Decimal(value)


@pytest.mark.parametrize(
    "text",
    ["", "Gi", ".", "-1", "1 Gi", "1GB", "1gi", "1K", "1mi", "0x10", "1e", "1e1.5", "1e999", "٣", "8\n", "9" * 33, "1_000", "nan", "inf"],
)  # fmt: skip
def test_what_no_server_takes_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        amount(text)


@given(
    st.from_regex(quantities.PATTERN.replace("$", r"\Z"), fullmatch=True).filter(
        lambda t: len(t) <= quantities.MAX_LENGTH and t.isascii()
    )
)
def test_each_of_ours_is_one_of_kubernetes(text: str) -> None:
    assert re.fullmatch(KUBERNETES, text)
    assert amount(text) >= 0


@given(st.integers(0, 10**9), st.sampled_from(["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]))
def test_binary_units_are_powers_of_1024(number: int, unit: str) -> None:
    power = "KMGTPE".index(unit[0]) + 1
    assert Fraction(amount(f"{number}{unit}")) == Fraction(number) * 1024**power
