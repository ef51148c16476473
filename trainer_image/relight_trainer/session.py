"""What surrounds the steps of a job, whoever trains: the core's loop and the client of own scripts alike.

session = Session(context)              the process group is formed by then
session.restore(objects, modules)       the newest state, or None
for each step:
    session.enter()                     raises Stopped where all ranks have agreed to stop; also between its parts
    ...                                 forward, backward, optimizer step
    session.step_done(cursor)
session.complete(...)
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn, Protocol

from torch import Tensor, nn

from relight_agent.exits import ExitCode, Manner
from relight_agent.files import MAX_METRICS, MAX_NOTICES, SECTIONS, Heartbeat, Outcome, Progress, clip
from relight_agent.ledger import CHECKPOINT, DRAIN, EVALUATION, PRODUCTIVE, REPLAYED, Ledger
from relight_trainer import learned_imports
from relight_trainer.buffer_history import BufferHistory
from relight_trainer.buffer_layouts import layout_agreement
from relight_trainer.chaos import Chaos
from relight_trainer.checkpoint import (
    Checkpoint,
    CheckpointFolder,
    Live,
    Saver,
    Snapshots,
    SnapshotsOff,
    State,
    StorageFailed,
    live,
    pack,
    weights_digest,
)
from relight_trainer.context import WorkerContext
from relight_trainer.due import CheckpointDue
from relight_trainer.equality.ranks import EqualRanks
from relight_trainer.equality.reading import with_own_notes
from relight_trainer.equality.watch import Comparisons
from relight_trainer.leaving import Decision, MemberState, SaveTime, agree
from relight_trainer.loading import that_copy
from relight_trainer.loop_end import LastStep, UnevenRanks, went_on
from relight_trainer.object_states import check_savable, load_state
from relight_trainer.peers import TIMEOUT, Interrupted, Patience, Peers, StoreExchange, connect
from relight_trainer.per_rank import PerRank
from relight_trainer.replicas import EqualBuffers
from relight_trainer.restore import SEEN_SECONDS, RanksDiffer, Restored, newest_state, spread
from relight_trainer.snapshot_interval import SnapshotInterval
from relight_trainer.stop import StopAgreement

_START, _DATA, _TRAIN = SECTIONS.index("start"), SECTIONS.index("data"), SECTIONS.index("train")
_EVALUATION, _CHECKPOINT, _END = SECTIONS.index("evaluation"), SECTIONS.index("checkpoint"), SECTIONS.index("end")
_AFTER = SECTIONS.index("after")
_HISTORY = "buffer_history"  # in the state, where buffers have changed their shapes
_PROGRESS_SECONDS = 1.0
# For a checkpoint in flight, at a stop that needs none.
_FINISH_SECONDS = 5.0


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Cursor(NamedTuple):
    """Where training stands after `step` optimizer steps. `weights_digest` is set in the final state, and only there."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches consumed in this epoch
    samples: int = 0  # samples consumed by the whole job
    metrics: dict[str, str] = {}  # noqa: RUF012  # replaced, never changed
    weights_digest: str = ""
    early: bool = False  # of a final state: before the planned end, by `run.finish()`
    last_batch: str = ""  # of own scripts: what is known of the batch before the place, see script_data.LastBatch


class Pace(NamedTuple):
    """What a worker's generation has done: steps, the samples of the whole job in them, and the seconds they took."""

    steps: int = 0
    samples: int = 0
    seconds: float = 0.0


