"""The batches of a script's epochs, from the place on at which training stands in them."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from relight_trainer.script_data.digests import UNKNOWN, of_batch
from relight_trainer.script_data.errors import HOW_TO_REPEAT, BadLoader, DataDiffers, name_of
from relight_trainer.script_data.generators import reachable, reseed
from relight_trainer.script_data.indices import Indices, Start, standing_in
from relight_trainer.script_data.lengths import is_exact, length_of
from relight_trainer.script_data.loop import LoopGenerators
from relight_trainer.script_data.parts import Parts, base_of, parts_of
from relight_trainer.script_data.state import HeldState, State, held_state, is_source
from relight_trainer.script_data.ways import Way, is_free_to_read, way_of
from relight_trainer.seeds import seed_everything, stream

_RECENT = 16  # batches that may have been drawn and not be trained on yet
_LONG_SECONDS = 1.0  # reading again for longer than that is told

END: Any = object()
Numbered = tuple[int, bool, Any]  # (number in the epoch, whether it is the last one, batch)


class Job(Protocol):
    """What a job's session does around data. `data_wanted` and `data_ready` stand around each wait for a batch."""

    data_wanted: Callable[[], None]
    data_ready: Callable[[], None]

    def say(self, text: str) -> None: ...

    def reading_again(self) -> AbstractContextManager[Callable[[], None]]:
        """Around reading what has been trained on already; what is entered is called for each batch of it."""
        ...


class LastBatch(NamedTuple):
    """What the saved state knows of the batch before the place. It was `rank` of `world` that trained on it."""

    rank: int
    world: int
    batches: int  # in the epoch; 0 where unknown
    digest: str  # UNKNOWN for a batch that cannot be told from others

    def __str__(self) -> str:
        return "/".join(map(str, self))

    @classmethod
    def of(cls, text: str) -> "LastBatch | None":
        """From the text of one; None where nothing is known.

        >>> LastBatch.of(str(LastBatch(1, 2, 30, "ab")))
        LastBatch(rank=1, world=2, batches=30, digest='ab')
        """
        rank, world, batches, digest = text.split("/") if text else ("", "", "", "")
        return cls(int(rank), int(world), int(batches), digest) if text else None


class _Behind(NamedTuple):
    """What is known behind a batch: its digest, and the loader's own state."""

    digest: str
    state: State | None


@dataclass
class _Source:
    """A loader, and what is known of it in this process."""

    loader: Any
    parts: Parts
    held: HeldState | None
    way: Way
    indices: Indices | None = None
    length: int | None = None  # of its first epoch here
    own: list[Any] = field(default_factory=list)  # generators that are seeded for each batch

    @property
    def ahead(self) -> int:
        """Batches that worker processes are asked for before the first one is awaited."""
        base = base_of(self.loader)
        return int(base.num_workers * (base.prefetch_factor or 0)) if isinstance(base, DataLoader) else 0


