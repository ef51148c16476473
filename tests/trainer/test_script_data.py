"""What a script's loader gives from any place on is what it gives there undisturbed: batches, and what they draw."""

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest
import torch
from script_loaders import (
    BY_INDEX,
    BY_OWN_STATE,
    BY_READING,
    SAMPLES,
    WITH_PROCESSES,
    EagerOrder,
    Make,
    Noisy,
    StatefulLoader,
    Stream,
    UnknownOrder,
    legacy,
    state_of,
)
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Sampler

from relight_agent.exits import ExitCode
from relight_trainer.script_data import BadLoader, DataDiffers, ScriptData, length_of
from relight_trainer.script_data.batches import LastBatch
from relight_trainer.script_data.digests import of_batch, of_indices
from relight_trainer.script_data.parts import parts_of

pytestmark = pytest.mark.timeout(120)


class Job:
    """What a session does around data, noted."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.read_again = 0

    def data_wanted(self) -> None: ...

    def data_ready(self) -> None: ...

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def reading_again(self) -> Iterator[Callable[[], None]]:
        def one() -> None:
            self.read_again += 1

        yield one


class Life:
    """One process of a script, from a saved state on."""

    def __init__(
        self, name: str, make: Make, saved: tuple[int, int, str, bytes] = (0, 0, "", b""), **rank: int
    ) -> None:
        random.seed()  # a process has nothing of another one's
        np.random.seed()  # noqa: NPY002
        torch.seed()
        self.job = Job()
        self.data = ScriptData(seed=3)
        self.data.join(self.job, **{"rank": 0, "world": 1, **rank})
        self.loader = make(0, 1)
        self.objects = self.data.hold(state_of(name, self.loader))
        self.epoch, self.batch, self.last, state = saved
        for key, value in (pickle.loads(state) if state else {}).items():
            self.objects[key].load_state_dict(value)

    def epochs(self, until: int) -> Iterator[tuple[Any, tuple[int, int, str, bytes]]]:
        """(batch and what is drawn beside it, the state that is saved behind it)."""
        while self.epoch < until:
            epoch = self.epoch
            for number, is_last, batch in self.data.batches(self.loader, epoch, trained=self.batch, last=self.last):
                self.data.seed_for("step", epoch, number)
                drawn = (epoch, number, _plain(batch), float(torch.rand(())), random.random(), legacy())
                place = (epoch + 1, 0) if is_last else (epoch, number + 1)
                last = self.data.trained(*place)
                states = pickle.dumps({key: value.state_dict() for key, value in self.objects.items()})
                yield drawn, (*place, last, states)
            self.epoch, self.batch, self.last = epoch + 1, 0, ""


def _plain(batch: Any) -> Any:
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


ALL = {**BY_INDEX, **BY_READING, **BY_OWN_STATE}


@pytest.mark.parametrize("name", ALL)
def test_from_every_place_the_rest_is_what_it_would_have_been(name: str) -> None:
    whole = list(Life(name, ALL[name]).epochs(3))
    assert [drawn for drawn, _ in Life(name, ALL[name]).epochs(3)] == [drawn for drawn, _ in whole]
    for place in range(len(whole)):
        resumed = [drawn for drawn, _ in Life(name, ALL[name], whole[place][1]).epochs(3)]
        assert resumed == [drawn for drawn, _ in whole[place + 1 :]], whole[place][1][:2]


@pytest.mark.parametrize("name", WITH_PROCESSES)
def test_loader_processes_draw_what_they_would_have_drawn(name: str) -> None:
    make = WITH_PROCESSES[name]
    whole = list(Life(name, make).epochs(2))
    for place in (0, 4, 6, 8, 12):  # also behind all that is drawn ahead, and at the epoch's end
        resumed = [drawn for drawn, _ in Life(name, make, whole[place][1]).epochs(2)]
        assert resumed == [drawn for drawn, _ in whole[place + 1 :]], place


@pytest.mark.parametrize("name", BY_INDEX)
def test_what_has_been_trained_on_is_not_read_again(name: str) -> None:
    whole = list(Life(name, BY_INDEX[name]).epochs(2))
    life = Life(name, BY_INDEX[name], whole[4][1])
    next(iter(life.epochs(2)))
    size = getattr(life.loader, "batch_size", None) or 1 if name == "no batches" else 2
    assert len(life.loader.dataset.read) == 2 * size  # the batch, and the one that is drawn ahead
    assert life.job.said == []
    assert life.job.read_again == 0


@pytest.mark.parametrize("name", BY_INDEX)
def test_the_loader_looks_to_others_as_it_did(name: str) -> None:
    life = Life(name, BY_INDEX[name])
    before = dict(vars(life.loader))
    next(iter(life.epochs(1)))
    assert {k: v for k, v in vars(life.loader).items() if k != "_iterator"} == {
        k: v for k, v in before.items() if k != "_iterator"
    }


def test_ten_million_samples_are_skipped_without_reading_one() -> None:
    """An hour into an epoch, at 64 samples a batch."""
    samples, batch_size, trained = 10_000_000, 64, 150_000

    def make(rank: int, world: int) -> DataLoader[Any]:
        return DataLoader(Noisy(samples), batch_size, shuffle=True)

    life = Life("big", make, (0, trained, "", b""))
    drawn, _ = next(iter(life.epochs(1)))
    assert drawn[1] == trained
    assert len(life.loader.dataset.read) == 2 * batch_size


def test_what_has_no_index_is_read_again_and_that_is_told() -> None:
    whole = list(Life("iterable", BY_READING["iterable"]).epochs(1))
    life = Life("iterable", BY_READING["iterable"], whole[3][1])
    list(life.epochs(1))
    assert life.job.read_again == 4
    [said] = life.job.said
    assert "data set Stream" in said
    assert "the first 4 batches of epoch 0 are read again" in said


class Through(Sampler[int]):
    """A sampler around another one, kept in a list, as a script may write it."""

    def __init__(self, *samplers: Sampler[int]) -> None:
        super().__init__()
        self.samplers = list(samplers)

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:
        for sampler in self.samplers:
            yield from sampler


def test_nested_samplers_get_their_epoch() -> None:
    def make(rank: int, world: int) -> DataLoader[Any]:
        sampler = DistributedSampler(range(SAMPLES), 1, 0)  # type: ignore[arg-type]
        pairs = BatchSampler(Through(sampler), 2, drop_last=True)
        return DataLoader(Noisy(), batch_sampler=pairs)

    drawn = [drawn for drawn, _ in Life("nested", make).epochs(3)]
    orders = [tuple(x[0] for d in drawn if d[0] == epoch for x in d[2]) for epoch in range(3)]
    assert len(set(orders)) == 3
    plain = DistributedSampler(range(SAMPLES), 1, 0)  # type: ignore[arg-type]
    for epoch, order in enumerate(orders):
        plain.set_epoch(epoch)
        assert list(order) == list(plain)


@pytest.mark.parametrize("now", [UnknownOrder, None], ids=["an order of the process", "another sampler"])
def test_an_order_that_does_not_repeat_is_refused(now: type[UnknownOrder] | None) -> None:
    def make(order: type[UnknownOrder] | None) -> Make:
        return lambda rank, world: DataLoader(Noisy(), 2, sampler=order() if order else None)

    whole = list(Life("unknown", make(UnknownOrder)).epochs(1))
    with pytest.raises(DataDiffers, match=r"does not repeat: batch 3 of epoch 0.*seeds it for each epoch") as error:
        list(Life("unknown", make(now), whole[3][1]).epochs(1))
    assert error.value.exit_code == ExitCode.BAD_DATA


def test_a_stream_that_does_not_repeat_is_refused() -> None:
    def make(first: int) -> Make:
        return lambda rank, world: DataLoader(Stream(first, 1), 2)

    whole = list(Life("iterable", make(0)).epochs(1))
    with pytest.raises(DataDiffers, match="does not repeat"):
        list(Life("iterable", make(1), whole[3][1]).epochs(1))


def test_another_ranks_batch_is_not_compared() -> None:
    whole = list(Life("random", BY_INDEX["random"]).epochs(1))
    life = Life("sequential", BY_INDEX["sequential"], whole[3][1], rank=1, world=2)
    assert len(list(life.epochs(1))) == 3


def _of(length: Any, *, batches: int = 3) -> Any:
    class Loader:
        def __len__(self) -> int:
            if isinstance(length, type):
                raise length("no")
            return length  # type: ignore[no-any-return]

        def __iter__(self) -> Iterator[int]:
            return iter(range(batches))

    return Loader()


@pytest.mark.parametrize("error", [TypeError, NotImplementedError])
def test_a_loader_may_have_no_length(error: type) -> None:
    assert length_of(_of(error)) == 0
    assert length_of(iter([1])) == 0


def test_a_length_that_cannot_be_had_names_the_loader() -> None:
    with pytest.raises(BadLoader, match=r"len\(\) of the loader \(Loader\) raises KeyError") as error:
        length_of(_of(KeyError))
    assert error.value.exit_code == ExitCode.BAD_CONFIG


@pytest.mark.parametrize("loader", [[], DataLoader(Noisy(3), 4, drop_last=True)], ids=["list", "drop_last"])
def test_an_empty_loader_is_refused(loader: Any) -> None:
    with pytest.raises(DataDiffers, match="is empty") as error:
        length_of(loader)
    assert error.value.exit_code == ExitCode.BAD_DATA


@pytest.mark.parametrize("in_job", [True, False])
def test_a_generator_gives_one_epoch_and_then_says_so(in_job: bool) -> None:
    data = ScriptData(0)
    if in_job:
        data.join(Job(), rank=0, world=1)
    loader = iter([1, 2])
    assert len(list(data.batches(loader, 0, trained=0, last=""))) == 2
    with pytest.raises(DataDiffers, match=r"gave no batch in epoch 1\. A generator can be read once"):
        list(data.batches(loader, 1, trained=0, last=""))


def test_a_data_set_that_has_lost_samples_since_is_refused() -> None:
    def make(samples: int) -> Make:
        return lambda rank, world: DataLoader(Noisy(samples), 2)

    whole = list(Life("sequential", make(SAMPLES)).epochs(1))
    with pytest.raises(DataDiffers, match="has 2 batches now, but had 7 when the job was saved"):
        list(Life("sequential", make(4), whole[3][1]).epochs(1))
    with pytest.raises(DataDiffers, match="has 8 batches now, but had 7 when the job was saved"):
        list(Life("sequential", make(16), whole[3][1]).epochs(1))


def test_a_data_set_that_grows_between_epochs_is_refused() -> None:
    life = Life("sequential", lambda rank, world: DataLoader(Noisy(), 2))
    drawn = life.epochs(2)
    for _ in range(7):
        next(drawn)
    life.loader.dataset.samples = SAMPLES + 2
    with pytest.raises(DataDiffers, match="has 8 batches in epoch 1, but had 7 in the epoch before"):
        next(drawn)


class ByEpoch(RandomSampler):
    """Of a length that is a function of the epoch, as samplers that fill batches by tokens have it."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return SAMPLES - 2 * self.epoch

    def __iter__(self) -> Iterator[int]:
        return iter(list(super().__iter__())[: len(self)])


