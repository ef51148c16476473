"""What is true of a simulated cluster, and what must hold for every write, command, creation and deletion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relight_agent.exits import Class, exit_of
from relight_operator.api.status import TERMINAL, JobStatus, SlotStatus, WorldStatus
from relight_operator.core.actions import Action, CreateMember, EmitEvent, WriteStatus
from relight_operator.core.silence import SILENT_SECONDS

if TYPE_CHECKING:
    from sim_cluster import Cluster, Member

    from relight_operator.core.commands import AgentCommand
    from relight_operator.core.observed import AgentOutcome

FREE = (Class.DISRUPTION, Class.MACHINE, Class.COLLATERAL)


class Truth:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.executed = 0
        self.lost = 0
        self.position = 0
        self.seconds = dict.fromkeys(("restore", "productive", "replayed"), 0.0)  # of all members, by their ledgers
        self.exact = True  # until what a generation did has died, unheard, with all its members
        self.worlds: dict[int, WorldStatus] = {}
        self.machines: set[str] = set()  # on which a member has ever been
        self.losses = 0
        self.failures = 0
        self.handed_over = 0
        self.final = False  # a failure that retrying cannot help has happened
        self.recognised: list[tuple[str, int]] = []  # exceptions that would be known again, and the steps done before
        self._outcomes: dict[tuple[str, int], AgentOutcome] = {}

    # -- training

    def restored(self, step: int) -> None:
        self.lost += max(0, self.position - step)
        assert step <= self.position, "a state from nowhere"
        self.position = step

    def spent(self, kind: str, seconds: float) -> None:
        self.seconds[kind] += seconds

    def stepped(self) -> None:
        self.executed += 1
        self.position += 1

    def settled(self, member: Member, outcome: AgentOutcome) -> None:
        self._outcomes[member.uid, outcome.generation] = outcome
        if outcome.kind == "failed" and exit_of(outcome.exit_code).klass is Class.FINAL:
            self.final = True
        if outcome.fingerprint:
            self.recognised.append((outcome.fingerprint, outcome.step))

    # -- checks

    def check_run(self, member: Member, world: WorldStatus, told_from: JobStatus) -> None:
        """An agent is about to start a generation."""
        assert world == self.worlds[world.generation] or _identity(world) == _identity(self.worlds[world.generation])
        assert member.uid in {m.uid for m in world.members}
        slots = {s.slot: s.uid for s in told_from.slots}
        assert all(slots[m.slot] == m.uid for m in world.members), "run of a world with a superseded member"
        same = [
            m
            for m in self._cluster.living()
            if m is not member and m.slot == member.slot and m.agent.running and m.agent.generation == world.generation
        ]
        assert not same, "two living members of one slot in one generation"

    def check_exit(self, member: Member, command: AgentCommand) -> None:
        status = self._cluster.store.status
        slot = next((s for s in status.slots if s.slot == member.slot), None)
        assert status.phase in TERMINAL or not _wanted(slot, member), "a member that is wanted is told to exit"
        assert command.code != 0 or status.phase == "Succeeded", "exit 0 before Succeeded was written"

    def check_create(self, action: CreateMember, *, current: bool) -> None:
        status = self._cluster.store.status
        slot = next((s for s in status.slots if s.slot == action.slot), None)
        assert slot is not None
        assert max(slot.incarnation, slot.last_incarnation) >= action.incarnation, "created before it was written"
        assert set(action.avoid) <= self.machines, "avoids a machine on which no member has been"
        if current:
            places = {p.incarnation: p.uid for p in (slot, slot.successor) if p is not None}
            assert action.incarnation in places
            assert places[action.incarnation] is None
            assert not slot.released
            assert status.phase not in TERMINAL, "created after the end"

    def check_delete(self, member: Member) -> None:
        status = self._cluster.store.status
        slot = next(s for s in status.slots if s.slot == member.slot)
        assert not _wanted(slot, member) or status.phase in TERMINAL or status.stop is not None, "a wanted member"

    def check_plan(self, actions: tuple[Action, ...]) -> None:
        writes = [a for a in actions if isinstance(a, WriteStatus)]
        events = [a for a in actions if isinstance(a, EmitEvent)]
        assert len(writes) <= 1
        assert writes or not events, "an event without a write"
        if writes:
            first_event = next((i for i, a in enumerate(actions) if isinstance(a, EmitEvent)), len(actions))
            assert actions.index(writes[0]) < first_event

    def check_write(self, old: JobStatus, new: JobStatus) -> None:
        assert old.phase not in TERMINAL, "a status written after the end"
        self._check_world(old, new)
        self._check_code(old, new)
        self._check_profile(old, new)
        raised = self._check_slots(old, new)
        self._check_counts(old, new, raised)
        self._check_buckets(old, new)
        goodput = new.goodput
        assert goodput.executed_steps == goodput.reached_step + goodput.lost_steps
        if new.phase == "Succeeded":
            assert new.world is not None
            assert goodput.reached_step == self._cluster.total
            seated = {m.slot for m in new.world.members}
            assert all(s.completed == new.world.generation for s in new.slots if s.slot in seated)

    def _check_buckets(self, old: JobStatus, new: JobStatus) -> None:
        """Every second of every slot is in one bucket, once."""
        before, after = old.goodput.buckets, new.goodput.buckets
        assert all(after.get(kind, 0.0) >= seconds - 1e-6 for kind, seconds in before.items()), "taken back"
        for kind, seconds in self.seconds.items():
            assert after.get(kind, 0.0) <= seconds + 1e-3, f"{kind}: more than there was"
        assert new.goodput.counted_until is not None
        elapsed = new.goodput.counted_until - (old.goodput.counted_until or new.goodput.counted_until)
        counted = sum(after.values()) + _deferred(new) - sum(before.values()) - _deferred(old)
        slots = len(old.slots) + sum(s.successor is not None for s in old.slots)
        # Whoever has left after its work was done, for a stop, or with a job that failed of it, is not counted any more,
        # from its end on, which may have been a while ago.
        part_time = new.phase == "Failed" or any(
            s.stop or any(x.completed is not None for x in s.slots) for s in (old, new)
        )
        least = -_deferred(old) if part_time else 0.0
        assert least - 1e-3 < counted < slots * elapsed + 1e-3, "counted twice"
        assert part_time or counted > slots * elapsed - 1e-3, "a second is in no bucket"

    def _check_profile(self, old: JobStatus, new: JobStatus) -> None:
        if new.profile == old.profile:
            return
        assert new.profile is not None, "a trace that was asked for is forgotten"
        assert new.world is not None
        assert new.profile.generation == new.world.generation
        assert old.profile is None or new.profile.id != old.profile.id, "the same trace is asked for twice"

    def _check_code(self, old: JobStatus, new: JobStatus) -> None:
        assert old.code is None or new.code == old.code, "the code of a job that has started is another"

    def _check_world(self, old: JobStatus, new: JobStatus) -> None:
        before, after = old.world, new.world
        if after is None:
            assert before is None
            return
        if before is not None and before.generation == after.generation:
            assert _identity(before) == _identity(after), "a world changed after it was written"
            return
        assert after.generation == (before.generation if before else 0) + 1
        assert old.stop is None
        assert new.stop is None
        slots = {s.slot: s.uid for s in new.slots if not s.released}
        self._check_size(after)
        assert [m.rank for m in after.members] == list(range(len(after.members)))
        assert len({m.slot for m in after.members}) == len(after.members), "two members of one slot"
        assert all(slots.get(m.slot) == m.uid for m in after.members), "a member that holds no slot"
        assert before is None or old.recovery is not None or new.recovery is None
        commits = {self._cluster.members[m.uid].agent.commit for m in after.members if m.uid in self._cluster.members}
        assert commits <= {new.code.commit if new.code is not None else ""}, "members with other code than the job's"
        self.worlds[after.generation] = after
        if before is None:
            return
        ranks = {m.uid: m.rank for m in after.members}
        kept = [m for m in before.members if m.uid in ranks and m.rank < len(after.members)]
        assert all(ranks[m.uid] == m.rank for m in kept), "a survivor's rank has changed"
        old_uids = {m.uid for m in before.members}
        for member in self._cluster.living():
            still = member.agent.running and member.agent.generation <= before.generation
            assert not (still and member.uid in old_uids and member.uid in slots.values()), (
                "formed over running workers"
            )
        training = self._cluster.trainings.get(before.generation)
        if training is not None and training.step is not None:
            survived = any(
                m.agent.generation == before.generation and m.uid in old_uids and m.uid in slots.values()
                for m in self._cluster.living()
            )
            if survived and self.exact:
                assert new.goodput.reached_step == self.position, "steps of a survivor were not counted"
            heard = survived or before.resumed_from_step is not None
            self.exact = self.exact and heard and new.goodput.reached_step == self.position

    def _check_size(self, world: WorldStatus) -> None:
        elastic, size = self._cluster.spec.elastic, len(world.members)
        assert size <= world.wanted, "a spare holds a rank"
        assert size == world.wanted or (elastic is not None and size >= elastic.min_nodes), "smaller than allowed"

    def _check_slots(self, old: JobStatus, new: JobStatus) -> list[SlotStatus]:
        """Returns the slots, as they were, whose incarnation is raised."""
        raised = []
        after = {s.slot: s for s in new.slots}
        for slot in old.slots:
            now = after[slot.slot]
            assert now.incarnation >= slot.incarnation
            assert now.last_incarnation >= slot.last_incarnation
            if now.incarnation > slot.incarnation:
                heir = slot.successor
                inherits = heir is not None and heir.incarnation == now.incarnation
                assert inherits or now.incarnation > max(slot.incarnation, slot.last_incarnation), "a number used twice"
                assert inherits or now.uid is None, "an incarnation must be written before its member exists"
                assert not inherits or heir is None or heir.uid in (None, now.uid)
                raised.append(slot)
            elif now.successor is not None and now.successor != slot.successor:
                known = slot.successor is not None and slot.successor.incarnation == now.successor.incarnation
                assert known or now.successor.uid is None, "a successor must be written before it exists"
                assert known or now.successor.incarnation > max(slot.incarnation, slot.last_incarnation)
            elif slot.uid is not None:
                assert now.uid == slot.uid, "another uid in the same incarnation"
        return raised

    def _check_counts(self, old: JobStatus, new: JobStatus, raised: list[SlotStatus]) -> None:
        before, after = old.restarts, new.restarts
        counted = after.total - before.total
        assert counted == after.disruptions + after.failures - before.disruptions - before.failures
        assert counted == sum(after.by_cause.values()) - sum(before.by_cause.values())
        if old.stop is not None:
            assert counted == 0, "something was counted during a stop"
            return
        # Who is released because the job has become smaller is no loss; who was lost before that, so that its heir was released, is one.
        resized = {(s.slot, s.exit.incarnation) for s in new.slots if s.exit is not None and s.exit.cause == "Resized"}
        raised = [s for s in raised if (s.slot, s.incarnation) not in resized]
        # A member without a machine that is created anew because avoided machines are allowed again has lost nothing, also
        # if it has ended and the backend has not said so yet.
        let_back = bool(old.blamed_machines) and not new.blamed_machines
        anew = [s for s in raised if let_back and self._waits_for_a_machine(s) and not _is_told_lost(s, new)]
        dead = [s for s in raised if s not in anew and (not self._lives(s) or self._is_mute(s, new))]
        handed = [s for s in raised if s not in dead and s not in anew and self._has_left(s, old.world)]
        judged = counted - len(dead) - len(handed)
        assert 0 <= judged <= 1, "a loss or a failure was counted twice, or not at all"
        self.losses += len(dead)
        self.failures += judged
        given_up = [s for s in raised if s not in dead and s not in handed and s not in anew]
        assert not given_up or judged >= 1
        formed = old.world is not None and new.world is not None and new.world.generation > old.world.generation
        just_judged = not _judged(old) and (formed or _judged(new))
        if new.phase in TERMINAL or new.stop is not None:
            return  # a job that fails or stops by then does not wait to hear from everybody
        if not just_judged:
            assert judged == 0, "a failure counted outside its judgement"
        elif old.world is not None:
            uids = {m.uid for m in old.world.members}
            loss = any(s.uid in uids for s in dead) or any(
                r is not None and r.loss for r in (old.recovery, new.recovery)
            )
            must, may = self._failures_of(old.world, new, loss=loss)
            assert judged >= must, "a failure was not counted"
            assert judged <= may, "a failure that never was"

    def _failures_of(self, world: WorldStatus, new: JobStatus, *, loss: bool) -> tuple[int, int]:
        """Whether a failure of this generation must be counted, and whether it may be: who is lost may or may not have
        said what it died of."""
        stalled = new.stall is not None and new.stall.generation == world.generation and new.stall.ended
        must = may = int(stalled)
        holders = {s.uid for s in new.slots}
        for seat in world.members:
            outcome = self._outcomes.get((seat.uid, world.generation))
            if outcome is None or outcome.kind != "failed":
                continue
            collateral = exit_of(outcome.exit_code).klass is Class.COLLATERAL
            if collateral and loss:
                continue
            may = 1
            member = self._cluster.members.get(seat.uid)
            if seat.uid in holders and member is not None and member.alive:
                must = 1
        return must, may

    def _has_left(self, slot: SlotStatus, world: WorldStatus | None) -> bool:
        """Whether a member that lives may hand its slot over: what it did in the generation that ran is safe."""
        member = self._cluster.members.get(slot.uid or "")
        if member is None or slot.successor is None:
            return False
        outcome = self._outcomes.get((member.uid, world.generation)) if world is not None else None
        if outcome is not None and outcome.kind == "failed":
            return False
        assert member.agent.leaving or member.was_announced, "a member that was to stay was replaced"
        assert not member.agent.running, "replaced in the middle of training"
        self.handed_over += 1
        return True

    def _is_mute(self, slot: SlotStatus, new: JobStatus) -> bool:
        """Whether its member is given up because it does not answer."""
        end = next(s for s in new.slots if s.slot == slot.slot).exit
        if end is None or end.incarnation != slot.incarnation or "has not answered" not in end.message:
            return False
        member = self._cluster.members.get(slot.uid or "")
        assert member is not None
        assert self._cluster.now - member.heard_at > SILENT_SECONDS, "given up though it had been heard"
        return True

    def _waits_for_a_machine(self, slot: SlotStatus) -> bool:
        """Its member was created to avoid machines, and there is no other: it may be made anew."""
        place = slot.slot, slot.incarnation
        members = self._cluster.members.values()
        return any((m.slot, m.incarnation) == place and m.unplaced_since is not None for m in members)

    def _lives(self, slot: SlotStatus) -> bool:
        member = self._cluster.members.get(slot.uid or "")
        if slot.uid is None:  # bound and lost in one write
            named = (
                m for m in self._cluster.members.values() if (m.slot, m.incarnation) == (slot.slot, slot.incarnation)
            )
            member = next(named, None)
        return member is not None and member.alive


def _is_told_lost(slot: SlotStatus, new: JobStatus) -> bool:
    """Whether the new status says how this incarnation ended."""
    end = next(s for s in new.slots if s.slot == slot.slot).exit
    return end is not None and end.incarnation == slot.incarnation


def _wanted(slot: SlotStatus | None, member: Member) -> bool:
    places = (slot, slot.successor) if slot is not None else ()
    return any(p is not None and p.incarnation == member.incarnation and p.uid in (None, member.uid) for p in places)


def _judged(status: JobStatus) -> bool:
    return status.recovery is not None and status.recovery.judged


def _deferred(status: JobStatus) -> float:
    """Member-seconds of the running world that reports have not explained yet."""
    world, until = status.world, status.goodput.counted_until
    if world is None or world.formed_at is None or until is None or status.phase in TERMINAL:
        return 0.0
    uids = {m.uid for m in world.members}
    here = [s for s in status.slots if s.uid in uids and s.slot not in world.closed]
    return len(here) * (until - world.formed_at - sum(world.seconds.values()))


def _identity(world: WorldStatus) -> tuple[object, ...]:
    return (
        world.generation,
        world.run_id,
        world.master_slot,
        world.master_address,
        world.master_port,
        tuple((m.rank, m.slot, m.uid, m.address) for m in world.members),
    )
