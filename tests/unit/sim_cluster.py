"""A cluster in miniature for `plan()`: members, agents, training, an API server and controllers, all of them fallible.

Everything happens in steps that a test chooses, so any interleaving of them can be played. The simulation knows the
truth (which member is dead, which step was really done) and checks every status write against it: see sim_truth.py.

What is modelled: an agent takes commands only as answers to a wait that carried its newest state; reports beside it
may be delayed, doubled and lost; a controller's crash loses the mailbox; an old leader's last actions may come late.
Not modelled: a member that lives although the backend says it is gone (fencing is the backend's).
"""

from dataclasses import dataclass, field, replace

from sim_truth import Truth

from relight_agent.exits import CAUSE_CLASS, Cause, ExitCode, exit_of
from relight_operator.api.job import JobSpec
from relight_operator.api.status import JobStatus, WorldStatus
from relight_operator.core.actions import Action, CreateMember, DeleteMember, RequeueAfter, WriteStatus
from relight_operator.core.commands import AgentCommand, command_for
from relight_operator.core.observed import (
    AgentOutcome,
    AgentProgress,
    AgentSpent,
    AgentStall,
    AgentView,
    MemberEnd,
    Observed,
    RankStack,
    SlotView,
)
from relight_operator.core.plan import plan

CHECKPOINT_EVERY = 4
MACHINES = ("m0", "m1")
HASH = "c0ffee"


@dataclass
class Agent:
    """What relight_agent does with commands and signals, without processes."""

    state: str = "Starting"
    generation: int = 0
    highest: int = 0
    acknowledged: str = ""
    outcome: AgentOutcome | None = None
    progress: AgentProgress | None = None
    spent: AgentSpent | None = None
    furthest: int = 0
    terminating_at: float | None = None
    leaving: bool = False
    asked: bool = False  # its workers are, to save and stop
    stopping_at: float | None = None
    by_signal: bool = False
    snapshot: tuple[int, int] | None = None  # (generation, step), in the member's memory
    stall: AgentStall | None = None
    stacks_id: str = ""
    stacks: tuple[RankStack, ...] = ()
    commit: str = ""  # of the code that was fetched for it
    spoke: bool = False  # a process that has not come as far as this says nothing

    @property
    def running(self) -> bool:
        return self.generation > 0 and self.outcome is None

    def view(self) -> AgentView:
        return AgentView(
            state=self.state,
            generation=self.generation,
            terminating_at=self.terminating_at,
            stopping_at=self.stopping_at,
            port=1000 + self.generation,
            acknowledged=self.acknowledged,
            furthest_step=self.furthest,
            config_hash=HASH,
            commit=self.commit,
            torch="2.13.0",
            progress=self.progress,
            spent=self.spent,
            outcome=self.outcome,
            stall=self.stall,
            stacks_id=self.stacks_id,
            stacks=self.stacks,
        )


@dataclass
class Member:
    slot: int
    incarnation: int
    uid: str
    agent: Agent = field(default_factory=Agent)
    end: MemberEnd | None = None
    told_at: float = 0.0  # when the backend learns of its end
    deleting: bool = False
    announced: bool = False  # its machine is to go
    was_announced: bool = False  # ... or was, once: what a controller saw may be old
    placed: bool = False  # a machine has been found for it
    seq: int = 0
    waiting: bool = False
    deaf: bool = False  # its agent hangs: it neither speaks nor hears, while its workers train on
    heard_at: float = 0.0
    machine: str = ""  # "": the scheduler has found none, since then
    unplaced_since: float | None = None
    avoids: bool = False

    @property
    def alive(self) -> bool:
        return self.end is None

    def leaving(self) -> Cause | None:
        if self.deleting:
            return Cause.PREEMPTED
        return Cause.MACHINE_LEAVING if self.announced and self.machine else None  # it is the machine that is to go


@dataclass
class Training:
    """One generation's workers, across members: they step together or not at all."""

    world: WorldStatus
    step: int | None = None  # None: not restored yet
    restored: AgentProgress | None = None  # what its members are to report of that
    first_step_at: float | None = None
    broken: bool = False  # one of them has ended: no collective succeeds any more
    stuck: int | None = None  # the slot whose worker hangs: nobody gets any further
    mark: float = 0.0  # until when the ledger of its workers has been kept
    seconds: dict[str, float] = field(default_factory=dict)

    def spend(self, kind: str, now: float) -> float:
        """All since the last time has gone to `kind`."""
        spent, self.mark = now - self.mark, now
        self.seconds = {**self.seconds, kind: self.seconds.get(kind, 0.0) + spent}
        return spent

    @property
    def spent(self) -> AgentSpent | None:
        return AgentSpent(self.world.generation, self.mark, self.seconds) if self.seconds else None