class ScriptData:
    """What one run draws from its loaders. Outside a job it gives the batches and leaves all else alone."""

    def __init__(self, seed: int) -> None:
        self.seconds = 0.0  # spent waiting for batches
        self._seed = seed
        self._rank, self._world = 0, 1
        self._job: Job | None = None
        self._given: list[HeldState] = []
        self._sources: dict[int, _Source] = {}
        self._recent: dict[tuple[int, int], _Behind] = {}  # by epoch and number
        self._length = 0
        self._loop = LoopGenerators(None, ())
        self._claimed: HeldState | None = None

    def join(self, job: Job, *, rank: int, world: int) -> None:
        """From here on, batches are those of a job."""
        self._job, self._rank, self._world = job, rank, world

    def hold(self, objects: Mapping[str, Any]) -> dict[str, Any]:
        """The objects of the job's state, those that may be a loader replaced by what holds their state."""
        held = {name: held_state(value) if is_source(value) else value for name, value in objects.items()}
        self._given += [value for value in held.values() if isinstance(value, HeldState)]
        return held

    def seed_for(self, name: str, epoch: int, number: int) -> None:
        """Put the global generators into the state of batch `number`; `name` says what they are to be drawn from for."""
        if self._job is not None:
            seed_everything(stream(self._seed, name, epoch, number, self._rank))
            self._loop.seed(self._seed, epoch, number)

    def look_around(self, loader: Any, frame: FrameType | None, saved: Iterable[Any]) -> None:
        """Find the generators that the loop over `loader` draws from, which `frame` runs; `saved`: what the state holds."""
        if self._job is not None:
            source = self._source_of(loader)
            held = [o for root in saved if not isinstance(root, (nn.Module, Optimizer)) for o in reachable(root)]
            self._loop = LoopGenerators(frame, [*source.parts.order, *source.own, *held])

    def trained(self, epoch: int, batch: int) -> str:
        """A step is done, and the next one begins at `epoch`, `batch`: what the saved state is to know of its data."""
        if self._job is None:
            return ""
        place = (epoch, batch - 1) if batch else max((p for p in self._recent if p[0] < epoch), default=(-1, -1))
        behind = self._recent.get(place)
        if behind is None:
            return ""
        if behind.state is not None and self._claimed is not None:
            self._claimed.hold(behind.state)
        return str(LastBatch(self._rank, self._world, self._length, behind.digest))

    def batches(self, loader: Any, epoch: int, *, trained: int, last: str) -> Iterator[Numbered]:
        """The batches of `epoch` behind the first `trained` ones, each drawn with generators seeded for it alone.

        `last` is what `trained` gave for that place. Raises BadLoader, and DataDiffers where the loader is known not to
        give what it gave before.
        """
        if self._job is None:
            yield from self._outside(loader, epoch, trained)
            return
        source = self._source_of(loader)
        before = LastBatch.of(last) if trained else None
        self._begin(source, epoch)
        self._length = length = self._checked_length(source, epoch, before)
        is_fixed = length > 0 and is_exact(loader)
        number = trained - 1
        for number, is_last, batch in self._drawn(source, epoch, trained, before):
            if is_fixed and (number >= length or (is_last and number + 1 < length)):
                more = "more" if number >= length else f"only {number + 1}"
                raise DataDiffers(
                    f"{name_of(loader)} has the length {length}, but gave {more} in epoch {epoch}. Fix __len__ of its "
                    "sampler, or the batches that the sampler gives"
                )
            yield number, is_last, batch
        if number < trained:
            self._none_left(loader, epoch, trained)

    def _source_of(self, loader: Any) -> _Source:
        source = self._sources.get(id(loader))
        if source is None:
            parts, base = parts_of(loader), base_of(loader)
            held = self._held_for(loader)
            whole = held is not None and held.source in (loader, base, getattr(base, "dataset", None))
            way = way_of(loader, parts, given=held is not None)
            if held is not None and not whole and way_of(loader, parts, given=False) is Way.INDEX:
                way = Way.INDEX  # a sampler: what it gives is followed, index by index
            source = self._sources[id(loader)] = _Source(loader, parts, held, way)
            shared = {id(g) for g in parts.order}
            if source.ahead == 0:
                source.own = [g for g in parts.data if id(g) not in shared]
        return source

    def _held_for(self, loader: Any) -> HeldState | None:
        base = base_of(loader)
        inside = {id(o) for o in reachable(loader)}
        for held in self._given:
            if id(held.source) not in inside:
                continue
            if isinstance(base, DataLoader) and held.source is base.dataset and base.num_workers:
                raise BadLoader(
                    f"the data set ({type(held.source).__name__}) was given to client.start, but worker processes read "
                    "copies of it, whose state this process does not know. Use num_workers=0, or give torchdata's "
                    "StatefulDataLoader to client.start instead"
                )
            held.claim()
            self._claimed = held
            return held
        return None

    def _begin(self, source: _Source, epoch: int) -> None:
        """The epoch's order is the same on all ranks: a sampler may shuffle first and then take its rank's share."""
        for part in source.parts.epochs:
            part.set_epoch(epoch)
        self._seed_order(source, epoch)
        order = {id(g) for g in source.parts.order}
        for i, generator in enumerate(g for g in source.parts.data if id(g) not in order):
            reseed(generator, stream(self._seed, "data set", epoch, self._rank, i))
        if source.held is not None:
            source.held.load()  # after the epoch, which may put a sampler back to its beginning

    def _seed_order(self, source: _Source, epoch: int) -> None:
        shuffle = stream(self._seed, "epoch", epoch)
        for generator in source.parts.order:
            reseed(generator, shuffle)
        seed_everything(shuffle)

    def _seed_batch(self, source: _Source, epoch: int, number: int) -> None:
        value = stream(self._seed, "batch", epoch, number, self._rank)
        seed_everything(value)
        for i, generator in enumerate(source.own):
            reseed(generator, stream(value, "data set", i))

    def _checked_length(self, source: _Source, epoch: int, before: LastBatch | None) -> int:
        loader, length = source.loader, length_of(source.loader)
        if before is not None and before.world == self._world and before.batches != length:
            raise DataDiffers(
                f"{name_of(loader)}: epoch {epoch} has {length or 'an unknown number of'} batches now, but had "
                f"{before.batches or 'an unknown number'} when the job was saved in this epoch. Use the data, batch "
                "size and sampler that the epoch began with, or start a new job"
            )
        if source.length is not None and source.length != length and not source.parts.epochs:
            raise DataDiffers(
                f"{name_of(loader)} has {length} batches in epoch {epoch}, but had {source.length} in the epoch before. A "
                "length may change only with the epoch, by a sampler with set_epoch: otherwise the script would train on "
                "other batches after a restart"
            )
        source.length = length
        return length

    def _drawn(self, source: _Source, epoch: int, trained: int, before: LastBatch | None) -> Iterator[Numbered]:
        if source.way is Way.INDEX:
            yield from self._by_index(source, epoch, trained, before)
        elif source.way is Way.OWN_STATE:
            yield from self._by_own_state(source, epoch, trained)
        else:
            yield from self._by_reading(source, epoch, trained, before)

    def _by_index(self, source: _Source, epoch: int, trained: int, before: LastBatch | None) -> Iterator[Numbered]:
        base, ahead = base_of(source.loader), source.ahead
        if source.indices is None:
            name = "sampler" if base.batch_sampler is None else "batch_sampler"
            source.indices = Indices(getattr(base, name))
        indices = source.indices

        def begin() -> None:
            if source.held is None:  # else its state, which holds its generators' too, has been loaded
                self._seed_order(source, epoch)

        def begin_drawing() -> None:
            if source.held is None:
                self._seed_order(source, epoch)
                torch.empty((), dtype=torch.int64).random_(generator=base.generator)  # as a DataLoader's iterator does

        indices.start = Start(
            begin=begin,
            begin_drawing=begin_drawing,
            skip=trained,
            first=trained if source.held is not None else 0,
            seed=lambda number: self._seed_batch(source, epoch, number),
            seed_of=(lambda number: stream(self._seed, "batch", epoch, number, self._rank)) if ahead else None,
            ahead=ahead,
            check=lambda digest: self._compare(source.loader, epoch, trained - 1, digest, before),
            too_short=lambda number: self._none_left(source.loader, epoch, trained, number),
            held=source.held,
        )
        with standing_in(base, indices):
            iterator = iter(source.loader)
            batch = self._next(iterator)
        number = trained
        while batch is not END:
            digest, state = indices.drawn.popleft()
            self._seed_batch(source, epoch, number + 1)
            following = self._next(iterator)
            self._note(epoch, number, digest, indices.at_end if following is END else state)
            yield number, following is END, batch
            number, batch = number + 1, following

    def _by_own_state(self, source: _Source, epoch: int, trained: int) -> Iterator[Numbered]:
        assert source.held is not None
        iterator = iter(source.loader)
        if trained:
            self._seed_batch(source, epoch, trained)
        batch = self._next(iterator)
        number = trained
        while batch is not END:
            state = source.held.taken()
            self._seed_batch(source, epoch, number + 1)
            following = self._next(iterator)
            self._note(epoch, number, UNKNOWN, source.held.taken() if following is END else state)
            yield number, following is END, batch
            number, batch = number + 1, following

    def _by_reading(self, source: _Source, epoch: int, trained: int, before: LastBatch | None) -> Iterator[Numbered]:
        loader = source.loader
        base = base_of(loader)
        if isinstance(base, DataLoader) and vars(base).get("_iterator") is not None:
            vars(base)["_iterator"] = None  # processes of an earlier epoch draw from where they are: a new one's do not
        iterator = iter(loader)
        if trained:
            batch, number = self._read_again(source, iterator, epoch, trained, before), trained
        else:
            batch, number = self._next(iterator), 0
        while batch is not END:
            digest = of_batch(batch)
            self._seed_batch(source, epoch, number + 1)
            following = self._next(iterator)
            self._note(epoch, number, digest, None)
            yield number, following is END, batch
            number, batch = number + 1, following

    def _read_again(
        self, source: _Source, iterator: Iterator[Any], epoch: int, trained: int, before: LastBatch | None
    ) -> Any:
        """The first batch that has not been trained on, or END."""
        assert self._job is not None
        loader, free = source.loader, is_free_to_read(source.loader)
        if not free:
            self._job.say(
                f"{name_of(loader)} has no index and was not given to client.start: the first {trained} batches of epoch "
                f"{epoch} are read again. A data set with an index, or a StatefulDataLoader given to client.start, saves "
                "this time"
            )
        began = time.monotonic()
        with self._job.reading_again() if not free else nullcontext(_nothing) as alive:
            for number in range(trained):
                batch = next(iterator, END)
                if batch is END:
                    self._none_left(loader, epoch, trained, number)
                if number == trained - 1:
                    self._compare(loader, epoch, number, of_batch(batch), before)
                self._seed_batch(source, epoch, number + 1)
                alive()
        if (seconds := time.monotonic() - began) > _LONG_SECONDS:
            self._job.say(f"{trained} batches were read again in {seconds:.1f} s")
        return self._next(iterator)

    def _compare(self, loader: Any, epoch: int, number: int, digest: str, before: LastBatch | None) -> None:
        """The last batch that was trained on, drawn again, is to be the same."""
        if before is None or (before.rank, before.world) != (self._rank, self._world):
            return
        if UNKNOWN in {digest, before.digest} or digest == before.digest:
            return
        raise DataDiffers(
            f"{name_of(loader)} does not repeat: batch {number} of epoch {epoch}, counted from 0, is not the batch that "
            f"the job was trained on before the restart (rank {self._rank}: {digest}, before {before.digest}). "
            f"Training on would use some samples twice and others never. {HOW_TO_REPEAT}"
        )

    @staticmethod
    def _none_left(loader: Any, epoch: int, trained: int, found: int | None = None) -> None:
        if not trained:
            raise DataDiffers(
                f"{name_of(loader)} gave no batch in epoch {epoch}. A generator can be read once: give run.steps a list or "
                "a DataLoader. For a DataLoader, check the data set's path and filters, and drop_last"
            )
        gave = f"gave {found} batches" if found is not None else f"gave no more than {trained} batches"
        raise DataDiffers(
            f"{name_of(loader)} {gave} in epoch {epoch}, but the job has been trained on {trained} and one more must "
            "follow: the loader had more when the job was saved. Use the data that the epoch began with, or start a new job"
        )

    def _note(self, epoch: int, number: int, digest: str, state: State | None) -> None:
        self._recent[epoch, number] = _Behind(digest, state)
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]

    def _next(self, iterator: Iterator[Any]) -> Any:
        """The next batch or END; how long it took is this rank's own, unlike most of what a script does."""
        job = self._job
        if job is None:
            return next(iterator, END)
        began = time.monotonic()
        job.data_wanted()
        batch = next(iterator, END)
        job.data_ready()
        self.seconds += time.monotonic() - began
        return batch

    def _outside(self, loader: Any, epoch: int, trained: int) -> Iterator[Numbered]:
        length_of(loader)
        for part in parts_of(loader).epochs:
            part.set_epoch(epoch)
        iterator = iter(loader)
        number, batch = 0, next(iterator, END)
        while batch is not END:
            following = next(iterator, END)
            if number >= trained:
                yield number, following is END, batch
            number, batch = number + 1, following
        if number <= trained:
            self._none_left(loader, epoch, trained, number)


def _nothing() -> None: ...
