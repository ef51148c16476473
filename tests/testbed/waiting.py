"""Waiting for a condition instead of sleeping and hoping."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from tests.testbed.errors import TestbedError

T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_for(condition: Callable[[], T], seconds: float, what: str, interval: float = 0.05) -> T:
    """Returns the first true value of `condition()`, asked every `interval` seconds.

    Raises TestbedError naming `what` when there is none within `seconds`.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TestbedError(f"{what}: not within {seconds:g} s")
        time.sleep(interval)
    return found