@dataclass
class Store:
    """The API server: the job's status with compare-and-swap on its version."""

    truth: Truth
    status: JobStatus = field(default_factory=JobStatus)
    version: int = 0

    def write(self, status: JobStatus, expected: int) -> int | None:
        """The new version, or None for a conflict."""
        if expected != self.version:
            return None
        status = JobStatus.model_validate(status.dump())  # what the wire leaves of it
        self.truth.check_write(self.status, status)
        self.status = status
        self.version += 1
        return self.version


@dataclass
class Controller:
    """An operator's life between two crashes: its mailbox, its caches, the actions it has yet to apply."""

    status: JobStatus
    version: int
    listening_since: float
    mailbox: dict[str, tuple[int, AgentView]] = field(default_factory=dict)
    cache: dict[str, SlotView] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    requeue: float | None = None


class Cluster:
    def __init__(self, spec: JobSpec, total_steps: int) -> None:
        self.spec = spec
        self.total = total_steps
        self.now = 1_000_000.0
        self.stop: str | None = None
        self.members: dict[str, Member] = {}  # by uid; what the backend still has
        self.truth = Truth(self)
        self.store = Store(self.truth)
        self.controller: Controller | None = None
        self.old_leaders: list[Controller] = []
        self.network: list[tuple[str, int, AgentView]] = []
        self.trainings: dict[int, Training] = {}
        self.checkpoint: int | None = None
        self.profile = ""  # the trace that somebody wants
        self.branch = 0  # how often somebody has pushed to where the job's code comes from
        self.machines = 99  # for so many members
        self.changes = 0  # moves whenever anything happens: two equal values mean that all is quiet
        self._uids = 0

    # -- the backend

    def living(self) -> list[Member]:
        return [m for m in self.members.values() if m.alive]

    def create(self, slot: int, incarnation: int, avoid: tuple[str, ...] = (), commit: str = "") -> None:
        if any((m.slot, m.incarnation) == (slot, incarnation) for m in self.members.values()):
            return  # adopted
        self._uids += 1
        uid = f"uid-{self._uids}"
        fetched = (commit or f"{self.branch:040x}") if self.spec.code is not None else ""
        member = self.members[uid] = Member(slot, incarnation, uid, Agent(commit=fetched), avoids=bool(avoid))
        left = [m for m in MACHINES if m not in avoid]
        if left:
            member.machine = left[self._uids % len(left)]
            self.truth.machines.add(member.machine)
        else:
            member.unplaced_since = self.now
        self.changes += 1
        self.place()

    def place(self) -> None:
        """The scheduler: machines for as many living members as there are."""
        for member in self.living():
            if not member.placed and sum(m.placed for m in self.living()) < self.machines:
                member.placed = True
                self.changes += 1

    def end(self, member: Member, cause: Cause, code: int | None = None, message: str = "") -> None:
        """The member ends, and all that it keeps in memory with it."""
        if not member.alive:
            return
        self._break(member)
        self.hang_up(member)
        member.end = MemberEnd(cause, CAUSE_CLASS[cause], self.now, code, message)
        self.changes += 1

    def end_with(self, member: Member, code: int) -> None:
        stopped = code in (ExitCode.STOPPED_SAVED, ExitCode.STOPPED_UNSAVED)
        self.end(member, Cause.PREEMPTED if stopped else exit_of(code).cause, code)

    def vanish(self, member: Member) -> None:
        """It ends, and the backend knows nothing of it any more."""
        self.end(member, Cause.MACHINE_LOST)
        del self.members[member.uid]

    def terminate(self, member: Member) -> None:
        """SIGTERM."""
        agent = member.agent
        if not member.alive or agent.terminating_at is not None:
            return
        agent.terminating_at = self.now
        if not agent.leaving:
            agent.leaving = agent.by_signal = True
        self.changes += 1

    def delete(self, member: Member) -> None:
        """Somebody deletes it: it is told to end, and everybody can see that."""
        if member.alive:
            member.deleting = True
            self.terminate(member)

    def announce(self, member: Member, announced: bool) -> None:
        """Its machine is to go, or is not any more."""
        self.changes += member.announced != announced
        member.announced = announced
        member.was_announced = member.was_announced or announced

    # -- agents

    def boot(self, member: Member) -> None:
        """The agent's launcher has become warm."""
        if member.alive and member.placed and member.machine and member.agent.state == "Starting":
            member.agent.spoke = True
            member.agent.state = "Ready"
            self.changes += 1

    def report(self, member: Member) -> None:
        """Put the agent's state on the network: when it arrives, if it does, is the network's affair."""
        if member.alive and member.agent.spoke:
            member.seq += 1
            self.network.append((member.uid, member.seq, member.agent.view()))

    def deliver(self, index: int, *, keep: bool = False) -> None:
        if self.network:
            index %= len(self.network)
            self._post(*self.network[index])
            if not keep:
                del self.network[index]

    def _post(self, uid: str, seq: int, view: AgentView) -> None:
        if self.controller is None:
            return
        view = replace(view, heard_at=self.now)
        if uid in self.members:
            self.members[uid].heard_at = self.now
        known = self.controller.mailbox.get(uid)
        if known is None or known[0] < seq:
            if known is None or replace(known[1], heard_at=self.now) != view:
                self.changes += 1
            self.controller.mailbox[uid] = (seq, view)

    def begin_wait(self, member: Member) -> None:
        """A wait carries the agent's state as it is now, and is answered later."""
        if self.controller is not None and member.alive and member.agent.spoke:
            member.seq += 1
            member.waiting = True
            self._post(member.uid, member.seq, member.agent.view())

    def answer_wait(self, member: Member) -> None:
        if self.controller is None or not member.waiting or not member.alive:
            return
        member.waiting = False
        status = self.controller.status
        command = command_for(status, slot=member.slot, incarnation=member.incarnation, uid=member.uid)
        if command.id != member.agent.acknowledged:
            member.agent.acknowledged = command.id
            self.changes += 1
            self._obey(member, command, status)

    def hang_up(self, member: Member) -> None:
        """Its connection breaks, for one of two reasons: its end, or nothing at all. An agent always has a wait open."""
        known = self.controller.mailbox.get(member.uid) if self.controller is not None else None
        if self.controller is not None and known is not None and not member.deaf:
            member.waiting = False
            self.controller.mailbox[member.uid] = known[0], replace(known[1], hung_up_at=self.now)
            self.changes += 1

    def _obey(self, member: Member, command: AgentCommand, status: JobStatus) -> None:
        agent = member.agent
        if command.op == "exit":
            self.truth.check_exit(member, command)
            self.end_with(member, command.code)
        elif command.op == "save":
            if agent.running and agent.generation == command.generation:
                self._ask_to_stop(member)
        elif command.op == "stop":
            agent.leaving = True
            self._ask_to_stop(member)
        elif command.op == "dump":
            training = self.trainings.get(agent.generation)
            running = agent.running and agent.generation == command.generation and training is not None
            doing = "code" if running and training is not None and training.stuck == member.slot else "backward"
            found = RankStack(member.slot, "train", agent.furthest, 1.0, "S", doing, ("f.py:1 in f",))
            agent.stacks_id, agent.stacks = command.id, (found,) if running else ()
        elif command.op == "wait":
            if agent.running and agent.generation <= command.generation:
                self.fail(member, ExitCode.PEER_LOST)
        elif command.op == "run" and command.generation > agent.highest and not agent.leaving:
            assert command.world is not None
            self.truth.check_run(member, command.world, status)
            if agent.running:
                self.fail(member, ExitCode.PEER_LOST)
            agent.highest = agent.generation = command.generation
            agent.state, agent.outcome, agent.progress, agent.furthest = "Running", None, None, 0
            agent.asked, agent.stopping_at = False, None
            agent.stall, agent.stacks_id, agent.stacks = None, "", ()
            agent.spent = None
            self.trainings.setdefault(command.generation, Training(command.world, mark=self.now))

    def _ask_to_stop(self, member: Member) -> None:
        agent = member.agent
        if agent.running and not agent.asked:
            agent.asked = True
            self.changes += 1
        if agent.running and agent.leaving and agent.stopping_at is None:
            agent.state, agent.stopping_at = "Stopping", self.now

    def leave(self, member: Member) -> None:
        """An agent that is to leave does so once nothing runs; until it asks for that its workers train on."""
        agent = member.agent
        if agent.leaving and agent.running and not agent.asked:
            self._ask_to_stop(member)
            return
        training = self.trainings.get(agent.generation)
        if agent.leaving and agent.running and training is not None and training.step is None:
            self.fail(member, ExitCode.PEER_LOST)  # who has not begun is not waited for
        if agent.leaving and agent.running and training is not None and training.stuck is not None:
            self.end_with(member, ExitCode.STOPPED_UNSAVED)  # its grace period is over
        if not member.alive or not agent.leaving or agent.running:
            return
        if agent.outcome is not None and agent.outcome.kind == "completed" and not agent.by_signal:
            agent.leaving = False
            return
        saved = agent.outcome is not None and agent.outcome.saved
        self.end_with(member, ExitCode.STOPPED_SAVED if saved else ExitCode.STOPPED_UNSAVED)

    # -- training

    def fail(self, member: Member, code: int, *, fingerprint: str = "") -> None:
        """The member's workers end with `code`; all others of its generation cannot go on."""
        agent = member.agent
        if member.alive and agent.running:
            self._break(member)
            outcome = AgentOutcome(
                agent.generation, "failed", code, agent.furthest, at=self.now, fingerprint=fingerprint
            )
            self._settle(member, outcome)

    def leave_early(self, member: Member) -> None:
        """The member's workers end with 0 while others still train."""
        agent = member.agent
        training = self.trainings.get(agent.generation)
        runners = self._runners(training) if training is not None else None
        if member.alive and agent.running and runners is not None and len(runners) > 1:
            self._break(member)
            self._settle(member, AgentOutcome(agent.generation, "completed", 0, agent.furthest, at=self.now))

    def _break(self, member: Member) -> None:
        agent = member.agent
        if agent.running and agent.generation in self.trainings:
            self.trainings[agent.generation].broken = True

    def _settle(self, member: Member, outcome: AgentOutcome) -> None:
        training = self.trainings.get(outcome.generation)
        if training is not None and member.agent.progress is None:
            member.agent.progress = training.restored  # its workers wrote that before their first step
        if training is not None:
            member.agent.spent = training.spent  # shared memory: as it is at the end
        member.agent.outcome = outcome
        member.agent.stall = None
        member.agent.state = "Ready"
        self.truth.settled(member, outcome)
        self.changes += 1

    def hang(self, member: Member) -> None:
        """A worker of the member makes no progress any more."""
        training = self.trainings.get(member.agent.generation)
        if member.agent.running and training is not None and not training.broken and training.stuck is None:
            training.stuck = member.slot
            self.changes += 1

    def deafen(self, member: Member) -> None:
        """Its agent hangs."""
        self.changes += not member.deaf
        member.deaf = True

    def watch(self, member: Member) -> None:
        """The member's agent finds that its worker has been silent for too long."""
        agent = member.agent
        training = self.trainings.get(agent.generation)
        stuck = training is not None and training.stuck is not None and not agent.leaving
        if member.alive and agent.running and stuck and agent.stall is None:
            agent.stall = AgentStall(agent.generation, member.slot, "train", agent.furthest, self.now)
            self.changes += 1

    def notice(self, member: Member) -> None:
        """A worker finds its peers gone."""
        agent = member.agent
        training = self.trainings.get(agent.generation)
        if agent.running and training is not None and training.broken:
            self.fail(member, ExitCode.PEER_LOST)

    def _runners(self, training: Training) -> list[Member] | None:
        """The members of a generation that can take a step together; None where one is missing."""
        members = [self.members.get(m.uid) for m in training.world.members]
        runners = [m for m in members if m is not None and m.alive and m.agent.generation == training.world.generation]
        whole = len(runners) == len(members) and not training.broken and training.stuck is None
        return runners if whole else None

    def train(self, generation: int, *, chatty: bool = True) -> None:
        """Restore, or one step, or an agreed stop, or the end, of a generation whose members all run it."""
        training = self.trainings.get(generation)
        runners = self._runners(training) if training is not None else None
        if training is None or runners is None or not all(m.agent.running for m in runners):
            return
        self.changes += training.step != self.total
        if training.step is None:
            self._restore(training, runners, chatty=chatty)
        elif any(m.agent.asked for m in runners):
            self.checkpoint = training.step
            for member in runners:
                self._settle(member, AgentOutcome(generation, "stopped", 0, training.step, saved=True, at=self.now))
        elif training.step < self.total:
            self._step(training, runners, chatty=chatty)

    def _restore(self, training: Training, runners: list[Member], *, chatty: bool) -> None:
        kept = [m.agent.snapshot for m in runners if m.agent.snapshot is not None]
        step = max(kept)[1] if kept else (self.checkpoint or 0)
        kind = "snapshot" if kept else "scratch" if self.checkpoint is None else "checkpoint"
        training.step = step
        training.restored = AgentProgress(
            training.world.generation, step, self.total, resumed_from=step, resumed_kind=kind
        )
        self.truth.restored(step)
        self.truth.spent("restore", training.spend("restore", self.now) * len(runners))
        for member in runners:
            member.agent.furthest = step
            member.agent.snapshot = (training.world.generation, step)
            if chatty:
                member.agent.progress, member.agent.spent = training.restored, training.spent

    def _step(self, training: Training, runners: list[Member], *, chatty: bool) -> None:
        assert training.step is not None
        training.step += 1
        training.first_step_at = training.first_step_at or self.now
        self.truth.stepped()
        kind = "replayed" if training.step <= training.world.previous_furthest_step else "productive"
        self.truth.spent(kind, training.spend(kind, self.now) * len(runners))
        if training.step % CHECKPOINT_EVERY == 0:
            self.checkpoint = training.step
        for member in runners:
            agent = member.agent
            agent.furthest = training.step
            agent.snapshot = (training.world.generation, training.step)
            if chatty and training.restored is not None:
                agent.spent = training.spent
                agent.progress = replace(
                    training.restored,
                    step=training.step,
                    checkpoint=self.checkpoint,
                    first_step_at=training.first_step_at,
                )

    def complete(self, member: Member) -> None:
        """The member's workers have come to the end: each member finds out by itself."""
        agent = member.agent
        training = self.trainings.get(agent.generation)
        done = training is not None and training.step == self.total and training.stuck is None
        if member.alive and agent.running and done:
            self._settle(
                member, AgentOutcome(agent.generation, "completed", 0, self.total, at=self.now, weights_digest="d" * 64)
            )

    # -- controllers

    def start_controller(self) -> None:
        if self.controller is None:
            self.controller = Controller(self.store.status, self.store.version, self.now)
            self.changes += 1

    def crash(self, *, lingering: bool = False) -> None:
        """The controller ends. `lingering`: what it was about to do still happens, some time, unless it has conflicted."""
        if self.controller is not None:
            if lingering and self.controller.actions:
                self.old_leaders.append(self.controller)
            self.controller = None
            for member in self.members.values():
                member.waiting = False

    def observe(self, *, fresh: bool, stale: frozenset[int] = frozenset()) -> None:
        """Look and plan. `fresh`: read the status anew; `stale`: the slots whose members are seen as they were before."""
        controller = self.controller
        if controller is None:
            return
        if fresh:
            controller.status, controller.version = self.store.status, self.store.version
        places = [p for s in controller.status.slots for p in (s, s.successor) if p is not None]
        recorded = {p.uid for p in places}
        for uid in [u for u in controller.cache if u not in self.members and controller.cache[u].slot not in stale]:
            del controller.cache[uid]
        for member in self.members.values():
            if member.slot not in stale or (member.uid in recorded and member.uid not in controller.cache):
                controller.cache[member.uid] = SlotView(
                    member.slot, member.incarnation, member.uid, member.machine * member.placed, "10.0.0.1", member.deleting,
                    member.leaving(), end=member.end if self.now >= member.told_at else None, unplaced_since=member.unplaced_since, avoids=member.avoids,
                )  # fmt: skip
        views = tuple(
            replace(v, agent=controller.mailbox[u][1] if u in controller.mailbox else None)
            for u, v in controller.cache.items()
        )
        seen = Observed(
            "job",
            self.spec,
            controller.status,
            views,
            HASH,
            controller.listening_since,
            self.stop,
            progress_interval=5.0,
            profile=self.profile,
        )
        actions = plan(seen, self.now)
        assert actions == plan(seen, self.now), "plan() is a function"
        self.truth.check_plan(actions)
        controller.requeue = next((a.seconds for a in actions if isinstance(a, RequeueAfter)), None)
        controller.actions = [a for a in actions if isinstance(a, (CreateMember, DeleteMember, WriteStatus))]

    def apply_one(self, *, crash_before_acknowledged: bool = False) -> None:
        controller = self.controller
        if controller is None or not controller.actions:
            return
        action = controller.actions.pop(0)
        version = self._apply(controller, action)
        if crash_before_acknowledged:
            self.crash()
        elif isinstance(action, WriteStatus):
            if version is None:
                controller.status, controller.version = self.store.status, self.store.version
                controller.actions = []
            else:
                # From here on agents may hear of it.
                controller.status, controller.version = self.store.status, version

    def apply_late(self) -> None:
        """An old leader, paused in the middle of its actions, wakes up. Nobody asks it for commands any more."""
        if self.old_leaders:
            leader = self.old_leaders[0]
            action = leader.actions.pop(0)
            if self._apply(leader, action) is None and isinstance(action, WriteStatus):
                leader.actions = []
            if not leader.actions:
                self.old_leaders.pop(0)

    def _apply(self, controller: Controller, action: Action) -> int | None:
        if isinstance(action, CreateMember):
            self.truth.check_create(action, current=controller.version == self.store.version)
            self.create(action.slot, action.incarnation, action.avoid, action.commit)
        elif isinstance(action, DeleteMember):
            member = self.members.get(action.uid)
            if member is not None and member.alive:
                self.truth.check_delete(member)
                member.deleting = True
                self.terminate(member)
                self.changes += 1
        elif isinstance(action, WriteStatus):
            version = self.store.write(action.status, controller.version)
            self.changes += version is not None
            return version
        return None

    # -- without faults

    def round(self, frozen: frozenset[int] = frozenset(), *, chatty: bool = True) -> None:
        """A little of everything that happens by itself when nothing goes wrong.

        The agents of `frozen` slots are slow: they neither speak nor act in this round, while their workers train on.
        """
        self.start_controller()
        self.place()
        self.now += 0.01
        awake = [m for m in self.living() if m.slot not in frozen and not m.deaf]
        self._end_the_deaf()
        for member in awake:
            self.boot(member)
            self.notice(member)
            self.watch(member)
            self.complete(member)
            self.leave(member)
            if member.agent.terminating_at is not None and not member.agent.running:
                self.end_with(member, ExitCode.STOPPED_UNSAVED)
        for generation in list(self.trainings)[-1:]:
            self.train(generation, chatty=chatty)
        for member in awake:
            if not member.waiting:
                self.begin_wait(member)
        self.observe(fresh=True)
        while self.controller is not None and self.controller.actions:
            self.apply_one()
        for member in awake:
            if member.waiting:
                self.begin_wait(member)  # a report beside the wait
            self.answer_wait(member)

    def _end_the_deaf(self) -> None:
        """Those that hear no SIGTERM are killed in the end; and a world that waits for one of them gives up."""
        for member in [m for m in self.living() if m.deaf and m.agent.terminating_at is not None]:
            self.end(member, Cause.DELETED)
        for training in list(self.trainings.values())[-1:]:
            members = [self.members.get(m.uid) for m in training.world.members]
            absent = [m for m in members if m is not None and m.deaf and m.agent.generation < training.world.generation]
            training.broken = training.broken or bool(absent)

    def quiet_down(self, limit: int = 600) -> None:
        """Rounds until the job has ended and everyone has gone. Time passes only as `plan()` asks for it."""
        self.network.clear()
        self.machines = 99
        for member in self.members.values():
            member.told_at = 0.0
        while self.old_leaders:
            self.apply_late()
        for _ in range(limit):
            if self.store.status.phase in ("Succeeded", "Failed") and not self.living():
                return
            before = self.changes
            for generation in list(self.trainings)[-1:]:
                for _ in range(5):
                    self.train(generation)
            self.round()
            if self.changes == before:
                assert self.controller is not None
                requeue = self.controller.requeue
                assert requeue is not None, f"nothing happens and nobody will look again: {self.describe()}"
                self.now += requeue + 0.001
        raise AssertionError(f"not at rest after {limit} rounds: {self.describe()}")

    def describe(self) -> str:
        members = [(m.slot, m.incarnation, m.uid, m.agent, m.deleting) for m in self.living()]
        return f"{self.store.status!r}\n{members}"
