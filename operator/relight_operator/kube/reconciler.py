"""One round for one job: observe, plan, apply, one status write, events."""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, assert_never

from relight_operator.again import Way, judge, revived
from relight_operator.api.job import TrainingJob
from relight_operator.api.status import TERMINAL, JobStatus
from relight_operator.core.actions import CreateMember, DeleteMember, EmitEvent, RequeueAfter, WriteStatus
from relight_operator.core.observed import Observed
from relight_operator.core.plan import plan
from relight_operator.frozen import frozen_changes
from relight_operator.kube import apply, names, network, trouble
from relight_operator.kube import status as wire
from relight_operator.kube.backend import Backend
from relight_operator.kube.budget import Settled, least_available, settle
from relight_operator.kube.cache import WeightedCache
from relight_operator.kube.checking import Checked, Checker
from relight_operator.kube.client import CONFIG_MAPS, JOBS, PODS, Body
from relight_operator.kube.conditions import Annotated, Hindrance
from relight_operator.kube.errors import Conflict, Invalid, KubeError, NotFound
from relight_operator.kube.names import Owner
from relight_operator.kube.observe import Observer, Seen
from relight_operator.kube.spec import Frozen, NotOurs, effective, freeze, load
from relight_operator.kube.store import job_key

_log = logging.getLogger(__name__)
_ASK_AGAIN_SECONDS = 60.0  # a server that does not take a job's pods
_MAX_LATE = 50  # paths in a message
_CACHE_BYTES = 48 << 20  # of all jobs' specs; what does not fit is read from the server again
_IN_MEMORY = 16  # bytes of Python's objects for one of JSON; 24 at worst
_ENTRY_BYTES = 16_384  # of a small one (benchmarks/operator_memory.py)


class _Known(NamedTuple):
    """What has been read of one version of a job's object, so that a report costs no validation."""

    uid: str
    generation: int
    job: TrainingJob | None
    problems: str


@dataclass
class _Caches:
    """What stays from round to round."""

    checker: Checker = field(default_factory=Checker)
    known: WeightedCache[_Known] = field(default_factory=lambda: WeightedCache(_CACHE_BYTES))  # by job
    frozen: WeightedCache[Frozen] = field(default_factory=lambda: WeightedCache(_CACHE_BYTES))  # by uid of the job
    uids: dict[str, str] = field(default_factory=dict)  # by job: the one whose entries are here
    late: dict[str, tuple[tuple[int, str], list[str]]] = field(default_factory=dict)  # by uid of the job
    served: set[str] = field(default_factory=set)  # uids of jobs whose Service is known to be there
    connections: set[str] = field(default_factory=set)  # uids of jobs whose NetworkPolicy is known to be there
    budgets: dict[str, tuple[Settled, float]] = field(default_factory=dict)  # by uid of the job, and when
    published: dict[str, str] = field(default_factory=dict)  # by job: the version that the coordinator answers from


class Reconciler:
    """`on_write(job, old, new)` is told of each status that the server has taken."""

    def __init__(
        self, backend: Backend, on_write: Callable[[Owner, JobStatus, JobStatus], None] = lambda *_: None
    ) -> None:
        self._b = backend
        self._observer = Observer(backend)
        self._caches = _Caches()
        self._on_write = on_write

    async def reconcile(self, key: str) -> float | None:
        """Bring the job nearer to what it wants.

        Returns the seconds until it is to be looked at again, None for when something happens. Raises KubeError.
        """
        body = await self._observer.job(key)
        if body is None:
            self._forget(key)
            return None
        try:
            return await _Round(self._b, self._observer, self._caches, self._on_write, body).run()
        except Exception as error:
            await trouble.tell(self._b, key, error)
            raise

    def _forget(self, key: str) -> None:
        caches = self._caches
        caches.known.pop(key)
        uid = caches.uids.pop(key, None)
        if uid is not None:
            caches.frozen.pop(uid)
            caches.late.pop(uid, None)
            caches.served.discard(uid)
            caches.connections.discard(uid)
            caches.budgets.pop(uid, None)
        caches.published.pop(key, None)
        self._b.mailbox.drop(key)
        self._observer.forget(key)
        self._b.store.forget_job(key)


def publish(backend: Backend, published: dict[str, str], body: Body, status: JobStatus) -> None:
    """From now on agents are answered from this status, which the server has acknowledged."""
    key = job_key(body)
    version = f"{body['metadata']['uid']} {body['metadata'].get('resourceVersion')}"
    if published.get(key) != version:
        published[key] = version
        backend.mailbox.publish(key, body["metadata"]["uid"], status)


def _weight(found: Checked) -> int:
    return found.size * _IN_MEMORY + len(found.problems) + _ENTRY_BYTES


