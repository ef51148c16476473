"""What is true of one job now: the store's word, asked for again wherever it could be behind."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from relight_agent.exits import CAUSE_CLASS, Cause
from relight_operator.api.durations import seconds
from relight_operator.api.job import DisruptionSpec
from relight_operator.api.status import JobStatus
from relight_operator.core.observed import MemberEnd, SlotView
from relight_operator.kube import names
from relight_operator.kube.backend import Backend
from relight_operator.kube.classifier import has_ended, is_deleting, slot_view, tells_why, unseen_end
from relight_operator.kube.client import EVENTS, JOBS, NODES, PODS, Body
from relight_operator.kube.errors import Forbidden, NotFound
from relight_operator.kube.machines import is_ready
from relight_operator.kube.names import Owner, pod_name
from relight_operator.kube.store import PodRecord

# Between two live lists of a job that is recovering: what a watch swallowed then would be waited for by everybody.
RELIST_SECONDS = 1.0
HINT_SECONDS = 1.0  # from a deletion until whoever ordered it has told why


@dataclass(frozen=True)
class Seen:
    members: tuple[SlotView, ...]
    records: Mapping[str, PodRecord]  # of this job's pods, by uid
    dead: frozenset[str]  # uids of members whose machine is dead, though their pods are still there
    look_again: float | None  # seconds until a silent machine may be taken for dead


class Observer:
    def __init__(self, backend: Backend) -> None:
        self._b = backend
        self._listed: dict[str, float] = {}  # by job: when its pods were last listed
        self._dead: set[str] = set()

    async def job(self, key: str) -> Body | None:
        """The job's object, read anew where it is suspect; None once it is gone."""
        if self._b.store.is_suspect(key):
            namespace, name = key.split("/")
            try:
                self._b.store.put_job(await self._b.client.get(JOBS, namespace, name))
            except NotFound:
                self._b.store.forget_job(key)
        return self._b.store.job(key)

    async def pods(self, owner: Owner, status: JobStatus, disruption: DisruptionSpec) -> Seen:
        """The members of the job, each uid that the status records checked before it is called gone."""
        key, now = owner.key, self._b.clock()
        wanted = {
            place.uid: pod_name(owner.name, slot.slot, place.incarnation)
            for slot in status.slots
            for place in (slot, slot.successor)
            if place is not None and place.uid is not None
        }
        known = self._b.store.pods(key)
        recovering = status.recovery is not None and now >= self._listed.get(key, 0.0) + RELIST_SECONDS
        if recovering or self._b.store.is_suspect(key) or any(uid not in known for uid in wanted):
            await self._list(key)
            self._b.store.trust(key)
        for uid, name in wanted.items():
            await self._confirm(key, uid, name)
            await self._ask_why(key, uid)
        self._drop(key, owner, set(wanted))
        records = {u: r for u, r in self._b.store.pods(key).items() if _owner_uid(r.body) == owner.uid}
        seen = await self._view(key, records, wanted, disruption)
        return replace(seen, members=(*seen.members, *await self._never_seen(key, status, records)))

    def forget(self, key: str) -> None:
        self._listed.pop(key, None)

    async def _list(self, key: str) -> None:
        namespace, name = key.split("/")
        found = await self._b.client.list(PODS, namespace, labels=f"{names.JOB_LABEL}={name}")
        self._b.store.see_pods(key, found, self._b.clock())
        self._listed[key] = self._b.clock()

    async def _confirm(self, key: str, uid: str, name: str) -> None:
        record = self._b.store.pods(key).get(uid)
        if record is None or not record.gone or record.confirmed:
            return
        try:
            found = await self._b.client.get(PODS, key.split("/", maxsplit=1)[0], name)
        except NotFound:
            found = None
        if found is not None and found["metadata"]["uid"] == uid:
            self._b.store.revive_pod(key, found, self._b.clock())
        else:
            self._b.store.lose_pod(key, uid, self._b.clock(), confirmed=True)

    async def _ask_why(self, key: str, uid: str) -> None:
        """What the cluster's events say of a deletion, where the pod itself does not: servers before 1.26.

        Asked while the pod lives, for a leaving member may hand over then, ever less often until they have told, and
        once more at its end.
        """
        record, now = self._b.store.pods(key).get(uid), self._b.clock()
        if record is None or record.hinted_at_end or not is_deleting(record.body):
            return
        ended = record.gone or has_ended(record.body)
        first_sign = record.first_sign if record.first_sign is not None else now
        asked = record.hinted if record.hinted is not None else first_sign
        if not ended and (tells_why(record.hints) or now < asked + max(HINT_SECONDS, asked - first_sign)):
            return
        conditions = record.body["status"].get("conditions") or ()
        told = any(c.get("type") == "DisruptionTarget" for c in conditions)
        hints = frozenset[str]() if told else await self._events_about(key, uid)
        self._b.store.hint(key, uid, hints, now, at_end=ended)

    async def _events_about(self, key: str, uid: str) -> frozenset[str]:
        """The reasons of the cluster's events about a pod."""
        try:
            events = await self._b.client.list(
                EVENTS, key.split("/", maxsplit=1)[0], fields=f"involvedObject.uid={uid}"
            )
        except Forbidden:
            return frozenset()  # they only refine a word
        return frozenset(str(e.get("reason", "")) for e in events)

    async def _never_seen(self, key: str, status: JobStatus, records: Mapping[str, PodRecord]) -> list[SlotView]:
        """Members that went before this operator first looked, where the cluster's events tell how."""
        found = []
        for slot in status.slots:
            if slot.uid is None or slot.uid in records:
                continue
            end = unseen_end(await self._events_about(key, slot.uid), self._b.clock())
            if end is not None:
                heard = self._b.mailbox.heard(key, slot.uid)
                found.append(
                    SlotView(slot.slot, slot.incarnation, slot.uid, machine=slot.machine, end=end, agent=heard)
                )
        return found

    def _drop(self, key: str, owner: Owner, wanted: set[str]) -> None:
        for uid, record in self._b.store.pods(key).items():
            if record.gone and (uid not in wanted or _owner_uid(record.body) != owner.uid):
                self._b.store.drop_pod(key, uid)
                self._dead.discard(uid)

    async def _view(
        self, key: str, records: Mapping[str, PodRecord], wanted: Mapping[str, str], disruption: DisruptionSpec
    ) -> Seen:
        now, unreachable = self._b.clock(), seconds(disruption.dead_machine.unreachable_for)
        members, waits = [], []
        for uid, record in records.items():
            machine = record.body["spec"].get("nodeName") or ""
            member = slot_view(
                record.body,
                gone=record.gone,
                first_sign=record.first_sign if record.first_sign is not None else now,
                agent=self._b.mailbox.heard(key, uid),
                hints=record.hints,
                machine_ready=self._b.machines.is_ready(machine),
                machine_leaving=self._b.machines.is_leaving(machine, disruption.watch_taints),
            )
            if member is None:
                continue
            if member.alive and uid in wanted:
                heard_at = member.agent.heard_at if member.agent is not None else None
                at = self._b.machines.dead_at(member.machine, heard_at, now, unreachable)
                if at is not None and at <= now and (uid in self._dead or await self._is_dead(key, member)):
                    self._dead.add(uid)
                    member = replace(member, end=_machine_lost(member, heard_at, now))
                elif at is not None:
                    waits.append(max(RELIST_SECONDS, at - now))
            members.append(member)
        dead = frozenset(u for u in self._dead if u in records)
        return Seen(tuple(members), records, dead, min(waits, default=None))

    async def _is_dead(self, key: str, member: SlotView) -> bool:
        """The live look that comes before anything is done about it."""
        now = self._b.clock()
        try:
            node = await self._b.client.get(NODES, None, member.machine)
        except NotFound:
            self._b.machines.remove(member.machine, now)
            return True
        self._b.machines.put(node, now)
        if is_ready(node):
            return False
        await self._list(key)
        record = self._b.store.pods(key).get(member.uid)
        return record is not None and not record.gone and not has_ended(record.body)


def _machine_lost(member: SlotView, heard_at: float | None, now: float) -> MemberEnd:
    # Whoever was heard of a second ago lived a second ago.
    at = heard_at if heard_at is not None else now
    message = f"machine {member.machine} does not answer"
    return MemberEnd(Cause.MACHINE_LOST, CAUSE_CLASS[Cause.MACHINE_LOST], at, message=message)


def _owner_uid(body: Mapping[str, Any]) -> str:
    return str(names.controller_of(body).get("uid", ""))
