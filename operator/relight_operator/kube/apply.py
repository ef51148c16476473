"""The actions of a plan, carried out on an API server. What stands in the way is a `Hindrance`, told to people."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from relight_agent.files import clip
from relight_operator.api.job import API_VERSION, KIND
from relight_operator.core.actions import CreateMember, DeleteMember, EmitEvent
from relight_operator.kube import names
from relight_operator.kube.classifier import Pod, has_ended, is_deleting
from relight_operator.kube.client import CONFIG_MAPS, EVENTS, PODS, SERVICES, Body, Client
from relight_operator.kube.conditions import Hindrance
from relight_operator.kube.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    NamespaceTerminating,
    NotFound,
    PodSecurity,
    QuotaExceeded,
)
from relight_operator.kube.names import Owner, pod_name
from relight_operator.kube.overlay import dropped
from relight_operator.kube.pods import Coordinator, pod, service
from relight_operator.kube.spec import Frozen, NotOurs, confirm, manifest
from relight_operator.kube.status import rfc3339
from relight_operator.kube.store import PodRecord

_POLICIES = ("admission webhook", "ValidatingAdmissionPolicy")  # in a refusal: they look at more than the template


async def create_member(
    client: Client, owner: Owner, member: CreateMember, frozen: Frozen, coordinator: Coordinator
) -> Body | Hindrance:
    """The pod of the member, made now or before; or what is in its way. Raises KubeError for what passes by itself."""
    body = _pod(owner, member, frozen, coordinator)
    try:
        return await client.create(PODS, owner.namespace, body)
    except AlreadyExists:
        found = await client.get(PODS, owner.namespace, body["metadata"]["name"])
        return found if names.controller_of(found).get("uid") == owner.uid else _taken(found, owner)
    except (Forbidden, Invalid) as error:
        return _hindrance(error)


async def trial(client: Client, owner: Owner, frozen: Frozen, coordinator: Coordinator) -> Hindrance | str | None:
    """What the server says of a pod as this job's template makes it, before the job is frozen.

    Text where it would never take one: the template is wrong. A hindrance where somebody else may mend it. None where it
    takes the pod, may take it soon, or cannot be asked. Raises KubeError where it cannot say now.
    """
    template = frozen.spec.trainer.template
    if template is None:
        return None
    body = _pod(owner, CreateMember(0, 0), frozen, coordinator)
    body["metadata"]["name"] += "-trial"  # an older job's pod may still be there
    try:
        made = await client.create(PODS, owner.namespace, body, dry_run=True)
    except (AlreadyExists, QuotaExceeded, NamespaceTerminating):
        return None
    except Forbidden as error:  # a class or an account that is not there yet, a policy
        return _hindrance(error)
    except Invalid as error:
        said = str(error)
        if "does not support dry run" in said:  # a webhook that does something beside its answer is not asked
            return None
        if any(words in said for words in _POLICIES):
            return _hindrance(error)
    else:
        unknown = dropped(template, made)
        said = f"it does not know {', '.join(unknown)}" if unknown else ""
    return clip(f"the server does not take a pod as spec.trainer.template makes it: {said}") if said else None


def _pod(owner: Owner, member: CreateMember, frozen: Frozen, coordinator: Coordinator) -> Body:
    return pod(owner, member, frozen.job_file, frozen.spec, frozen.defaults, frozen.config_map, coordinator)


def _hindrance(error: Forbidden | Invalid) -> Hindrance:
    match error:
        # A victim in its grace period counts against the quota: waiting is all there is to do.
        case QuotaExceeded():
            condition, retry = "QuotaExceeded", 2.0
        case PodSecurity():
            condition, retry = "PodSecurity", 60.0
        case NamespaceTerminating():
            condition, retry = "NamespaceTerminating", 60.0
        case Forbidden():
            condition, retry = "CreateForbidden", 30.0
        case _:
            condition, retry = "PodRefused", 60.0
    return Hindrance(condition, clip(str(error)), retry)


async def delete_member(client: Client, owner: Owner, action: DeleteMember) -> None:
    """Gone already is success, and so is another pod of that name."""
    await delete_pod(
        client, owner.namespace, pod_name(owner.name, action.slot, action.incarnation), action.uid, action.grace
    )


async def delete_pod(client: Client, namespace: str, name: str, uid: str, grace: float | None = None) -> None:
    try:
        await client.delete(PODS, namespace, name, uid=uid, grace=grace)
    except (NotFound, Conflict):
        pass


async def ensure_service(client: Client, owner: Owner) -> Hindrance | None:
    """The job's headless Service is there; None, or who else has its name."""
    try:
        await client.create(SERVICES, owner.namespace, service(owner))
    except AlreadyExists:
        found = await client.get(SERVICES, owner.namespace, owner.name)
        return None if names.controller_of(found).get("uid") == owner.uid else _taken(found, owner)
    except (Forbidden, Invalid) as error:
        return Hindrance("CreateForbidden", clip(str(error)), 30.0)
    return None


