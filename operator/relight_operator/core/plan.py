"""`plan()`: what to do about one job, from what is seen of it. Level-triggered, idempotent, no I/O, no clock.

At most one status write a plan. Members are created only from what an acknowledged status says (write-ahead), so a
plan that changes slots writes first, and the next one creates.
"""

from dataclasses import replace

from relight_agent.exits import CAUSE_CLASS, CLASS_ORDER, Cause, Class, ExitCode, exit_of
from relight_operator.api.durations import seconds
from relight_operator.api.status import (
    TERMINAL,
    Condition,
    ExitStatus,
    Failure,
    JobStatus,
    MemberStatus,
    ProgressStatus,
    RecoveryStatus,
    Result,
    SlotStatus,
    WorldStatus,
)
from relight_operator.core.actions import Action, CreateMember, DeleteMember, EmitEvent, RequeueAfter, WriteStatus
from relight_operator.core.observed import AgentOutcome, AgentProgress, AgentView, MemberEnd, Observed, SlotView
from relight_operator.core.verdict import judge, root_cause

# A job that has ended tells its agents to exit; whoever has not after this long is deleted.
LINGER_SECONDS = 10.0
# Incarnations in a row that end before they were in any world: the back-off doubles up to the maximum, then it is over.
START_BACKOFF_SECONDS = 1.0
START_BACKOFF_MAX_SECONDS = 60.0
MAX_FAILED_STARTS = 5
MAX_NOTICES = 8


def plan(seen: Observed, now: float) -> tuple[Action, ...]:
    """The actions that bring the job nearer to what its spec wants. `now`: unix seconds."""
    return _Plan(seen, now).actions()


