"""What the watches have shown: jobs, and the pods of each. A cache; the API server is the truth.

Watches end, and what was deleted meanwhile is never mentioned again. So nothing here is believed to be gone before the
reconciler has asked: `suspect` marks a job whose objects are to be read anew.
"""

import calendar
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from relight_operator.kube import names, slim
from relight_operator.kube.classifier import has_ended, is_deleting

Body = dict[str, Any]


@dataclass(frozen=True)
class PodRecord:
    """What was last seen of a pod."""

    body: Body  # as `slim.pod` leaves it
    gone: bool = False  # the object has been removed
    confirmed: bool = False  # and a live look has shown that too
    first_sign: float | None = None  # unix seconds at which its deletion or end was first seen
    hints: frozenset[str] = frozenset()  # reasons of the cluster's events about it
    hinted: float | None = None  # unix seconds at which they were last asked for
    hinted_at_end: bool = False  # they were asked for after its end: there will be no other


class Store:
    """Belongs to one event loop. Keys are `namespace/name` of the job."""

    def __init__(self) -> None:
        self._jobs: dict[str, Body] = {}
        self._pods: dict[str, dict[str, PodRecord]] = {}  # by job, by uid
        self._suspects: set[str] = set()

    # -- jobs

    def put_job(self, body: Body) -> str:
        """Take a job in, unless something newer is known; its key."""
        key = job_key(body)
        known = self._jobs.get(key)
        if known is None or not _older(body, known):
            self._jobs[key] = slim.job(body)
        return key

    def remove_job(self, body: Mapping[str, Any]) -> str:
        """The job was deleted; one of the same name that was made since stays."""
        key = job_key(body)
        known = self._jobs.get(key)
        if known is not None and known["metadata"]["uid"] == body["metadata"]["uid"]:
            del self._jobs[key]
        return key

    def forget_job(self, key: str) -> None:
        self._jobs.pop(key, None)
        self._pods.pop(key, None)
        self._suspects.discard(key)

    def job(self, key: str) -> Body | None:
        return self._jobs.get(key)

    def jobs(self) -> dict[str, Body]:
        """A copy of the table of all jobs, by key."""
        return dict(self._jobs)

    # -- pods

    def put_pod(self, body: Body, now: float) -> str | None:
        """Take a pod in, unless something newer is known; the key of its job, None for a stranger's pod."""
        key = _job_of_pod(body)
        if key is not None:
            self.put_pod_of(key, body, now)
        return key

    def put_pod_of(self, key: str, body: Body, now: float) -> None:
        """As `put_pod`, where the job is known though labels may have been edited."""
        pods = self._pods.setdefault(key, {})
        uid = body["metadata"]["uid"]
        known = pods.get(uid)
        if known is not None and (known.confirmed or _older(body, known.body)):
            return
        first_sign = known.first_sign if known is not None else None
        if first_sign is None and (is_deleting(body) or has_ended(body)):
            first_sign = now if known is not None else min(now, _own_times(body, now))
        seen = known if known is not None else PodRecord(body)
        pods[uid] = replace(seen, body=slim.pod(body), gone=False, first_sign=first_sign)

    def remove_pod(self, body: Body, now: float) -> str | None:
        """The pod was deleted: what it said last is kept, for the reason of its end."""
        key = _job_of_pod(body)
        if key is None:
            return None
        self.put_pod_of(key, body, now)
        self.lose_pod(key, body["metadata"]["uid"], now)
        return key

    def lose_pod(self, key: str, uid: str, now: float, *, confirmed: bool = False) -> None:
        known = self._pods.get(key, {}).get(uid)
        if known is not None and not known.confirmed:
            first_sign = known.first_sign if known.first_sign is not None else now
            self._pods[key][uid] = replace(known, gone=True, confirmed=confirmed, first_sign=first_sign)

    def see_pods(self, key: str, bodies: Iterable[Body], now: float) -> None:
        """A live list of all pods of the job, taken after every create that is known of."""
        living = set()
        for body in bodies:
            self.put_pod_of(key, body, now)
            living.add(body["metadata"]["uid"])
        for uid, record in list(self._pods.get(key, {}).items()):
            if uid not in living and not record.gone:
                self.lose_pod(key, uid, now)

    def hint(self, key: str, uid: str, hints: frozenset[str], now: float, *, at_end: bool) -> None:
        known = self._pods.get(key, {}).get(uid)
        if known is not None:
            self._pods[key][uid] = replace(known, hints=hints, hinted=now, hinted_at_end=at_end)

    def revive_pod(self, key: str, body: Body, now: float) -> None:
        """It was thought to be gone, and a live look has found it."""
        uid = body["metadata"]["uid"]
        known = self._pods.get(key, {}).get(uid)
        if known is not None and known.gone:
            self._pods[key][uid] = replace(known, gone=False, first_sign=None)
        self.put_pod_of(key, body, now)

    def drop_pod(self, key: str, uid: str) -> None:
        """Nobody will ask about it any more."""
        self._pods.get(key, {}).pop(uid, None)

    def pods(self, key: str) -> dict[str, PodRecord]:
        """A copy of the table of the job's pods, by uid."""
        return dict(self._pods.get(key, {}))

    def keys_on(self, machine: str) -> list[str]:
        """The jobs that have a pod on this machine."""
        return [
            k for k, pods in self._pods.items() if any(r.body["spec"]["nodeName"] == machine for r in pods.values())
        ]

    # -- doubt

    def suspect(self, key: str) -> None:
        """The job's objects are to be read anew."""
        self._suspects.add(key)

    def is_suspect(self, key: str) -> bool:
        return key in self._suspects

    def trust(self, key: str) -> None:
        self._suspects.discard(key)


def job_key(body: Mapping[str, Any]) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"


def _job_of_pod(body: Mapping[str, Any]) -> str | None:
    job = (body["metadata"].get("labels") or {}).get(names.JOB_LABEL)
    return f"{body['metadata']['namespace']}/{job}" if job else None


def _older(new: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether `new` is an earlier state of the same object than `known`."""
    if new["metadata"].get("uid") != known["metadata"].get("uid"):
        return False
    a, b = (str(body["metadata"].get("resourceVersion") or "") for body in (new, known))
    return a.isdigit() and b.isdigit() and int(a) < int(b)


def _own_times(body: Body, now: float) -> float:
    """The first sign of an end that was not seen live, by the object's own words, in whole seconds."""
    metadata = body["metadata"]
    times = []
    if metadata.get("deletionTimestamp"):
        # It names the end of the grace period.
        times.append(_seconds(metadata["deletionTimestamp"]) - float(metadata.get("deletionGracePeriodSeconds") or 0))
    for container in (body.get("status") or {}).get("containerStatuses") or ():
        finished = ((container.get("state") or {}).get("terminated") or {}).get("finishedAt")
        if finished:
            times.append(_seconds(finished))
    return min(times, default=now)


def _seconds(text: str) -> float:
    return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")))
