"""The checkpoints of one job in a place that all its machines share: a folder, or an object store.

step-000001200.g3/           committed: renamed into place, its manifest fsynced last
    manifest.json            sizes, checksums, order, cursor; sealed with a checksum of its own
    state.json               what is not a tensor
    shard-0-of-2.safetensors ...
    own-0-of-2.safetensors ...   what each rank has for itself, where there is such state
step-000001500.g4.final/     the state at the end of training
tmp-*  trash-*               being written, being deleted: never read
corrupt-*  fenced-*          set aside: damaged, or written by a generation that was over
fence.json                   the newest generation that has begun, and the checkpoints that it found

This is a folder's layout; an object store's differs as `object_place` says.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from relight_agent.files import JobFile
from relight_trainer.checkpoint.container import State, unpack
from relight_trainer.checkpoint.errors import (
    CheckpointError,
    ConfigChanged,
    Fenced,
    NoUsableCheckpoint,
    StorageFailed,
    UnsupportedState,
)
from relight_trainer.checkpoint.exchange import Exchange, all_or_none
from relight_trainer.checkpoint.manifest import (
    Checkpoint,
    FileRecord,
    Position,
    folder_name,
    manifest_text,
    parse_manifest,
    problem,
    read_manifest,
)
from relight_trainer.checkpoint.place import Place, place_of
from relight_trainer.checkpoint.retention import LEAST_KEPT, Best, retired
from relight_trainer.checkpoint.seal import MOST_BYTES, sealed, unsealed
from relight_trainer.checkpoint.shards import STATE, Content, is_own, load, own_name, shard_name
from relight_trainer.config_diff import differences, refused
from relight_trainer.identity import identity as identity_of

_FENCE, _FENCE_KIND = "fence.json", "fence"


@dataclass(frozen=True)
class _Fence:
    created: float
    generation: int
    known: frozenset[str]  # the seals of the checkpoints there were when it began

    def admits(self, checkpoint: Checkpoint) -> bool:
        """False for what an older generation wrote after this one began."""
        if (checkpoint.created, checkpoint.position.generation) >= (self.created, self.generation):
            return True
        return checkpoint.seal in self.known


class CheckpointFolder:
    """Order of checkpoints: (job created, generation, step). Retention keeps the newest `keep` sound ones (two at
    least), every final one, and the `best`. `config` is the core's configuration, which tells a harmless change from
    another one. `folder` may be a URL that fsspec knows. `say` hears what a person should know. `timeout` (seconds) bounds how long a rank waits
    for the others to write their shards.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        job_uid: str,
        created: float,
        config_hash: str,
        config: Mapping[str, Any] | None = None,
        identity: Mapping[str, Any] | None = None,
        commit: str = "",
        keep: int = 3,
        best: Best | None = None,
        say: Callable[[str], None] = print,
        timeout: float = 1800.0,
    ) -> None:
        self._place: Place = place_of(folder)
        self._job_uid = job_uid
        self._created = created
        self._config_hash = config_hash
        self._config = config
        self._identity = identity if identity is not None else config
        self._commit = commit
        self._keep = max(keep, LEAST_KEPT)
        self._best = best
        self._say = say
        self._timeout = timeout
        self._saves = 0
        self._last: Checkpoint | None = None
        self.loaded = ""  # the name of the checkpoint that was loaded last
        self._own_fence: tuple[int, bytes] | None = None  # of the generation that this process has begun

    def __str__(self) -> str:
        return str(self._place)

    @classmethod
    def of_job(cls, job: JobFile, say: Callable[[str], None] = print) -> Self:
        """The checkpoints of a job that has a place for them."""
        return cls(
            job.checkpoint_dir,
            job_uid=job.uid,
            created=job.created,
            config_hash=job.config_hash,
            config=job.entry.get("config"),
            identity=identity_of(job.entry, {**job.env, **job.env_references}),
            commit=job.commit(),
            keep=job.checkpoint_keep,
            best=Best(**job.checkpoint_best) if job.checkpoint_best else None,
            say=say,
        )

    def begin_generation(self, generation: int) -> None:
        """Shut out older generations for good: what they write from now on is never read. Rank 0, before `newest`.

        Raises `Fenced` where a newer generation has begun, `StorageFailed`.
        """
        with self._storage("begin a generation"):
            self._place.prepare()
            self._refuse_if_fenced(generation)
            fence = self._fence()
            if fence is None or (fence.created, fence.generation) < (self._created, generation):
                sound, _ = self._scan()
                known = [c.seal for c in sound if fence is None or fence.admits(c)]
                body = {"created": self._created, "generation": generation, "job_uid": self._job_uid, "known": known}
                self._own_fence = generation, json.dumps(sealed(_FENCE_KIND, body)).encode()
                self._place.put(_FENCE, self._own_fence[1])
            self._place.sweep()

    def has_begun(self, generation: int) -> bool:
        """Whether it is seen from here that this generation, or a later one, has begun. Raises `StorageFailed`."""
        with self._storage("read"):
            fence = self._fence()
            return fence is not None and (fence.created, fence.generation) >= (self._created, generation)

    def newest(self, newer_than: Position | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies, None where there is none. Rank 0, after `begin_generation`.

        `newer_than` is the position of a state that somebody holds already: checkpoints up to it are not looked at, and
        None says that there is no better one. Damaged ones are set aside, and said.
        Raises `NoUsableCheckpoint` where there are only damaged ones (and no `newer_than`), `ConfigChanged` where the
        newest belongs to another configuration, `StorageFailed`.
        """
        with self._storage("read"):
            if not self._place.exists():
                return None
            fence = self._fence()
            sound, damaged = self._scan()
            bad = [self._set_aside(name, why) for name, why in damaged]
            for checkpoint in sorted(sound, key=lambda c: c.order, reverse=True):
                if fence is not None and not fence.admits(checkpoint):
                    self._say(
                        f"{checkpoint.path.name} is not used: generation {checkpoint.position.generation} wrote it after "
                        f"generation {fence.generation} had begun"
                    )
                    self._place.set_aside(checkpoint.path.name, "fenced")
                    continue
                if newer_than is not None and checkpoint.order <= (self._created, newer_than, False):
                    return None
                if checkpoint.config_hash != self._config_hash:
                    self._judge_change(checkpoint)
                why = problem(checkpoint, self._place, checksums=True)
                if why is None:
                    return checkpoint
                bad.append(self._set_aside(checkpoint.path.name, why))
            if newer_than is not None:
                return None
            bad = bad or [f"{name}: set aside earlier" for name in self._place.names("corrupt-")]
            if bad:
                raise NoUsableCheckpoint(
                    f"no checkpoint in {self._place} can be used ({'; '.join(bad)}). Put a sound copy back, or delete the "
                    f"folder to start from scratch"
                )
            return None

    def load(self, checkpoint: Checkpoint) -> State:
        """The state of what `newest` gave. Raises `StorageFailed`, `NoUsableCheckpoint`."""
        with self._storage("read"):
            name = checkpoint.path.name
            files = {file: self._place.fetch(name, file) for file in checkpoint.files if not is_own(file)}
            try:
                state = load(files)
            except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
                raise NoUsableCheckpoint(
                    f"{checkpoint.path} has its right checksums, and its state cannot be read "
                    f"({type(error).__name__}: {error}); delete that folder to go on from the checkpoint before it"
                ) from None
            self._place.forget()
            self.loaded = name
            return state

    def load_own(self, name: str, load: Callable[[int, Callable[[int], State], str], None], *, timeout: float) -> None:
        """Give `load` (the ranks that saved checkpoint `name` with a state of their own, what reads that of one of them, the path).

        Any rank. It may take `timeout` seconds until what another machine has seen is seen here.
        Raises what `load` raises, `StorageFailed`, `NoUsableCheckpoint` where a file is not what was written.
        """

        def part(rank: int) -> State:
            file = own_name(rank, saved_by)
            with self._storage(f"read {file}"):
                data = self._place.fetch(name, file)
                if hashlib.sha256(data).hexdigest() != checkpoint.files[file].sha256:
                    raise NoUsableCheckpoint(f"{checkpoint.path}: {file} does not match its checksum")
                return unpack(data)

        deadline = time.monotonic() + timeout
        while True:
            try:
                with self._storage("read"):
                    checkpoint = read_manifest(self._place, name)
                break
            except ValueError as error:
                if time.monotonic() > deadline:
                    raise NoUsableCheckpoint(f"{self._place.path(name)}: {error}") from None
            time.sleep(0.2)
        saved_by = sum(map(is_own, checkpoint.files))
        load(saved_by, part, str(checkpoint.path))
        self._place.forget()

    def save(
        self,
        state: State | Callable[[], Content],
        *,
        generation: int,
        step: int,
        cursor: dict[str, Any],
        final: bool,
        rank: int,
        world: int,
        exchange: Exchange,
    ) -> Checkpoint:
        """Write a state that all ranks hold alike, each rank its share; all ranks call this in the same order.

        In the state's place may stand what gives its content, held earlier.
        Returns on every rank once the checkpoint is committed. Saving the same position again is free.
        Raises on every rank, with what was there before untouched: `StorageFailed`, `Fenced` where a newer generation
        has begun, `UnsupportedState` where the state cannot be saved or the ranks' states differ in shape.
        """
        position = Position(generation, step)
        if self._last is not None and (self._last.position, self._last.final) == (position, final):
            return self._last
        self._saves += 1
        name = folder_name(position, final=final)
        begun = ""
        content: Content | None = None

        def together(stage: str, act: Callable[[], Any]) -> list[Any]:
            key = f"checkpoint-{generation}-{self._saves}/{stage}"
            return all_or_none(exchange, key, act, rank=rank, world=world, timeout=self._timeout)

        def begin() -> tuple[str, str]:
            nonlocal begun, content
            content = state() if callable(state) else Content(state)
            if rank == 0:
                with self._storage("write"):
                    self._refuse_if_fenced(generation)
                    begun = self._place.begin(name)
            return begun, content.layout_digest

        def write_shard() -> list[tuple[str, int, str]]:
            assert content is not None
            shard, own = shard_name(rank, world), own_name(rank, world)
            with self._storage(f"write {shard}"):
                records = [(shard, *self._place.write(begun, shard, content.shard(rank, world)))]
            if content.own is not None:
                with self._storage(f"write {own}"):
                    records.append((own, *self._place.write(begun, own, [memoryview(content.own)])))
            return records

        def commit() -> tuple[str, str] | None:
            if rank != 0:
                return None
            assert content is not None
            with self._storage("write"):
                files = {file: FileRecord(size, digest) for one in written for file, size, digest in one}
                if 0 < (own := sum(map(is_own, files))) < world:
                    raise UnsupportedState(
                        f"{own} of {world} ranks have state of their own: all ranks, or none, have it"
                    )
                self._refuse_if_unseen(begun, files)
                files[STATE] = FileRecord(*self._place.write(begun, STATE, [content.document()]))
                text = manifest_text(
                    job_uid=self._job_uid,
                    created=self._created,
                    position=position,
                    final=final,
                    cursor=cursor,
                    world=world,
                    config_hash=self._config_hash,
                    config=self._config,
                    identity=self._identity,
                    commit=self._commit,
                    files=files,
                )
                committed = self._place.commit(begun, name, text.encode(), lambda: self._refuse_if_fenced(generation))
            return committed, text

        try:
            starts = together("begin", begin)
            begun = starts[0][0]
            _refuse_if_unequal([layout for _, layout in starts])
            written = together("shards", write_shard)
            committed, manifest = together("commit", commit)[0]
        except BaseException:
            if rank == 0 and begun:
                with contextlib.suppress(*self._place.errors):
                    self._place.discard(begun)
            raise
        self._last = parse_manifest(self._place.path(committed), manifest)
        if rank == 0:
            self._retire()
        return self._last

    def _refuse_if_fenced(self, generation: int) -> None:
        fence = self._fence()
        if fence is not None and (fence.created, fence.generation) > (self._created, generation):
            whose = f"generation {fence.generation}" if fence.created == self._created else "a newer job of this name"
            raise Fenced(f"generation {generation} may no longer use {self._place}: {whose} has begun")
        older = fence is None or (fence.created, fence.generation) < (self._created, generation)
        if older and self._own_fence is not None and self._own_fence[0] == generation:
            # Who was stopped in the middle of beginning an older generation, and woke up, has put its own over ours.
            self._place.put(_FENCE, self._own_fence[1])

    def _judge_change(self, checkpoint: Checkpoint) -> None:
        """Go on from another configuration's checkpoint only where what differs is harmless or allowed."""
        remedy = f"give the job another name or checkpoint location, undo the change, or delete {self._place} to start from scratch"
        if checkpoint.identity is None or self._identity is None:
            raise ConfigChanged(
                f"the newest checkpoint, {checkpoint.path}, belongs to another configuration "
                f"({checkpoint.config_hash or 'none'} instead of {self._config_hash or 'none'}); {remedy}"
            )
        found = differences(checkpoint.identity, self._identity)
        wrong = refused(found, self._identity.get("resume", {}).get("allow", []))
        if wrong:
            paths = ", ".join(d.path for d in wrong)
            allow = f"allow it with resume.allow: [{paths}], or " if self._config is not None else ""
            raise ConfigChanged(
                f"the newest checkpoint, {checkpoint.path}, belongs to another configuration: {'; '.join(map(str, wrong))}; "
                f"{allow}{remedy}"
            )
        self._say(f"{checkpoint.path.name}: the configuration has changed since: {'; '.join(map(str, found))}")

    def _refuse_if_unseen(self, begun: str, files: dict[str, FileRecord]) -> None:
        sizes = self._place.sizes(begun)
        for file, record in files.items():
            if sizes.get(file) != record.bytes:
                path = self._place.path(begun) / file
                raise StorageFailed(f"{path}, written by another rank, is not seen by rank 0: is the folder shared?")

    def _retire(self) -> None:
        """Delete what retention does not keep. A failure here costs space, not state."""
        try:
            fence = self._fence()
            sound = [
                c
                for c in self._scan()[0]
                if c.config_hash == self._config_hash
                and (fence is None or fence.admits(c))
                and problem(c, self._place, checksums=False) is None
            ]
            for checkpoint in retired(sound, keep=self._keep, best=self._best):
                self._place.delete(checkpoint.path.name)
        except Exception as error:
            if not isinstance(error, (CheckpointError, *self._place.errors)):
                raise
            self._say(f"old checkpoints could not be deleted: {error}")

    def _scan(self) -> tuple[list[Checkpoint], list[tuple[str, str]]]:
        """(checkpoints with a sound manifest, names of others with what is wrong with each)."""
        sound: list[Checkpoint] = []
        damaged: list[tuple[str, str]] = []
        for name in self._place.names("step-"):
            try:
                sound.append(read_manifest(self._place, name))
            except ValueError as error:
                if name in self._place.names(name):  # else a retiring writer was faster
                    damaged.append((name, str(error)))
        return sound, damaged

    def _set_aside(self, name: str, why: str) -> str:
        reason = f"{name}: {why}"
        aside = self._place.set_aside(name, "corrupt")
        self._say(f"checkpoint {reason}; it is not used, and kept as {aside}")
        return reason

    def _fence(self) -> _Fence | None:
        try:
            body, _ = unsealed(_FENCE_KIND, _FENCE, self._place.read(_FENCE, MOST_BYTES))
            fence = _Fence(float(body["created"]), int(body["generation"]), frozenset(map(str, body["known"])))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            self._say(f"{self._place.path(_FENCE)} is damaged ({error}): generations before this one are not shut out")
            return None
        return fence

    @contextlib.contextmanager
    def _storage(self, doing: str) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except self._place.errors as error:
            raise StorageFailed(
                f"cannot {doing} in {self._place}: {getattr(error, 'strerror', None) or error}"
            ) from error


def _refuse_if_unequal(layouts: list[str]) -> None:
    different = [rank for rank, layout in enumerate(layouts) if layout != layouts[0]]
    if different:
        raise UnsupportedState(
            f"the ranks' states differ in names, sizes or aliases of tensors (ranks {different} from rank 0): a checkpoint "
            f"holds state that is equal on all ranks"
        )
