"""Whether a job's object is right: found out beside the event loop, and within a time."""

import asyncio
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from relight_agent.files import clip
from relight_operator.api.job import TrainingJob
from relight_operator.api.validate import parse_job
from relight_operator.errors import InvalidJob
from relight_operator.kube.spec import problems_in_a_cluster

SECONDS = 10.0  # the largest object that is looked at takes less than one
AT_ONCE = 2  # more threads would only take the interpreter from the event loop


class Checked(NamedTuple):
    job: TrainingJob | None
    problems: str  # "" for a job that is right
    size: int = 0  # bytes of its spec as JSON
    final: bool = True  # False: it took too long, and may be tried again


class Checker:
    """Belongs to one event loop."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._turn = asyncio.Semaphore(AT_ONCE)
        # A check that takes too long goes on to its end, and must not take the place of the others.
        self._threads = ThreadPoolExecutor(2 * AT_ONCE, "check")

    async def check(self, body: Mapping[str, Any]) -> Checked:
        """The job in an object from the server, or what is wrong with it. The time counts from its turn on."""
        async with self._turn:
            running = asyncio.get_running_loop().run_in_executor(self._threads, checked, body)
            try:
                return await asyncio.wait_for(running, self._seconds)
            except TimeoutError:
                words = f"to check it takes longer than {self._seconds:.0f} s: make it smaller, or wait for another try"
                return Checked(None, words, final=False)


def checked(body: Mapping[str, Any]) -> Checked:
    try:
        job = parse_job({k: v for k, v in body.items() if k != "status"})
        if wrong := problems_in_a_cluster(job):
            raise InvalidJob(wrong)
    except InvalidJob as error:
        return Checked(None, clip(str(error)))
    return Checked(job, "", len(json.dumps(body.get("spec"))))
