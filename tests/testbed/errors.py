"""What can go wrong with the testbed."""


class TestbedError(RuntimeError):
    """The testbed did not do what it should; the message says what to look at."""

    __test__ = False  # pytest would take the name for a test


class TestbedUnavailableError(TestbedError):
    """This computer cannot carry the testbed (not root, not Linux, ...): a reason to skip, except in CI."""