class _Plan:
    """One run of `plan()`: `self.status` becomes the status to write; `self.seen.status` stays what was acknowledged."""

    def __init__(self, seen: Observed, now: float) -> None:
        self.seen = seen
        self.now = now
        self.spec = seen.spec
        self.status = seen.status.model_copy(deep=True)
        self.events: list[EmitEvent] = []
        self.wakeups: list[float] = []
        self.by_uid = {m.uid: m for m in seen.members}
        self.by_incarnation = {(m.slot, m.incarnation): m for m in seen.members}

    def actions(self) -> tuple[Action, ...]:
        if self.status.phase not in TERMINAL:
            self._start()
            self._bind()
            self._hear()
            self._complete()
        if self.status.phase not in TERMINAL:
            self._stop_or_resume()
        if self.status.phase not in TERMINAL and self.status.stop is None:
            self._lose()
            self._end_world()
            self._judge()
            self._deadline()
        if self.status.phase not in TERMINAL and self.status.stop is None:
            self._form()
        self._describe()
        return (*self._members(), *self._write(), *self._requeue())

    # -- start and identity

    def _start(self) -> None:
        if self.status.start_time is None:
            self.status.start_time = self.now
        if self.status.active_since is None and self.status.phase != "Suspended":
            self.status.active_since = self.now
        known = {s.slot for s in self.status.slots}
        self.status.slots += [SlotStatus(slot=i) for i in range(self.spec.nodes) if i not in known]

    def _bind(self) -> None:
        for slot in self.status.slots:
            member = self.by_incarnation.get((slot.slot, slot.incarnation))
            if slot.uid is None and member is not None:
                slot.uid = member.uid
                slot.machine = member.machine

    def _member(self, slot: SlotStatus) -> SlotView | None:
        return self.by_uid.get(slot.uid) if slot.uid is not None else None

    def _in_world(self, uid: str | None) -> bool:
        world = self.status.world
        return world is not None and uid is not None and any(m.uid == uid for m in world.members)

    # -- what the agents say

    def _progress(self) -> AgentProgress | None:
        """The furthest progress that a member of the present generation reports."""
        world = self.status.world
        if world is None:
            return None
        reports = [
            m.agent.progress
            for m in self.seen.members
            if m.agent and m.agent.progress and m.agent.progress.generation == world.generation and self._in_world(m.uid)
        ]
        return max(reports, key=lambda p: (p.step, p.first_step_at is not None), default=None)

    def _furthest(self) -> int:
        """Steps done in the present generation, by the heartbeats of everyone heard of, the lost ones too."""
        world = self.status.world
        if world is None:
            return 0
        seen = [
            m.agent.furthest_step
            for m in self.seen.members
            if m.agent and m.agent.generation == world.generation and self._in_world(m.uid)
        ]
        recorded = self.status.recovery.furthest_step if self.status.recovery else 0
        return max([recorded, world.resumed_from_step or 0, *seen])

    def _hear(self) -> None:
        """Progress, what the generation restored, and the instant it got beyond all earlier ones."""
        world, progress = self.status.world, self._progress()
        if world is None or progress is None:
            return
        if world.resumed_from_step is None and progress.resumed_from is not None:
            world.resumed_from_step = progress.resumed_from
            world.resumed_kind = progress.resumed_kind
            self.status.goodput.lost_steps += max(0, world.previous_furthest_step - progress.resumed_from)
            if progress.resumed_kind != "scratch":
                self.status.checkpoint.resumed_from_step = progress.resumed_from
                self._event(
                    "Resumed", f"generation {world.generation} goes on from step {progress.resumed_from} ({progress.resumed_kind})"
                )
        if not world.recovered and max(progress.step, self._furthest()) > world.previous_furthest_step:
            world.recovered = True
            if world.recovering_since is not None:
                at = self.now
                if progress.first_step_at is not None and progress.resumed_from == world.previous_furthest_step:
                    at = progress.first_step_at
                took = max(0.0, at - world.recovering_since)
                self.status.goodput.recoveries += 1
                self.status.goodput.last_recovery_seconds = f"{took:.2f}"
                self._event("Recovered", f"back at step {progress.step} after {took:.1f} s")
        self._record_progress(progress)
        checkpoint = self.status.checkpoint
        if progress.checkpoint is not None:
            checkpoint.step = progress.checkpoint
        if progress.snapshot is not None:
            checkpoint.snapshot_step = progress.snapshot
        for notice in progress.notices:
            if notice not in checkpoint.notices:
                checkpoint.notices = [*checkpoint.notices, notice][-MAX_NOTICES:]
                self._event("Notice", notice, warning=True)

    def _record_progress(self, progress: AgentProgress) -> None:
        before = self.status.progress
        percent = min(100, 100 * progress.step // progress.total_steps) if progress.total_steps else 0
        after = ProgressStatus(
            step=progress.step,
            total_steps=progress.total_steps,
            epoch=progress.epoch,
            samples=progress.samples,
            percent=percent,
            text=f"{percent}% {progress.step}/{progress.total_steps}" if progress.total_steps else f"step {progress.step}",
            eta_seconds=self._eta(progress),
            metrics=progress.metrics,
            updated=before.updated if before else 0.0,
        )
        if after != before:
            after.updated = self.now
            self.status.progress = after

    def _eta(self, progress: AgentProgress) -> int | None:
        if not progress.total_steps or progress.first_step_at is None or progress.resumed_from is None:
            return None
        done, spent = progress.step - progress.resumed_from - 1, self.now - progress.first_step_at
        return round(spent / done * (progress.total_steps - progress.step)) if done > 0 and spent > 0 else None

    # -- the end that is wanted

    def _complete(self) -> None:
        world = self.status.world
        if world is None:
            return
        outcomes: dict[int, AgentOutcome] = {}
        for slot in self.status.slots:
            member = self._member(slot)
            outcome = member.agent.outcome if member and member.agent else None
            if outcome and outcome.generation == world.generation and outcome.kind == "completed" and self._in_world(slot.uid):
                slot.completed = world.generation
                outcomes[slot.slot] = outcome
                if outcome.weights_digest is not None or outcome.metrics or self.status.result is None:
                    self.status.result = Result(
                        weights_digest=outcome.weights_digest, metrics=outcome.metrics, steps=outcome.step
                    )
        members = {m.slot for m in world.members}
        if all(s.completed == world.generation for s in self.status.slots if s.slot in members):
            self._account(world)
            self._finish("Succeeded", "Completed", "every member completed")

    def _account(self, world: WorldStatus) -> None:
        """Steps executed in a generation that is over; called once a generation, where it is left behind."""
        if world.resumed_from_step is not None:
            self.status.goodput.executed_steps += self._furthest() - world.resumed_from_step

    def _finish(self, phase: str, reason: str, message: str) -> None:
        self.status.phase = phase
        self.status.recovery = None
        self.status.completion_time = self.now
        self._pause_clock()
        self._condition(phase, "True", reason, message)
        self._event(phase if phase == "Succeeded" else reason, message, warning=phase == "Failed")

    def _pause_clock(self) -> None:
        if self.status.active_since is not None:
            self.status.active_seconds += max(0.0, self.now - self.status.active_since)
            self.status.active_since = None

    # -- stops

    def _stop_or_resume(self) -> None:
        wanted = self.seen.stop or ("suspend" if self.spec.suspend else None)
        if wanted is not None and self.status.stop is None:
            self.status.stop = wanted
            self._event("Stopping", "every member saves its state and ends")
        if self.status.stop is None:
            return
        gone = all((m := self._member(s)) is None or not m.alive for s in self.status.slots)
        if gone and self.status.phase != "Suspended":
            self._leave_world_for_stop()
            self.status.phase = "Suspended"
            self._pause_clock()
            self._condition("Suspended", "True", "Stopped", "all members have ended; resuming starts from the last checkpoint")
            self._event("Suspended", "all members have ended")
        elif wanted is None and self.status.phase == "Suspended":
            self.status.stop = None
            self.status.phase = "Pending"
            self.status.active_since = self.now
            self._condition("Suspended", "False", "Resumed", "")
            for slot in self.status.slots:
                if slot.uid is not None:
                    self._next_incarnation(slot)

    def _leave_world_for_stop(self) -> None:
        if self.status.world is None:
            return
        furthest = self._furthest()
        self.status.recovery = RecoveryStatus(
            generation=self.status.world.generation, since=self.now, cause=Cause.SUSPENDED.value, judged=True,
            furthest_step=furthest,
        )  # fmt: skip

    # -- losses

    def _next_incarnation(self, slot: SlotStatus) -> None:
        slot.incarnation += 1
        slot.uid = None
        slot.machine = ""
        slot.completed = None
        slot.state = "Pending"

    def _lose(self) -> None:
        for slot in self.status.slots:
            if slot.uid is None:
                continue
            member = self._member(slot)
            if member is not None and member.alive:
                continue
            done = self.status.world is not None and slot.completed == self.status.world.generation
            if done and self.status.recovery is None:
                continue  # it has done its part; the rest of its world decides
            end = member.end if member is not None and member.end else _vanished(self.now)
            if end.klass is Class.COMPLETED:
                end = replace(end, cause=Cause.EXCEPTION, klass=Class.COUNTED, message="ended with 0 before the job had completed")
            heard = member.agent if member is not None else None
            self._lose_one(slot, end, heard)
            if self.status.phase in TERMINAL:
                return

    def _lose_one(self, slot: SlotStatus, end: MemberEnd, heard: AgentView | None) -> None:
        in_world = self._in_world(slot.uid)
        if in_world:
            first_sign = min(end.at, heard.terminating_at or end.at) if heard is not None else end.at
            self._world_over(end.cause, first_sign, end.message, loss=True)
        # Somebody who never said a word did not get as far as to be disrupted.
        slot.failed_starts = slot.failed_starts + 1 if heard is None and not in_world else 0
        slot.exit = ExitStatus(
            incarnation=slot.incarnation, cause=str(end.cause), exit_code=end.exit_code, message=end.message, time=end.at
        )
        member = f"{self.seen.name}-{slot.slot}-{slot.incarnation}"
        machine = slot.machine
        self._next_incarnation(slot)
        free = end.klass in (Class.DISRUPTION, Class.MACHINE, Class.COLLATERAL)
        self._event("MemberLost", f"{member}: {end.cause}" + (f": {end.message}" if end.message else ""), warning=not free)
        if free:
            restarts = self.status.restarts
            restarts.total += 1
            restarts.disruptions += 1
            restarts.by_cause[str(end.cause)] = restarts.by_cause.get(str(end.cause), 0) + 1
        else:
            failure = Failure(
                time=end.at, cause=str(end.cause), machine=machine, member=member,
                rank=end.rank, exit_code=end.exit_code, message=end.message,
            )  # fmt: skip
            self._count_failure(end.cause, end.klass, failure)
        if slot.failed_starts >= MAX_FAILED_STARTS and self.status.phase not in TERMINAL:
            self._fail(
                "StartFailed",
                f"slot {slot.slot}: {slot.failed_starts} members in a row ended before they were ready: {end.message or end.cause}",
            )

    # -- the world's end and what it means

    def _world_over(self, cause: Cause, since: float, detail: str, *, loss: bool) -> None:
        world = self.status.world
        if world is None:
            return
        recovery = self.status.recovery
        if recovery is None:
            recovery = RecoveryStatus(generation=world.generation, since=since, cause=str(cause), detail=detail)
            self.status.recovery = recovery
            self._event("Recovering", f"generation {world.generation} is over: {cause}" + (f": {detail}" if detail else ""))
        elif _rank(cause) < _rank(Cause(recovery.cause)):
            recovery.cause, recovery.detail = str(cause), detail
        recovery.since = min(recovery.since, since)
        recovery.loss = recovery.loss or loss
        recovery.furthest_step = self._furthest()

    def _end_world(self) -> None:
        """The generation is over as soon as one member says that it has failed or stopped there."""
        world = self.status.world
        if world is None:
            return
        for slot in self.status.slots:
            member = self._member(slot)
            outcome = member.agent.outcome if member and member.agent else None
            if outcome is None or outcome.generation != world.generation or not self._in_world(slot.uid):
                continue
            if outcome.kind == "failed":
                self._world_over(exit_of(outcome.exit_code).cause, outcome.at, outcome.message, loss=False)
            elif outcome.kind == "stopped":
                self._world_over(Cause.STOPPED, outcome.at, f"stopped at step {outcome.step}", loss=False)
        if self.status.recovery is not None:
            self.status.recovery.furthest_step = self._furthest()

    def _settled(self) -> bool:
        """No worker of the generation that is over can be alive any more, as far as the living agents say."""
        members = [m for s in self.status.slots if (m := self._member(s)) is not None and m.alive and self._in_world(s.uid)]
        return all(m.agent is not None and m.agent.state == "Ready" for m in members)

    def _judge(self) -> None:
        recovery = self.status.recovery
        if recovery is None or recovery.judged or not self._settled():
            return
        current = [m for s in self.status.slots if (m := self._member(s)) is not None]
        root = root_cause(
            current, recovery.generation, lost=recovery.loss, opaque=self.spec.trainer.command is not None
        )
        recovery.judged = True
        if root is None or (root.klass is Class.COLLATERAL and recovery.loss):
            return
        outcome = root.outcome
        failure = Failure(
            time=outcome.at, cause=str(root.cause), machine=root.member.machine,
            member=f"{self.seen.name}-{root.member.slot}-{root.member.incarnation}",
            rank=outcome.rank, exit_code=outcome.exit_code, message=outcome.message,
        )  # fmt: skip
        self._count_failure(root.cause, root.klass, failure)

    def _count_failure(self, cause: Cause, klass: Class, failure: Failure) -> None:
        world = self.status.world
        progressed = world is not None and self._furthest() > world.previous_furthest_step
        verdict = judge(
            cause, klass, self.status.restarts, self.spec.retry,
            progressed=progressed, checkpoint=self.status.checkpoint.step, now=self.now,
        )  # fmt: skip
        self.status.restarts = verdict.restarts
        self.status.last_failure = failure
        if verdict.reason is not None:
            self._fail(verdict.reason, f"{cause}: {failure.message or 'no message'} ({verdict.message})")
            return
        if self.status.recovery is not None:
            self.status.recovery.not_before = max(self.status.recovery.not_before, self.now + verdict.backoff)
        self._event(
            "FailureRetried",
            f"{failure.member}: {cause}: {failure.message} (failure {verdict.restarts.counted} of {self.spec.retry.failures} "
            f"allowed; next try in {verdict.backoff:.0f} s)",
            warning=True,
        )

    def _fail(self, reason: str, message: str) -> None:
        if self.status.last_failure is None:
            self.status.last_failure = Failure(time=self.now, cause=reason, message=message, exit_code=int(ExitCode.EXCEPTION))
        if self.status.world is not None:
            self._account(self.status.world)
        self._finish("Failed", reason, message)

    def _deadline(self) -> None:
        limit = self.spec.active_deadline_seconds
        if limit is None or self.status.active_since is None or self.status.phase in TERMINAL:
            return
        left = limit - self.status.active_seconds - (self.now - self.status.active_since)
        if left <= 0:
            self._fail("DeadlineExceeded", f"active for more than activeDeadlineSeconds ({limit} s)")
        else:
            self.wakeups.append(left)

    # -- the next generation

    def _form(self) -> None:
        recovery, old = self.status.recovery, self.status.world
        if old is not None and recovery is None:
            return
        if recovery is not None and not recovery.judged:
            return
        slots = [s for s in self.status.slots if s.slot < self.spec.nodes]
        members = [m for s in slots if (m := self._member(s)) is not None and _can_run(m, self.seen.config_hash)]
        if len(members) < self.spec.nodes:
            return
        if recovery is not None and recovery.not_before > self.now:
            self.wakeups.append(recovery.not_before - self.now)
            return
        survivors = [m for m in members if self._in_world(m.uid)]
        # A plain torchrun's rank 0 always hosts its store; ours lives wherever memory of the job survives.
        master = survivors[0] if survivors and self.spec.trainer.command is None else members[0]
        assert master.agent is not None
        generation = old.generation + 1 if old is not None else 1
        if old is not None:
            self._account(old)
        self.status.world = WorldStatus(
            generation=generation,
            run_id=f"{self.seen.name}-{generation}-{master.uid[:8]}",
            master_slot=master.slot,
            master_address=master.address,
            master_port=master.agent.port,
            members=[
                MemberStatus(rank=rank, slot=m.slot, uid=m.uid, address=m.address) for rank, m in enumerate(members)
            ],
            previous_furthest_step=max(self._furthest(), old.previous_furthest_step) if old is not None else 0,
            recovering_since=recovery.since if recovery is not None and recovery.cause != Cause.SUSPENDED.value else None,
        )
        self.status.recovery = None
        for slot in slots:
            slot.completed = None
            slot.failed_starts = 0
        self._event("GenerationFormed", f"generation {generation}: {len(members)} members, master on slot {master.slot}")

    # -- words for people

    def _describe(self) -> None:
        status = self.status
        for slot in status.slots:
            member = self._member(slot)
            if slot.completed is not None:
                slot.state = "Completed"
            elif member is not None and not member.alive:
                slot.state = "Ended"
            elif member is not None and member.agent is not None:
                slot.state = member.agent.state
            elif slot.uid is not None:
                slot.state = "Starting"
        running = [
            m
            for s in status.slots
            if (m := self._member(s)) is not None and m.alive and m.agent is not None
            and status.world is not None and m.agent.generation == status.world.generation and m.agent.state == "Running"
        ]  # fmt: skip
        status.ready_nodes = len(running) if status.phase not in TERMINAL else 0
        status.nodes_ready = f"{status.ready_nodes}/{self.spec.nodes}"
        status.selector = f"relight.dev/job={self.seen.name}"
        if status.phase in TERMINAL or status.phase == "Suspended":
            return
        status.phase = self._phase(len(running))

    def _phase(self, running: int) -> str:
        world = self.status.world
        if world is None or (self.status.recovery is not None and self.status.recovery.cause == Cause.SUSPENDED.value):
            return "Starting" if any(s.uid is not None for s in self.status.slots) else "Pending"
        if self.status.recovery is not None:
            return "Recovering"
        silent = self.status.progress is None  # a script without the client says nothing of its steps
        if world.recovered or (silent and running == len(world.members)):
            return "Running"
        return "Starting" if world.generation == 1 else "Recovering"

    def _condition(self, kind: str, value: str, reason: str, message: str) -> None:
        others = [c for c in self.status.conditions if c.type != kind]
        old = next((c for c in self.status.conditions if c.type == kind), None)
        since = old.last_transition_time if old is not None and old.status == value else self.now
        self.status.conditions = [
            *others,
            Condition(type=kind, status=value, reason=reason, message=message, last_transition_time=since),
        ]

    def _event(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.events.append(EmitEvent(reason, message, warning))

    # -- actions

    def _members(self) -> list[Action]:
        return [*self._creates(), *self._deletes()]

    def _creates(self) -> list[Action]:
        if self.status.phase in TERMINAL or self.status.stop is not None or self.seen.status.stop is not None:
            return []
        now_wanted = {(s.slot, s.incarnation) for s in self.status.slots if s.uid is None}
        creates: list[Action] = []
        for slot in self.seen.status.slots:
            if slot.uid is not None or (slot.slot, slot.incarnation) not in now_wanted:
                continue
            if slot.failed_starts and slot.exit is not None:
                delay = min(START_BACKOFF_SECONDS * 2.0 ** (slot.failed_starts - 1), START_BACKOFF_MAX_SECONDS)
                if slot.exit.time + delay > self.now:
                    self.wakeups.append(slot.exit.time + delay - self.now)
                    continue
            creates.append(CreateMember(slot.slot, slot.incarnation))
        return creates

    def _deletes(self) -> list[Action]:
        """Members that no acknowledged status wants: superseded ones, and who lingers after the job's end."""
        holders = {(s.slot, s.incarnation): s.uid for s in self.seen.status.slots}
        grace = seconds(self.spec.disruption.grace_period)
        deletes: list[Action] = []
        for member in self.seen.members:
            if not member.alive or member.deleting:
                continue
            holder = holders.get((member.slot, member.incarnation), "")
            if self.seen.status.slots and holder not in (None, member.uid):
                deletes.append(DeleteMember(member.slot, member.incarnation, member.uid, grace))
            elif self.seen.status.phase in TERMINAL and self.status.completion_time is not None:
                left = self.status.completion_time + LINGER_SECONDS - self.now
                if left <= 0:
                    deletes.append(DeleteMember(member.slot, member.incarnation, member.uid, grace))
                else:
                    self.wakeups.append(left)
        return deletes

    def _write(self) -> list[Action]:
        if self.status == self.seen.status:
            return []
        if _without_progress(self.status) == _without_progress(self.seen.status):
            written = self.seen.status.progress.updated if self.seen.status.progress else 0.0
            left = written + self.seen.progress_interval - self.now
            if left > 0:
                self.wakeups.append(left)
                return []
        return [WriteStatus(self.status), *self.events]

    def _requeue(self) -> list[Action]:
        return [RequeueAfter(max(0.0, min(self.wakeups)))] if self.wakeups else []


def _vanished(now: float) -> MemberEnd:
    return MemberEnd(Cause.VANISHED, Class.DISRUPTION, now, message="it is gone and left no word")


def _rank(cause: Cause) -> int:
    return CLASS_ORDER.index(CAUSE_CLASS[cause])


def _can_run(member: SlotView, config_hash: str) -> bool:
    agent = member.agent
    return (
        member.alive
        and not member.deleting
        and agent is not None
        and agent.state == "Ready"
        and agent.terminating_at is None
        and agent.port > 0
        and agent.config_hash == config_hash
    )


def _without_progress(status: JobStatus) -> JobStatus:
    """What is left when that which moves on every step is taken away: a change of it is written at once."""
    checkpoint = status.checkpoint.model_copy(update={"step": None, "snapshot_step": None})
    return status.model_copy(update={"progress": None, "checkpoint": checkpoint})
