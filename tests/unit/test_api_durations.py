import pytest
from hypothesis import given
from hypothesis import strategies as st

from relight_operator.api.durations import seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("250ms", 0.25), ("1h1m1s1ms", 3661.001), ("0s", 0), ("1m1m", 120)],
)
def test_seconds_of_a_duration(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["", "5", "5min", "m5", "-5s", "1.5h", "5 s", "5s ", "5s\n", "5S", "\u0665s", "9" * 60 + "h", "1s" * 40, "1d"],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        seconds(text)


@given(st.text(alphabet="0123456789msh .-", max_size=70))
def test_text_is_a_number_of_seconds_or_refused(text: str) -> None:
    try:
        assert 0 <= seconds(text) < float("inf")
    except ValueError:
        pass