class _Round:
    def __init__(
        self,
        backend: Backend,
        observer: Observer,
        caches: _Caches,
        on_write: Callable[[Owner, JobStatus, JobStatus], None],
        body: Body,
    ) -> None:
        self.b = backend
        self.observer = observer
        self.caches = caches
        self.on_write = on_write
        self.body = body
        self.key = job_key(body)
        metadata = body["metadata"]
        self.owner = Owner(metadata["namespace"], metadata["name"], metadata["uid"])
        self.now = backend.clock()
        self.status = JobStatus()
        self.hindered = False  # by something that has been told
        self.events: list[EmitEvent] = []
        self.delays: list[float] = []

    async def run(self) -> float | None:
        if self.body["metadata"].get("deletionTimestamp"):
            return None
        known = await self._read()
        raw = self.body.get("status") or {}
        try:
            self.status = wire.parse(raw)
        except wire.NotOurs as error:
            raise Invalid(str(error)) from None
        publish(self.b, self.caches.published, self.body, self.status)
        frozen = await self._frozen_spec(raw, known)
        if frozen is None:
            if known.problems and not self.hindered and self.status.phase not in TERMINAL:
                await self._refuse(known.problems)
            return min(self.delays, default=None)
        if known.job is not None and self._is_mended(frozen, known.job):
            return await self._start_anew(frozen)
        spec, late = frozen.spec, list[str]()
        if known.job is not None:
            spec, late = effective(frozen.spec, known.job.spec), self._late(frozen, known.job, known.generation)
        hindrances = await self._service()
        seen = await self.observer.pods(self.owner, self.status, spec.disruption)
        observed = Observed(
            name=self.owner.name,
            spec=spec,
            status=self.status,
            members=seen.members,
            config_hash=frozen.job_file.config_hash,
            listening_since=self.b.mailbox.listening_since(self.key, self.owner.uid),
            profile=names.profile_of(self.body),
            jitter=random.random(),  # noqa: S311  # no secret
        )
        actions = plan(observed, self.now)
        after = self.status
        for action in actions:
            if isinstance(action, CreateMember):
                hindrances += await self._create(action, frozen)
            elif isinstance(action, DeleteMember):
                await apply.delete_member(self.b.client, self.owner, action)
            elif isinstance(action, WriteStatus):
                after = action.status
            elif isinstance(action, EmitEvent):
                self.events.append(action)
            elif isinstance(action, RequeueAfter):
                self.delays.append(action.seconds)
            else:
                assert_never(action)
        noted = Annotated(after, self.now)
        noted.hindrances(hindrances)
        budgeted, _ = self.caches.budgets.get(self.owner.uid, (Settled(0), 0.0))
        noted.warn("BudgetMissing", ("NotCreated", budgeted.problem) if budgeted.problem else None)
        noted.late_edits(late, known.problems)
        noted.readiness(self._current(seen, after), frozen.spec, self.owner.namespace)
        noted.warn("Invalid", None)
        wrote = await self._write(noted, {"spec": {"hash": frozen.hash, "configMap": frozen.config_map}})
        await self._tidy(seen, noted.status, force=spec.disruption.dead_machine.force_delete)
        await self._guard(least_available(spec, noted.status))
        self.delays += [h.retry for h in hindrances]
        if seen.look_again is not None:
            self.delays.append(seen.look_again)
        created = any(isinstance(a, CreateMember) for a in actions) and not hindrances
        return 0.0 if wrote or created else min(self.delays, default=None)

    # -- what is wanted

    async def _read(self) -> _Known:
        """The spec is not kept: it is read from the server for each edit, and where there was no room for it."""
        generation = self.body["metadata"].get("generation", 0)
        known = self.caches.known.get(self.key)
        if known is not None and (known.uid, known.generation) == (self.owner.uid, generation):
            return known
        before = self.caches.uids.get(self.key)
        if before not in {None, self.owner.uid}:
            self.caches.frozen.pop(before or "")
        self.caches.uids[self.key] = self.owner.uid
        whole = await self._whole()
        found = await self.caches.checker.check(whole)
        known = _Known(self.owner.uid, self.body["metadata"].get("generation", 0), found.job, found.problems)
        if found.final:
            self.caches.known.put(self.key, known, _weight(found))
        else:
            self.delays.append(_ASK_AGAIN_SECONDS)
        return known

    async def _whole(self) -> Body:
        """The job's object with its spec, as it is now; from then on this round goes by that version."""
        try:
            whole = await self.b.client.get(JOBS, self.owner.namespace, self.owner.name)
        except NotFound:
            whole = None
        if whole is None or whole["metadata"]["uid"] != self.owner.uid:
            self.b.store.suspect(self.key)
            raise Conflict(f"{self.key} is gone, or another job has its name")
        self.b.store.put_job(whole)
        self.body = self.b.store.job(self.key) or self.body
        return whole

    async def _frozen_spec(self, raw: Body, known: _Known) -> Frozen | None:
        """What the job was at its first start, which may be now; None for one that cannot start, or has ended."""
        frozen = self.caches.frozen.get(self.owner.uid)
        if frozen is not None:
            return frozen
        kept = raw["spec"] if isinstance(raw.get("spec"), dict) else {}
        if kept.get("configMap") is not None:
            frozen = await self._kept(str(kept["configMap"]), str(kept.get("hash") or ""), known)
            if frozen is not None:
                self.caches.frozen.put(self.owner.uid, frozen, frozen.size * _IN_MEMORY + _ENTRY_BYTES)
            return frozen
        if known.job is None or self.status.phase in TERMINAL:
            return None
        # Until a status that names it has been taken, an edit may still replace it.
        frozen = freeze(known.job, self.owner, self.b.defaults)
        found = await apply.trial(self.b.client, self.owner, frozen, self.b.coordinator())
        if found is not None:
            await (self._refuse(found) if isinstance(found, str) else self._wait_for(found))
            self.delays.append(found.retry if isinstance(found, Hindrance) else _ASK_AGAIN_SECONDS)
            return None
        return await self._ensured(frozen)

    async def _ensured(self, frozen: Frozen) -> Frozen | None:
        hindrance = await apply.ensure_frozen(self.b.client, self.owner, frozen)
        if hindrance is None:
            return frozen
        await self._wait_for(hindrance)
        self.delays.append(hindrance.retry)
        return None

    def _late(self, frozen: Frozen, job: TrainingJob, generation: int) -> list[str]:
        """The first paths of edits that came too late. A large spec is compared once for each of its versions."""
        version = (generation, frozen.hash)
        found, late = self.caches.late.get(self.owner.uid, (None, []))
        if found != version:
            late = frozen_changes(frozen.spec, job.spec)[:_MAX_LATE]
            self.caches.late[self.owner.uid] = version, late
        return late

    def _is_mended(self, frozen: Frozen, job: TrainingJob) -> bool:
        """Whether the job has failed before its first step and has been edited since: then nothing is frozen."""
        return self.status.phase == "Failed" and judge(frozen.spec, job.spec, self.status).way is Way.ANEW

    async def _start_anew(self, frozen: Frozen) -> float:
        """Forget what the job was; the next round freezes what it is now. Its ConfigMap of before goes with the job."""
        self.caches.frozen.pop(self.owner.uid)
        self.events.append(EmitEvent("Edited", "no step had been done: the job starts again as it is now"))
        noted = Annotated(revived(self.status), self.now)
        noted.late_edits([], "")
        if not await self._write(noted, {"spec": None}):
            raise Invalid(f"{self.key}: the status of {frozen.config_map} was not replaced")
        return 0.0

    async def _kept(self, name: str, digest: str, known: _Known) -> Frozen | None:
        try:
            return load(await self.b.client.get(CONFIG_MAPS, self.owner.namespace, name), self.owner, digest)
        except NotOurs as error:
            if self.status.phase in TERMINAL:
                return None
            hindrance = apply.refused(name, error)
            await self._wait_for(hindrance)
            self.delays.append(hindrance.retry)
            return None
        except NotFound:
            if self.status.phase in TERMINAL:
                return None
            again = freeze(known.job, self.owner, self.b.defaults) if known.job is not None else None
            if again is None or again.config_map != name or not again.hash.startswith(digest):
                raise Invalid(f"ConfigMap {name} of {self.key} is gone, and the job is not what it was") from None
            return await self._ensured(again)

    async def _refuse(self, problems: str) -> None:
        noted = Annotated(self.status.model_copy(update={"phase": "Invalid"}), self.now)
        noted.warn("Invalid", ("InvalidSpec", problems))
        noted.hindrances([])
        await self._write(noted, {})

    async def _wait_for(self, hindrance: Hindrance) -> None:
        """Of a job that has not begun and may still be edited; or whose frozen spec is not to be had."""
        self.hindered = True
        phase = self.status.phase if self.status.slots else "Pending"
        noted = Annotated(self.status.model_copy(update={"phase": phase}), self.now)
        noted.warn("Invalid", None)
        noted.hindrances([hindrance])
        await self._write(noted, {})

    # -- what is made

    async def _service(self) -> list[Hindrance]:
        if self.owner.uid in self.caches.served or self.status.phase in TERMINAL:
            return []
        hindrance = await apply.ensure_service(self.b.client, self.owner)
        if hindrance is not None:
            return [hindrance]
        self.caches.served.add(self.owner.uid)
        return []

    async def _connections(self, frozen: Frozen) -> Hindrance | None:
        """The job's NetworkPolicy is there, where one is wanted."""
        if self.owner.uid in self.caches.connections or not network.is_wanted(frozen.spec, self.b.network):
            return None
        hindrance = await network.ensure(self.b.client, self.owner, self.b.network)
        if hindrance is None:
            self.caches.connections.add(self.owner.uid)
        return hindrance

    async def _create(self, action: CreateMember, frozen: Frozen) -> list[Hindrance]:
        hindrance = await self._connections(frozen)
        if hindrance is not None:  # never a member that anybody may join
            return [hindrance]
        made = await apply.create_member(self.b.client, self.owner, action, frozen, self.b.coordinator())
        if isinstance(made, Hindrance):
            heirs = {(s.slot, s.successor.incarnation) for s in self.status.slots if s.successor is not None}
            waits = made.condition == "QuotaExceeded" and (action.slot, action.incarnation) in heirs
            return [replace(made, quiet=waits)]
        self.b.store.put_pod_of(self.key, made, self.now)
        return []

    async def _tidy(self, seen: Seen, after: JobStatus, *, force: bool) -> None:
        """Remove pods that nobody needs; give whoever holds an old certificate of the coordinator the new one.

        `force`: what is left of pods on dead machines too.
        """
        client, namespace = self.b.client, self.owner.namespace
        for uid, pod in apply.superseded(seen.records, {s.slot: s.incarnation for s in after.slots}):
            await apply.delete_pod(client, namespace, pod["metadata"]["name"], uid)
        current = {p.uid for s in after.slots for p in (s, s.successor) if p is not None}
        for uid in (seen.dead - current) if force else ():
            await apply.delete_pod(client, namespace, seen.records[uid].body["metadata"]["name"], uid, grace=0)
        bundle = self.b.coordinator().ca_bundle
        for uid in {m.uid for m in seen.members if m.alive} & current:
            metadata = seen.records[uid].body["metadata"]
            held = (metadata.get("annotations") or {}).get(names.CA_ANNOTATION)
            if held not in (None, bundle):
                patch = {"metadata": {"annotations": {names.CA_ANNOTATION: bundle}}}
                await client.patch(PODS, namespace, metadata["name"], patch)
        self.b.mailbox.forget(self.key, {m.uid for m in seen.members})

    async def _guard(self, least: int) -> None:
        """Evictions leave `least` members. Last in a round: what the job itself needs comes first."""
        known = self.caches.budgets.get(self.owner.uid)
        if known is None and not least and self.status.world is None:
            return  # it has not been running: there is none
        before, at = known or (Settled(-1), 0.0)
        wait = 0.0 if before.least != least else before.retry
        if wait is not None and self.now >= at + wait:
            after = await settle(self.b.client, self.owner, least)
            self.caches.budgets[self.owner.uid] = after, self.now
            wait = 0.0 if after.problem != before.problem else after.retry  # it is to be said
            at = self.now
        if wait is not None:
            self.delays.append(at + wait - self.now)

    # -- what is said

    def _current(self, seen: Seen, after: JobStatus) -> list[Body | None]:
        records = [seen.records.get(s.uid or "") for s in after.slots if not s.released]
        return [r.body if r is not None and not r.gone else None for r in records]

    async def _write(self, noted: Annotated, beside: Body) -> bool:
        """Write the status if it has changed; whether it had. Events follow only what the server has taken."""
        noted.warn(trouble.CONDITION, None)
        after = noted.status.model_copy(update={"observed_generation": self.body["metadata"].get("generation", 0)})
        raw, told = self.body.get("status") or {}, wire.dump(after)
        patch = wire.merge_patch(raw, wire.dump(self.status), {**told, **beside})
        if not patch:
            return False
        try:  # once it is written, a status that cannot be read stops its job for ever
            wire.parse(told)
        except wire.NotOurs as error:
            raise Invalid(f"a status of {self.key} was not written: {error}") from None
        answer = await self._patch(patch)
        self.b.store.put_job(answer)
        taken = wire.parse(answer.get("status"))
        publish(self.b, self.caches.published, answer, taken)
        self.on_write(self.owner, self.status, taken)
        for event in (*self.events, *noted.events):
            try:
                await apply.emit(self.b.client, self.owner, event, self.now)
            except KubeError as error:
                _log.warning("%s: the event %s could not be posted: %s", self.key, event.reason, error)
        return True

    async def _patch(self, patch: Body) -> Body:
        client, owner = self.b.client, self.owner
        version = {"resourceVersion": self.body["metadata"]["resourceVersion"]}
        body = {"metadata": version, "status": patch}
        try:
            return await client.patch(JOBS, owner.namespace, owner.name, body, status=True)
        except Conflict:
            self.b.store.suspect(self.key)
            raise
        except KubeError as error:
            if error.status not in {400, 422, 500}:
                raise
            _log.warning("%s: the status was refused (%s); repeated without what is only told", self.key, error)
            body["status"] = wire.control_only(patch)
            return await client.patch(JOBS, owner.namespace, owner.name, body, status=True)
