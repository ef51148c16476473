"""A cluster for the tests in this folder: `--cluster=testbed` or `--cluster=existing` (what KUBECONFIG names).

Where the testbed cannot run, a laptop skips them with the reason; in CI that is a failure.
"""

import json
import os
import secrets
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from tests.cluster.relight import CHART, RELEASE, SYSTEM, Job, Operator
from tests.faults.telling import tell_costs
from tests.testbed import Cluster, ExistingCluster, TestbedError, TestbedUnavailableError
from tests.testbed.building import TARGETS, base_image, relight_image
from tests.testbed.cluster import prepare
from tests.testbed.images import Image, reference_of

PUBLIC_PYTHON = "docker.io/library/python:3.11-slim"
GPUS = "trainer.resources.limits.nvidia\\.com/gpu=8"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "at_the_end: judges what all other tests of the cluster have done")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure goes what its namespace and the operator had to say: both are gone when it is read."""
    report = yield
    found = getattr(item, "funcargs", {})
    if report.when == "call" and report.failed and {"cluster", "namespace"} <= found.keys():
        report.sections.append(("the cluster", said_of(found["cluster"], found["namespace"])))
    return report


def said_of(cluster: ExistingCluster, namespace: str) -> str:
    ours, system = f"-n={namespace}", f"-n={SYSTEM}"
    release = f"-l=app.kubernetes.io/instance={RELEASE}"
    tail = ("--prefix", "--timestamps", "--ignore-errors", "--max-log-requests=20")
    asked = [
        ("get", "trainingjobs", ours, "-o=yaml"),
        ("get", "pods", ours, "-o=wide"),
        ("get", "events", ours, "--sort-by=.lastTimestamp"),
        ("logs", ours, "-l=relight.dev/job", "--all-containers", "--tail=60", *tail),
        ("logs", system, release, "--tail=150", *tail),
    ]
    return "\n".join(f"$ kubectl {' '.join(words)}\n{answer_to(cluster, *words)}" for words in asked)


def answer_to(cluster: ExistingCluster, *words: str) -> str:
    try:
        return cluster.kubectl(*words)
    except TestbedError as error:
        return str(error)


def unavailable(reason: TestbedUnavailableError) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"no cluster to test on, which in CI is a failure: {reason}", pytrace=False)
    pytest.skip(str(reason))


@pytest.fixture(scope="session")
def relight_images() -> dict[str, Image]:
    """`operator` and `trainer`: of this checkout, from the cache or built for it, or those in the folder `$RELIGHT_TEST_IMAGES`.

    `make image IMAGE_FLAGS="--archives FOLDER"` writes such a folder.
    """
    folder = os.environ.get("RELIGHT_TEST_IMAGES")
    if folder is None:
        return {target: relight_image(target) for target in TARGETS}
    archives = {target: Path(folder) / f"{target}.tar" for target in TARGETS}
    return {target: Image(reference_of(archive), archive) for target, archive in archives.items()}


@pytest.fixture(scope="session")
def images(relight_images: dict[str, Image]) -> list[Image]:
    """The images that the testbed's machines have from the start."""
    return [base_image(), *relight_images.values()]


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


@pytest.fixture(scope="session")
def values(request: pytest.FixtureRequest, cluster: ExistingCluster) -> list[str]:
    """What Helm is told beside the chart's own values. In another cluster than the testbed: the file `$RELIGHT_TEST_VALUES`.

    In the testbed each member fills a machine, so that the scheduler has to preempt for real.
    """
    if not isinstance(cluster, Cluster):
        file = os.environ.get("RELIGHT_TEST_VALUES")
        return [f"--values={file}"] if file else []
    found = [f"--set={GPUS}"]
    for target, where in (("operator", "image"), ("trainer", "trainer.image")):
        image = request.getfixturevalue("relight_images")[target]
        cluster.load_image(image)
        repository, _, tag = image.reference.rpartition(":")
        found.append(f"--set-string={where}.repository={repository},{where}.tag={tag}")
    return found


@pytest.fixture(scope="session")
def operator(cluster: ExistingCluster, values: list[str]) -> Iterator[Operator]:
    """Relight, installed by its chart for all tests of the session."""
    if not isinstance(cluster, Cluster) and cluster.get("deployment", RELEASE, f"-n={SYSTEM}") is not None:
        pytest.fail(
            f"{SYSTEM} has a release of Relight already, which the tests would replace and remove", pytrace=False
        )
    cluster.helm("upgrade", "--install", RELEASE, CHART, f"-n={SYSTEM}", "--create-namespace", "--wait", *values)
    yield Operator(cluster)
    cluster.helm("uninstall", RELEASE, f"-n={SYSTEM}", "--wait", check=False)


@pytest.fixture
def job(operator: Operator, namespace: str, record_property: Callable[[str, object], None]) -> Iterator[Job]:
    """A TrainingJob's name in a namespace of the test's own; it ends with the test."""
    made = Job(operator.cluster, namespace, "digits")
    yield made
    tell_costs(record_property, made.status())
    made.kubectl("delete", "trainingjob", "digits", "--ignore-not-found", "--wait=false")


@pytest.fixture
def claim(testbed: Cluster, namespace: str, tmp_path: Path) -> Iterator[str]:
    """A claim for many writers, backed by a folder of this computer: all machines of the testbed see the same."""
    storage = tmp_path / "checkpoints"
    storage.mkdir()
    storage.chmod(0o777)
    wanted = {"accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": namespace}
    claimed = {"resources": {"requests": {"storage": "1Gi"}}, **wanted}
    volume = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": str(storage)},
    }
    core = {"apiVersion": "v1"}
    bodies = [
        {**core, "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": volume},
        {
            **core,
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "checkpoints", "namespace": namespace},
            "spec": claimed,
        },
    ]
    for body in bodies:
        testbed.kubectl("apply", "-f-", stdin=json.dumps(body))
    yield "checkpoints"
    testbed.kubectl("delete", "persistentvolume", namespace, "--wait=false")