def test_a_length_may_depend_on_the_epoch() -> None:
    def make(rank: int, world: int) -> DataLoader[Any]:
        return DataLoader(Noisy(), 2, sampler=ByEpoch(range(SAMPLES)))

    whole = list(Life("by epoch", make).epochs(3))
    assert [sum(drawn[0] == epoch for drawn, _ in whole) for epoch in range(3)] == [7, 6, 5]
    for place in range(len(whole)):
        assert [d for d, _ in Life("by epoch", make, whole[place][1]).epochs(3)] == [d for d, _ in whole[place + 1 :]]


@pytest.mark.parametrize(("said", "found"), [(SAMPLES + 2, "only 7"), (SAMPLES - 2, "more")])
def test_a_sampler_that_gives_another_number_than_it_says_is_refused(said: int, found: str) -> None:
    class Wrong(EagerOrder):
        def __len__(self) -> int:
            return said

    life = Life("wrong", lambda rank, world: DataLoader(Noisy(), 2, sampler=Wrong()))
    with pytest.raises(DataDiffers, match=f"gave {found} in epoch 0"):
        list(life.epochs(1))


def test_batches_out_of_order_are_refused() -> None:
    life = Life("out of order", lambda rank, world: DataLoader(Noisy(), 2, num_workers=1, in_order=False))
    with pytest.raises(BadLoader, match="in_order=False"):
        list(life.epochs(1))


