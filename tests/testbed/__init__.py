"""A Kubernetes cluster of three machines on this one, for tests that talk to the real thing.

`Cluster.up()` starts it; README.md says what it is made of.
"""

from tests.testbed.cluster import Cluster, ExistingCluster
from tests.testbed.errors import TestbedError, TestbedUnavailableError

__all__ = ["Cluster", "ExistingCluster", "TestbedError", "TestbedUnavailableError"]