async def ensure_frozen(client: Client, owner: Owner, frozen: Frozen) -> Hindrance | None:
    """The ConfigMap of the frozen spec is there; None, or what is in its way. Raises KubeError for what passes by itself."""
    name = frozen.config_map
    try:
        await client.create(CONFIG_MAPS, owner.namespace, manifest(frozen, owner))
    except AlreadyExists:
        try:
            confirm(await client.get(CONFIG_MAPS, owner.namespace, name), frozen, owner)
        except NotOurs as error:
            return refused(name, error)
    except (Forbidden, Invalid) as error:
        hindrance = _hindrance(error)
        condition = "CreateForbidden" if hindrance.condition == "PodRefused" else hindrance.condition
        return replace(
            hindrance, condition=condition, message=clip(f"ConfigMap {name} cannot be made: {error}"), retry=30.0
        )
    return None


def refused(config_map: str, why: NotOurs) -> Hindrance:
    """Nothing is run of a frozen spec that is not ours."""
    message = (
        f"ConfigMap {config_map}: {why}; nothing is run of it: delete it, and it is made anew if the job is what it was"
    )
    return Hindrance("FrozenSpecRefused", clip(message), 30.0)


def superseded(records: Mapping[str, PodRecord], incarnations: Mapping[int, int]) -> Iterable[tuple[str, Pod]]:
    """Ended pods that nobody needs any more: (uid, pod) of each but the present and the previous one of every slot.

    The previous one stays for its log.
    """
    for uid, record in records.items():
        _, slot, incarnation = ["", "", *record.body["metadata"]["name"].rsplit("-", 2)][-3:]
        if record.gone or is_deleting(record.body) or not has_ended(record.body):
            continue
        if slot.isdigit() and incarnation.isdigit() and int(incarnation) < incarnations.get(int(slot), 0) - 1:
            yield uid, record.body


async def emit(client: Client, owner: Owner, event: EmitEvent, now: float) -> None:
    """Post an Event about the job. Raises KubeError."""
    at = rfc3339(now)
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{owner.name}.{uuid.uuid4().hex[:16]}", "namespace": owner.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": owner.namespace,
            "name": owner.name,
            "uid": owner.uid,
        },
        "reason": event.reason,
        "message": clip(event.message),
        "type": "Warning" if event.warning else "Normal",
        "source": {"component": names.COMPONENT},
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
    await client.create(EVENTS, owner.namespace, body)


def _taken(found: Mapping[str, Any], owner: Owner) -> Hindrance:
    """Whose is an object that has the name we need?"""
    name, reference = found["metadata"]["name"], names.controller_of(found)
    if reference.get("kind") == KIND and reference.get("name") == owner.name:
        message = f"{name} belongs to an earlier job of this name and has not ended yet"
        return Hindrance("WaitingForOldPods", message, 1.0)
    holder = f"{reference.get('kind')}/{reference.get('name')}" if reference else "nobody"
    return Hindrance("NameConflict", f"{name} exists and belongs to {holder}: rename the job, or remove it", 15.0)
