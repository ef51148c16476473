"""A job's PodDisruptionBudget: evictions, so a drain too, take one member at a time."""

from typing import Any, NamedTuple

from relight_agent.files import clip
from relight_operator.api.job import KIND, JobSpec
from relight_operator.api.status import TERMINAL, JobStatus
from relight_operator.kube import names
from relight_operator.kube.client import BETA_BUDGETS, BUDGETS, Body, Client
from relight_operator.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from relight_operator.kube.leading import NotLeading
from relight_operator.kube.names import Owner
from relight_operator.kube.pods import job_labels, metadata

RETRY_SECONDS, SOON_SECONDS = 60.0, 2.0


def least_available(spec: JobSpec, status: JobStatus) -> int:
    """How many members evictions must leave: all but one of those that train, and 0 where no budget is wanted.

    Slots that no machine is found for do not count, or an elastic job that has become smaller could never be moved.
    """
    if spec.disruption.pod_disruption_budget == "None" or status.phase in {*TERMINAL, "Suspended"}:
        return 0
    return len(status.world.members) - 1 if status.world is not None else 0


def budget(owner: Owner, least: int, version: str) -> dict[str, Any]:
    return {
        "apiVersion": version,
        "kind": "PodDisruptionBudget",
        "metadata": metadata(owner, owner.name),
        # A member that is not ready does no work that an eviction could cost. (Servers before 1.26 do not know the field.)
        "spec": {
            "minAvailable": least,
            "selector": {"matchLabels": job_labels(owner)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


class Settled(NamedTuple):
    least: int
    problem: str = ""  # why it is not so
    retry: float | None = None  # seconds until it is to be tried again; None: it is so


async def settle(client: Client, owner: Owner, least: int) -> Settled:
    """The job's budget leaves `least` members, or is gone for 0.

    No training waits for a budget, so nothing is raised but NotLeading.
    """
    try:
        return await _settle(client, owner, least)
    except NotLeading:
        raise
    except KubeError as error:
        return Settled(least, clip(str(error) or type(error).__name__), RETRY_SECONDS)


async def _settle(client: Client, owner: Owner, least: int) -> Settled:
    done = Settled(least)
    if least:
        try:
            await _create(client, owner, least)
        except AlreadyExists:
            pass
        else:
            return done
    found = await _find(client, owner)
    reference = names.controller_of(found or {})
    if found is not None and reference.get("uid") == owner.uid:
        if found["spec"].get("minAvailable") == least:
            return done
        await _delete(client, owner, found)
        if least:
            await _create(client, owner, least)
        return done
    if not least:
        return done
    if found is None or (reference.get("kind"), reference.get("name")) == (KIND, owner.name):
        return Settled(least, retry=SOON_SECONDS)  # that of an earlier job of this name, which is going
    message = f"a PodDisruptionBudget {owner.name} exists that is not the job's: remove it, or rename the job"
    return Settled(least, message, RETRY_SECONDS)


# policy/v1 is there from Kubernetes 1.21 on, its beta to 1.24.


async def _create(client: Client, owner: Owner, least: int) -> None:
    try:
        await client.create(BUDGETS, owner.namespace, budget(owner, least, "policy/v1"))
    except NotFound:
        await client.create(BETA_BUDGETS, owner.namespace, budget(owner, least, "policy/v1beta1"))


async def _find(client: Client, owner: Owner) -> Body | None:
    try:
        return await client.get(BUDGETS, owner.namespace, owner.name)
    except NotFound:
        pass
    try:
        return await client.get(BETA_BUDGETS, owner.namespace, owner.name)
    except NotFound:
        return None


async def _delete(client: Client, owner: Owner, found: Body) -> None:
    namespace, name, uid = owner.namespace, owner.name, found["metadata"]["uid"]
    try:
        if found.get("apiVersion") == "policy/v1beta1":
            await client.delete(BETA_BUDGETS, namespace, name, uid=uid)
        else:
            await client.delete(BUDGETS, namespace, name, uid=uid)
    except (NotFound, Conflict):
        pass  # gone, or another's by now
