"""Which tests run where: those in tests/cluster want a cluster, named by `--cluster`; in CI that is the testbed."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes is this computer's business.
settings.register_profile("relight", deadline=None)
settings.load_profile("relight")

CLUSTER = Path(__file__).parent / "cluster"
LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cluster",
        choices=("testbed", "existing"),
        default="testbed" if os.environ.get("CI") == "true" else None,
        help="the cluster for tests/cluster: the testbed (the default where CI=true), or what KUBECONFIG names; "
        "without one they are left out",
    )
    parser.addoption("--long", action="store_true", help="the tests that take many minutes too, as `make faults` does")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    here = [item for item in items if item.path.is_relative_to(CLUSTER)]
    if config.getoption("--cluster") is None:
        config.hook.pytest_deselected(items=here)
        config.stash[LEFT_OUT] = len(here)
        items[:] = [item for item in items if item not in here]
        return
    for item in here:
        item.add_marker(pytest.mark.cluster)
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    """Those that start and end testbeds of their own need the computer before the shared one has it; some judge all others."""
    if not item.path.is_relative_to(CLUSTER):
        return 0
    return 1 + ("cluster" in getattr(item, "fixturenames", ())) + (item.get_closest_marker("at_the_end") is not None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(
            f"{count} tests of tests/cluster were left out, they need a Kubernetes cluster: `make test CLUSTER=testbed` builds one "
            "on this computer (as root), `make test CLUSTER=existing` takes what KUBECONFIG names"
        )