def test_a_data_set_given_as_state_is_not_read_by_processes() -> None:
    class Own(Stream):
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None: ...

    life = Life("own", lambda rank, world: DataLoader(Own(0, 1), 2, num_workers=1))
    life.objects = life.data.hold({"data": life.loader.dataset})
    with pytest.raises(BadLoader, match="worker processes read copies"):
        list(life.epochs(1))


def test_a_state_that_is_no_loaders_is_the_objects_own() -> None:
    data = ScriptData(0)
    source = StatefulLoader()
    held = data.hold({"x": source})["x"]
    source.at = 3
    assert held.state_dict() == {"begun": True, "state": {"at": 3}}


def test_digests_tell_batches_apart() -> None:
    wide = torch.arange(200.0).view(2, 100)
    batches = [
        [1, 2], [2, 1], wide, wide + 1, wide.t(), wide.double(), wide.bfloat16(), {"x": wide}, (wide, wide), "a", "b",
        np.arange(3), np.arange(4), torch.zeros(0), torch.zeros(1, 0), wide.to_sparse(),
    ]  # fmt: skip
    digests = [of_batch(batch) for batch in batches]
    same = digests.index(of_batch({"x": wide})), digests.index(of_batch(wide))
    assert len(set(digests)) == len(batches) - (same[0] == same[1])
    assert of_batch(wide.clone()) == of_batch(wide)
    assert of_indices(["a", ("b", 1)]) == of_indices(["a", ("b", 1)]) != of_indices(["a", ("b", 2)])
    assert of_indices(7) != of_indices(8)


def test_what_is_saved_of_a_batch_is_read_back() -> None:
    assert LastBatch.of("") is None
    assert LastBatch.of(str(LastBatch(3, 8, 0, ""))) == LastBatch(3, 8, 0, "")


def test_what_code_names_is_no_part_of_the_loader_where_it_is_another_part_of_the_training() -> None:
    loader = DataLoader(cast("Any", range(4)), sampler=NamesAnothersSampler())
    assert parts_of(loader).epochs == ()


class NamesAnothersSampler:
    def __iter__(self) -> Iterator[int]:
        return iter(range(len(ANOTHER)))

    def __len__(self) -> int:
        return len(ANOTHER)


ANOTHER: DistributedSampler[Any] = DistributedSampler(range(4), 1, 0)  # type: ignore[arg-type]