class Stopped(Exception):
    """All ranks have stopped at the same step."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"stopped at step {outcome.step}")
        self.outcome = outcome


class MissingState(Exception):
    """The saved state lacks an object that the training code has now."""

    exit_code = ExitCode.BAD_CONFIG


class Session:
    """One worker's training in one generation."""

    def __init__(self, context: WorkerContext, *, own_group: bool = True) -> None:
        """`own_group`: the process group is of `peers.form`, and its time-out not somebody's choice."""
        self.cursor = Cursor()
        self.total_steps = 0  # 0 where unknown
        self.batches_per_epoch = 0  # 0 where unknown
        self.peers = Peers()
        self.pace = Pace()
        self.checkpoint_time: float | None = None  # unix seconds, of this generation's newest
        self.shown: dict[str, str] = {}  # beside the metrics in progress, and nowhere else: of this rank and run alone
        # What surrounds a session may do: once all ranks hold the same state, ...
        self.state_equal: Callable[[], None] = _nothing
        self.before_saving: Callable[[], None] = _nothing  # right before it is copied; an exception keeps it from that
        self.saving: Callable[[], AbstractContextManager[None]] = nullcontext  # around a checkpoint
        # Seconds of this rank's own work in this generation's steps, waiting for peers left out; None: not known.
        self.own_seconds: Callable[[], float] | None = None
        self.compared: Mapping[str, Any] = {}  # over ranks, beside the objects of the state
        self.waited: Callable[[], float] = float  # seconds that steps have waited for their data, in all
        self.loop = ""  # what the steps' number follows from, in words: for who compares it over ranks
        self._section = _START
        self._entered_at = 0.0
        self._context = context
        self._notices: list[str] = []
        self._progress = Progress(context.generation, step=0, formed_at=time.monotonic())
        self._progress_due = 0.0
        self._snapshot_step: int | None = None  # of the newest that this rank has written
        self._snapshot_interval = SnapshotInterval(
            context.job.snapshot_every,
            costs=time.thread_time if self.peers.device.type == "cpu" else time.monotonic,
        )
        self._heartbeat = Heartbeat(context.folder.heartbeat_path(context.local_rank))
        self._heartbeat.beat(_START, 0)
        # Around the wait for a batch; cheap enough for every one.
        self.data_wanted = self._heartbeat.entering(_DATA)
        self.data_ready = self._heartbeat.entering(_TRAIN)
        self._patience = Patience(context.folder.patience) if own_group else None
        self._ledger = Ledger(context.folder.ledger_path if context.local_rank == 0 else None)
        prefix = self._prefix = f"relight/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{context.generation}"
        self._exchange = StoreExchange(connect(prefix))
        self._stop = StopAgreement(
            connect(prefix),
            rank=context.rank,
            world=context.world_size,
            requested=self._requested,
            say=self.say,
            uneven=self._fail_uneven,
            poll=max(0.02, 0.0005 * context.world_size),  # bounds what the store is asked in a large world
        )
        job = context.job
        self._snapshots: Snapshots | None = None
        if context.local_rank == 0:
            self._snapshots = self._members_snapshots()
        self._checkpoints: CheckpointFolder | None = None
        self._saver: Saver | None = None
        if job.checkpoint_dir:
            self._checkpoints = CheckpointFolder.of_job(job, say=self.say)
            self._saver = Saver(
                self._checkpoints,
                StoreExchange(connect(f"{prefix}/saves")),
                agree=self._exchange,
                rank=context.rank,
                world=context.world_size,
                local_world=context.local_world_size,
                timeout=TIMEOUT.total_seconds(),
                say=self.say,
            )
        self._save_time = SaveTime(context.run_dir)
        self._due = CheckpointDue(job, rank=context.rank, exchange=self._exchange)
        self._equal = EqualRanks(
            lambda: Comparisons(
                connect(f"{prefix}/equality"),
                rank=context.rank,
                world=context.world_size,
                forget=self._forget_snapshots,
            ),
            rank=context.rank,
            world=context.world_size,
            exchange=self._exchange,
            say=self.say,
            timeout=TIMEOUT.total_seconds(),
        )
        self._chaos = Chaos(context)
        self._objects: Mapping[str, Stateful] = {}
        self._live: dict[str, Live] = {}
        self._others: list[tuple[str, Stateful]] = []
        self._buffers: EqualBuffers | None = None
        self._history: BufferHistory | None = None

    @property
    def progress(self) -> Progress:
        """The progress as far as it has been noted: the step in it may be a second old, the snapshot's is not."""
        return replace(self._progress, snapshot=self._snapshot_step)

    @property
    def checkpoint_step(self) -> int | None:
        """The step of the newest committed checkpoint, where there is one."""
        known = self._progress.checkpoint
        return self._context.committed_step if known is None else known

    @property
    def exchange(self) -> StoreExchange:
        """For the main thread of each rank: its client serves one call at a time."""
        return self._exchange

    def say(self, text: str) -> None:
        """Tell a person: in the log, and in status through the progress."""
        print(f"relight: {text}", flush=True)
        self._notices = [*self._notices, clip(text)][-MAX_NOTICES:]

    def restore(
        self,
        objects: Mapping[str, Stateful],
        modules: Iterable[nn.Module],
        fresh: Callable[[], None] | None = None,
        follow: Collection[str] = (),
        per_rank: Mapping[str, Stateful] | None = None,
    ) -> Restored | None:
        """Load the newest state that any rank holds into `objects`; `modules` are those whose buffers are kept equal.

        Where None is returned, rank 0's present state is what training starts from; `fresh`, called on rank 0 alone,
        has then had its say in it. Before that the ranks' states are compared: `EqualRanks.at_start` says what `follow` is.
        `per_rank` are objects whose state is each rank's own.
        """
        check_savable({**objects, **(per_rank or {})})
        context = self._context
        own = PerRank(per_rank or {}, rank=context.rank, world=context.world_size)
        if own:
            self._keep_apart(own)
        self._objects = objects
        self._history = BufferHistory(objects)
        self._live = {name: found for name, o in objects.items() if (found := live(o)) is not None}
        self._others = [(name, o) for name, o in objects.items() if name not in self._live]
        self._buffers = EqualBuffers(
            modules, self.peers.device, layout_agreement(f"{self._prefix}/buffers", self._patient_for)
        )
        restored = newest_state(
            self.peers,
            snapshots=None if own else self._snapshots or self._members_snapshots(),
            checkpoints=self._checkpoints,
            generation=context.generation,
            committed_step=context.committed_step,
            own=self._state,
            local_world=context.local_world_size,
            lent=that_copy(objects),
            new_member=context.new_member and context.local_rank == 0,
        )
        if restored is not None:
            self._load(restored.state)
            notes = with_own_notes(objects)
            restored.confirm(self.peers, notes.keys())
            self._equal.at_restore(notes, restored.position.step)
            self._moved(restored)
            if own:
                self._load_own(own)
            step = restored.position.step
            self._progress = replace(self._progress, resumed_from=step, resumed_kind=restored.kind)
            if restored.kind == "checkpoint":
                self._progress = replace(self._progress, checkpoint=step)
        else:
            self._equal.at_start(objects, follow)
            if self.peers.rank == 0 and fresh is not None:
                fresh()
        if restored is None and self.peers.world > 1:
            # Modules may have begun differently on each rank.
            self._load(
                spread(
                    self.peers,
                    pack(self._state()) if self.peers.rank == 0 else None,
                    self._state,
                    local_world=context.local_world_size,
                    lent=that_copy(objects),
                )
            )
        self._equal.follow({**objects, **self.compared})
        # A replacement holds the state from here on, and this generation's outranks what older ones have left.
        self._write_snapshot()
        self._due.start(self.cursor.step)
        self._stop.at_boundary(self.cursor.step)
        self._section = _TRAIN
        self.alive()
        self._ledger.turn_to(self._kind_of_step())
        self._report(restored_at=time.monotonic())
        self._serve_metrics()
        return restored

    def enter(self, part: int = 0, *, last: bool = True) -> None:
        """Begin the next step, or a later `part` of it. Raises Stopped, everything saved, where all ranks stop here.

        `last`: the step is not dropped any more: it exchanges its gradients, or some peer has its last part now. Must be
        the same on all ranks. A step of one part has nothing to drop.
        """
        if not self._stop.enter(self.cursor.step, part, last=last):
            if part:
                self._drop()
            self._leave()
        if part == 0:
            self._entered_at = time.monotonic()
            if not last:
                assert self._buffers is not None
                self._buffers.keep()

    def leaving(self) -> bool:
        """Whether all ranks have agreed to stop here: for polling in evaluation, which goes on as long as this is asked."""
        if not self.peers.waiting:
            self._heartbeat.beat(_EVALUATION, self.cursor.step)
        return self._stop.should_leave(self.cursor.step)

    def step_done(self, cursor: Cursor) -> None:
        """The step that was entered is done, and `cursor` says where that leaves training."""
        assert self._buffers is not None
        self._buffers.sync()
        before, self.cursor = self.cursor, cursor
        self.state_equal()  # which may log, into the new cursor
        self._equal.step_done(cursor.step)
        self._stop.at_boundary(cursor.step)
        ended = time.monotonic()
        if self._snapshot_interval.is_due():
            self._snapshot_interval.begin()
            self._write_snapshot()
            self._snapshot_interval.end()
        now = time.monotonic()
        self._heartbeat.beat(_TRAIN, cursor.step)
        self._ledger.step(self._kind_of_step(cursor.step), ended=ended, saved=now, waited=self.waited())
        steps, samples, seconds = self.pace
        self.pace = Pace(steps + 1, samples + cursor.samples - before.samples, seconds + now - self._entered_at)
        if self._progress.first_step_at is None:
            self._report(first_step_at=now)
            if self._context.local_rank == 0:
                learned_imports.note(self._context.run_dir)
        elif now >= self._progress_due:
            self._report()
        self._chaos.after_step(cursor.step)
        if self._saver is None:
            return
        if (committed := self._saver.poll()) is not None:
            self._committed(committed)
        if steps == 0:
            self._saver.prepare(self._state)
        if self._due.at(cursor.step, cursor.epoch if cursor.epoch > before.epoch else None):
            self._save_checkpoint(self._saver, at_once=False)

    def log(self, metrics: Mapping[str, str]) -> None:
        """Add to the metrics that progress, checkpoints and the end of the job show; values are text."""
        self.cursor = self.cursor._replace(metrics=dict([*{**self.cursor.metrics, **metrics}.items()][-MAX_METRICS:]))

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Around evaluation between steps, which may raise Interrupted as soon as `leaving()`."""
        self._write_missing_snapshot()
        # Before ranks may leave it at different moments, some with what the evaluation has changed.
        self._equal.compare(self.cursor.step)
        self._heartbeat.beat(_EVALUATION, self.cursor.step)
        self._ledger.turn_to(EVALUATION)
        try:
            yield
        except Interrupted:
            self._leave()
        self._heartbeat.beat(_TRAIN, self.cursor.step)
        self._ledger.turn_to(self._kind_of_step())

    @contextmanager
    def reading_again(self) -> Iterator[Callable[[], None]]:
        """Around data that is read though it has been trained on: replayed time. Call what is entered for each batch."""
        self._ledger.turn_to(REPLAYED)
        yield lambda: self._heartbeat.beat(_DATA, self.cursor.step)
        self._heartbeat.beat(_TRAIN, self.cursor.step)
        self._ledger.turn_to(self._kind_of_step())

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """What is done within is one of SECTIONS, for whoever judges how long it may take."""
        before, self._section = self._section, SECTIONS.index(name)
        self.alive()
        try:
            yield
        finally:
            self._section = before
            self.alive()

    def alive(self) -> None:
        """Say that this rank is at work: its silence begins anew."""
        self._heartbeat.beat(self._section, self.cursor.step)

    def complete(self, named_tensors: Iterable[tuple[str, Tensor]], *, early: bool = False) -> Outcome:
        """All steps are done: compare the weights over ranks, save the final checkpoint, and say so.

        `early`: before the planned end. What follows in this process is in the section "after".
        Raises Stopped where all ranks have agreed to stop here, UnevenRanks where another rank has done another number
        of steps, RanksDiffer where their weights are not the same.
        """
        if not self._stop.finish(self.cursor.step, self.loop):
            self._leave()
        self._heartbeat.beat(_END, self.cursor.step)
        self._ledger.turn_to(CHECKPOINT)
        self._stop.wait_for_all()
        self._equal.compare(self.cursor.step)  # anew: an evaluation may have changed it since
        self._equal.check(self.cursor.step)
        digest = weights_digest(named_tensors)
        digests = self.peers.gather(bytes.fromhex(digest))
        differing = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if differing:
            raise RanksDiffer(f"at the end ranks {differing} hold other weights than rank 0")
        self.cursor = self.cursor._replace(weights_digest=digest, early=early)
        self._write_snapshot()
        if self._saver:
            self._save_checkpoint(self._saver, final=True)
        return self.completed()

    def completed(self) -> Outcome:
        """The outcome of a job whose final state is loaded: at its end, or in a run after it."""
        self._stop.close()
        self._equal.close()
        self._section = _AFTER
        self.alive()
        self._ledger.turn_to(EVALUATION)
        self._report()
        result = {"weightsDigest": self.cursor.weights_digest, "metrics": self.cursor.metrics}
        return Outcome("completed", rank=self._context.rank, step=self.cursor.step, at=time.monotonic(), result=result)

    def _serve_metrics(self) -> None:
        port = int(os.environ.get("RELIGHT_METRICS_PORT") or 0)
        context = self._context
        if not port or context.local_rank != 0:
            return
        try:
            from relight_trainer import metrics
        except ModuleNotFoundError as error:  # in a user's own image only torch is sure to be there
            self.say(f"metrics are off: {error}")
            return
        collector = metrics.SessionCollector(self, node_rank=context.node_rank, job_wide=context.rank == 0)
        metrics.serve(port, collector, self.say)

    def _patient_for(self) -> float:
        """Seconds that another rank may take to come to where this one waits, as long as agents learn."""
        learned = self._context.folder.patience() if self._patience is not None else None
        return max(TIMEOUT.total_seconds(), learned or 0.0)

    def _fail_uneven(self, first: LastStep, done: int, within: bool) -> None:  # a callback
        """In a thread beside the main one, which waits in a collective: the agent ends this process once it has read it."""
        context = self._context
        message = clip(went_on(first, context.rank, done, self.loop, within=within))
        outcome = Outcome(
            "failed", context.rank, done, int(UnevenRanks.exit_code), message=message, at=time.monotonic(),
            manner=str(Manner.RAISED),
        )  # fmt: skip
        context.folder.write_outcome(context.local_rank, outcome)
        print(f"relight: {message}", flush=True)

    def _requested(self) -> bool:
        command = self._context.folder.command()
        return command is not None and command.op in {"save", "stop"}

    def _state(self) -> State:
        state = {**{name: o.state_dict() for name, o in self._objects.items()}, "loop": self.cursor._asdict()}
        return self._with_history(state)

    def _live_state(self) -> State:
        """The state as snapshots take it, which look themselves for what has changed in it."""
        state: State = {**self._live}
        for name, stateful in self._others:
            state[name] = stateful.state_dict()
        state["loop"] = self.cursor._asdict()
        return self._with_history(state)

    def _with_history(self, state: State) -> State:
        assert self._history is not None
        if record := self._history.record():
            state[_HISTORY] = record
        return state

    def _load(self, state: State) -> None:
        missing = sorted(set(self._objects) - set(state))
        if missing:
            raise MissingState(f"the saved state holds {sorted(set(state) - {'loop'})} and lacks {missing}")
        assert self._history is not None
        self._history.fit(state.get(_HISTORY, {}), state)
        for name, stateful in self._objects.items():
            load_state(name, stateful, state[name])
        self.cursor = Cursor(**state["loop"])

    def _members_snapshots(self) -> Snapshots:
        """Each rank of a member reads them, one writes."""
        job = self._context.job
        return Snapshots(self._context.snapshots, job_uid=job.uid, config_hash=job.config_hash)

    def _moved(self, restored: Restored) -> None:
        """Note what this restore has moved between ranks."""
        size, handed = len(restored.handed.packed.memory), restored.handed
        self._progress = replace(self._progress, sent_bytes=handed.sent, received_bytes=handed.received)
        print(
            f"relight: rank {self.peers.rank} restored step {restored.position.step} from a {restored.kind} of "
            f"{size / 1e6:.1f} MB: {handed.received / 1e6:.1f} MB received from another rank, "
            f"{handed.sent / 1e6:.1f} MB sent",
            flush=True,
        )

    def _keep_apart(self, own: PerRank) -> None:
        """Save what this rank has for itself in checkpoints; a member's snapshot would lack that of other members."""
        self._snapshots = None
        if self._saver is None:
            self.say("per_rank: no state of this job is saved, because it has no checkpoint folder (spec.checkpoint)")
            return
        self._saver.own = own.state
        self.say(
            "per_rank: the state is kept in checkpoints only, not in snapshots: a lost member costs the steps since the last checkpoint"
        )

    def _load_own(self, own: PerRank) -> None:
        checkpoints = self._checkpoints
        assert checkpoints is not None
        name = self.peers.broadcast(bytearray(checkpoints.loaded.encode()) if self.peers.rank == 0 else None, 0)
        checkpoints.load_own(bytes(name).decode(), own.load, timeout=SEEN_SECONDS)

    def _write_snapshot(self) -> None:
        if self._snapshots is None:
            return
        self.before_saving()
        try:
            self._snapshots.write(self._live_state(), generation=self._context.generation, step=self.cursor.step)
        except SnapshotsOff as error:
            self._snapshots = None
            self.say(f"training goes on without snapshots: {error}")
        else:
            self._snapshot_step = self.cursor.step
        if self._equal.differ:  # since this one was begun
            self._forget_snapshots()

    def _forget_snapshots(self) -> None:
        """The ranks hold different states: none of them is to be saved when this member ends, nor resumed from."""
        if self._context.local_rank == 0:
            self._members_snapshots().forget()

    def _write_missing_snapshot(self) -> None:
        """Before anything that takes its time: the newest snapshot may be of an earlier step."""
        if self._snapshot_step != self.cursor.step:
            self._write_snapshot()

    def _save_checkpoint(self, saver: Saver, *, final: bool = False, at_once: bool = True) -> None:
        if at_once:
            self._write_missing_snapshot()
        self.before_saving()
        self._heartbeat.beat(_CHECKPOINT, self.cursor.step)
        if not at_once:  # else whoever asked for it has looked
            self._equal.check(self.cursor.step)
        if self._ledger.kind != DRAIN:
            self._ledger.turn_to(CHECKPOINT)
        generation, step, cursor = self._context.generation, self.cursor.step, self.cursor._asdict()
        if saver.writing is None:
            self._save_time.begin()
        with self.saving():
            committed: Checkpoint | None
            if at_once:
                committed = saver.now(self._state(), generation=generation, step=step, cursor=cursor, final=final)
            else:
                committed = saver.due(
                    self._state, generation=generation, step=step, cursor=cursor,
                    before_waiting=self._write_missing_snapshot,
                )  # fmt: skip
        self._due.saved()
        self._heartbeat.beat(_TRAIN, self.cursor.step)
        if self._ledger.kind != DRAIN:
            self._ledger.turn_to(self._kind_of_step())
        if committed is not None:
            self._committed(committed)

    def _committed(self, checkpoint: Checkpoint) -> None:
        self._save_time.end()
        self.checkpoint_time = time.time()
        self._report(checkpoint=checkpoint.position.step)

    def _drop(self) -> None:
        """What has been done of the step under way: the next generation does it again, all of it."""
        assert self._buffers is not None
        self._buffers.bring_back()  # they alone have moved
        self._ledger.kind = DRAIN

    def _leave(self) -> NoReturn:
        """Every rank is here, at the agreed step: see leaving.py for what is saved, and where."""
        self._stop.close()
        self._ledger.turn_to(DRAIN)
        self._write_missing_snapshot()
        step, rank, saver = self.cursor.step, self._context.rank, self._saver
        self._equal.check(step)  # the next generation gives one rank's state to all; a checkpoint holds parts of each
        member, decision = self._agree_on_leaving()
        saved, message = member.snapshot, ""
        if saver is not None and saver.writing == step and (committed := saver.wait()) is not None:
            self._committed(committed)
        if saver is not None and self._progress.checkpoint != step and decision.checkpoint:
            try:
                self._save_checkpoint(saver)
            except StorageFailed as error:  # a stop must not fail for it: peers may leave at once
                saved, message = False, clip(str(error))
        elif saver is not None:
            self._let_it_finish(saver)
        if decision.short:
            self.say("there is no time left for a checkpoint: the snapshot is to be flushed")
        self._report()
        committed_here = self._progress.checkpoint == step
        kept = "checkpoint" if committed_here else "peers" if decision.kept and member.leaves else ""
        raise Stopped(
            Outcome(
                "stopped", rank, step, saved=saved or committed_here, message=message, at=time.monotonic(), kept=kept
            )
        )

    def _agree_on_leaving(self) -> tuple[MemberState, Decision]:
        context, mine = self._context, None
        if context.local_rank == 0:
            has_snapshot = self._snapshot_step == self.cursor.step
            mine = MemberState.of(context.folder.command(), snapshot=has_snapshot, now=time.monotonic())
        return agree(
            self._exchange,
            mine,
            node_rank=context.node_rank,
            members=context.world_size // context.local_world_size,
            rank=context.rank,
            save_seconds=self._save_time.seconds,
            timeout=TIMEOUT.total_seconds(),
        )

    def _let_it_finish(self, saver: Saver) -> None:
        """What is being written beside the training would be lost with this process: it may take a little longer."""
        deadline = time.monotonic() + _FINISH_SECONDS
        while saver.writing is not None and time.monotonic() < deadline:
            if (committed := saver.poll()) is not None:
                self._committed(committed)
            time.sleep(0.005)

    def _kind_of_step(self, step: int | None = None) -> int:
        """Whether `step`, or the next one, is done for the first time."""
        step = self.cursor.step + 1 if step is None else step
        return REPLAYED if step <= self._context.furthest_step else PRODUCTIVE

    def _report(self, **changes: Any) -> None:
        """Note `changes` of the progress and, as this member's local rank 0, write it."""
        now = time.monotonic()
        cursor = self.cursor
        self._progress = replace(
            self._progress,
            step=cursor.step,
            snapshot=self._snapshot_step,
            total_steps=self.total_steps,
            epoch=self._epoch(),
            samples=cursor.samples,
            metrics={**cursor.metrics, **self.shown},
            updated_at=now,
            notices=self._notices,
            **changes,
        )
        self._progress_due = now + _PROGRESS_SECONDS
        if self.own_seconds is not None and self.pace.steps:
            self._heartbeat.tell_own(self.own_seconds(), self.pace.steps)
        if self._patience is not None:
            self._patience.follow()
        if self._context.local_rank == 0:
            self._context.folder.write_progress(self._progress)

    def _epoch(self) -> str:
        if not self.batches_per_epoch:
            return str(self.cursor.epoch)
        return f"{self.cursor.epoch + self.cursor.batch / self.batches_per_epoch:.2f}"


def _nothing() -> None: ...
