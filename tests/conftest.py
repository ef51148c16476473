"""Which tests run where: those in tests/cluster want a cluster, named by `--cluster`; in CI that is the testbed.

Several processes share the tests (pytest-xdist, `make test`): one has all of the cluster's, beside it others have a file each.
"""

import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# How long an example takes is this computer's business.
settings.register_profile("relight", deadline=None)
settings.load_profile("relight")

# Drawn once, for all processes.
SEED = os.environ.setdefault("RELIGHT_TEST_SEED", str(random.SystemRandom().randrange(10**6)))

CLUSTER, LOCAL = (Path(__file__).parent / name for name in ("cluster", "local"))
BUILDING_SECONDS = 2400  # Kubernetes from source, beside other tests
LEFT_OUT = pytest.StashKey[int]()


def pytest_report_header() -> str:
    return f"RELIGHT_TEST_SEED={SEED} draws the steps and moments of faults"


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
        if (told := getattr(config, "workeroutput", None)) is not None:
            told["left out"] = len(here)
        items[:] = [item for item in items if item not in here]
    else:
        for item in here:
            item.add_marker(pytest.mark.cluster)
        if here:
            min(here, key=_place).add_marker(pytest.mark.timeout(BUILDING_SECONDS))
    items.sort(key=_place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):  # xdist's own loadgroup does nothing under pytest 9.2
        def _split_scope(self, nodeid: str) -> str:
            return "cluster" if nodeid.startswith("tests/cluster/") else super()._split_scope(nodeid)

    return ByFile(config, log)


def _place(item: pytest.Item) -> int:
    """The cluster's tests take longest; those that start and end testbeds of their own come before the shared one is there,
    those that judge all others at the end. Beside them goes what needs one core at a time, and then whole jobs.
    """
    if not item.path.is_relative_to(CLUSTER):
        return 8 + item.path.is_relative_to(LOCAL)
    return ("cluster" in getattr(item, "fixturenames", ())) + (item.get_closest_marker("at_the_end") is not None)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if count := getattr(node, "workeroutput", {}).get("left out"):
        node.config.stash[LEFT_OUT] = count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(
            f"{count} tests of tests/cluster were left out, they need a Kubernetes cluster: `make test CLUSTER=testbed` builds one "
            "on this computer (as root), `make test CLUSTER=existing` takes what KUBECONFIG names"
        )
