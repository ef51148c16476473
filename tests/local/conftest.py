"""Homes for jobs, which must be left empty, and the run without faults that all others are compared with."""

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import SEED, Finished, Home, Job
from tests.faults.telling import tell_costs


@pytest.fixture
def random_from_seed(request: pytest.FixtureRequest) -> random.Random:
    """Another stream for each test, the same again with the printed seed."""
    return random.Random(f"{SEED}/{request.node.name}")


def left_empty(home: Home) -> None:
    left = home.leftovers()
    home.power_cut()
    assert not left, f"left behind: {left}"


@pytest.fixture
def home(tmp_path: Path, record_property: Callable[[str, object], None]) -> Iterator[Home]:
    home = Home(tmp_path / "home")
    yield home
    tell_costs(record_property, home.status())
    left_empty(home)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """A job that nothing happened to."""
    home, job = Home(tmp_path_factory.mktemp("finished")), Job()
    result = home.run(job)
    assert result.code == 0, result.said
    yield Finished(home, job, result)
    left_empty(home)


@pytest.fixture(scope="session")
def digest(finished: Finished) -> str:
    return finished.result.digest


@pytest.fixture(scope="session", autouse=True)
def _signals_as_a_shell_leaves_them() -> None:
    """Whoever runs the tests under nohup, or in the background of a script, hands ignored signals down to them."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
