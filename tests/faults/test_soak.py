"""What benchmarks/soak.py says of the other policy is what that policy costs."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("work", "faults", "seconds"),
    [
        (100.0, [], 100.0),
        (100.0, [70.0], 70 + 20 + 40),  # back to the checkpoint of second 60
        (100.0, [50.0], 50 + 20 + 100),  # back to the beginning
        (100.0, [70.0, 75.0], 75 + 20 + 40),  # a restart that is begun anew
        (60.0, [60.0], 60.0),  # it has ended by then
        (180.0, [130.0, 220.0], 130 + 20 + 60),  # 120 were kept, and the rest is done before the second one
    ],
)
def test_the_simulated_policy(
    monkeypatch: pytest.MonkeyPatch, work: float, faults: list[float], seconds: float
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    soak = importlib.import_module("soak")
    assert soak.simulated(work, faults, restart=20.0, interval=60.0) == pytest.approx(seconds)
