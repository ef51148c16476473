"""A cluster for the tests in this folder: `pytest tests/cluster --cluster=testbed` or `--cluster=existing` (what KUBECONFIG names).

Without the option they are left out. Where the testbed cannot run, a laptop skips them with the reason; in CI that is a failure.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.testbed import Cluster, ExistingCluster, TestbedUnavailableError
from tests.testbed.building import base_image
from tests.testbed.cluster import prepare
from tests.testbed.images import Image

PUBLIC_PYTHON = "docker.io/library/python:3.11-slim"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cluster",
        choices=("testbed", "existing"),
        help="the cluster for tests/cluster: the testbed, or what KUBECONFIG names",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    if config.getoption("--cluster", default=None) is None:
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]
        return
    for item in here:
        item.add_marker(pytest.mark.cluster)
    # those that start and end testbeds of their own need the computer before the shared one has it
    items.sort(key=lambda item: "cluster" in getattr(item, "fixturenames", ()))


def unavailable(reason: TestbedUnavailableError) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"no cluster to test on, which in CI is a failure: {reason}", pytrace=False)
    pytest.skip(str(reason))


@pytest.fixture(scope="session")
def images() -> list[Image]:
    """The images that the testbed's machines have from the start."""
    return [base_image()]


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[ExistingCluster]:
    """The cluster that the tests share. A testbed that runs already is used, and left running."""
    if request.config.getoption("--cluster") == "existing":
        kubeconfig = os.environ.get("KUBECONFIG")
        if not kubeconfig:
            pytest.fail("--cluster=existing: KUBECONFIG does not say which", pytrace=False)
        yield ExistingCluster(Path(kubeconfig))
        return
    running = Cluster.running()
    if running is not None:
        yield running
        return
    try:
        prepare()
        started = Cluster.up(*request.getfixturevalue("images"))
    except TestbedUnavailableError as reason:
        unavailable(reason)
        raise
    yield started
    started.down()


@pytest.fixture
def testbed(cluster: ExistingCluster) -> Cluster:
    """The cluster, for tests that kill machines or look at how it is made."""
    if not isinstance(cluster, Cluster):
        pytest.skip("kills machines: for the testbed only")
    return cluster


@pytest.fixture
def namespace(cluster: ExistingCluster) -> Iterator[str]:
    """A namespace of the test's own; everything in it ends with the test."""
    name = f"relight-test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
    cluster.kubectl("delete", "pods", "--all", f"--namespace={name}", "--grace-period=0", "--force", "--wait=false")


@pytest.fixture(scope="session")
def python_image(cluster: ExistingCluster) -> str:
    """The name of an image with Python 3.11, there on every machine of the testbed."""
    if not isinstance(cluster, Cluster):
        return PUBLIC_PYTHON
    image = base_image()
    cluster.load_image(image)
    return image.reference
