"""Whether a job's object is right: found out beside the event loop, and within a time."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from relight_agent.files import clip
from relight_operator.api.job import TrainingJob
from relight_operator.api.validate import parse_job
from relight_operator.errors import InvalidJob
from relight_operator.kube.spec import problems_in_a_cluster

SECONDS = 10.0  # the largest object that is looked at takes less than one


class Checked(NamedTuple):
    job: TrainingJob | None
    problems: str  # "" for a job that is right
    size: int  # bytes of its spec as JSON


async def check(body: Mapping[str, Any], seconds: float = SECONDS) -> Checked:
    """The job in an object from the server, or what is wrong with it.

    A thread that takes longer than `seconds` goes on to its end; nobody waits for it.
    """
    try:
        return await asyncio.wait_for(asyncio.to_thread(checked, body), seconds)
    except TimeoutError:
        return Checked(None, f"checking it takes longer than {seconds:.0f} s: make it smaller", 0)


def checked(body: Mapping[str, Any]) -> Checked:
    try:
        job = parse_job({k: v for k, v in body.items() if k != "status"})
        if wrong := problems_in_a_cluster(job):
            raise InvalidJob(wrong)
    except InvalidJob as error:
        return Checked(None, clip(str(error)), 0)
    return Checked(job, "", len(json.dumps(body.get("spec"))))
