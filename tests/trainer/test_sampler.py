import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relight_trainer.sampler import Sampler, permutation
from relight_trainer.seeds import seed_everything, stream
from relight_trainer.shares import share
from relight_trainer.windows import Dealer

KEYS = st.integers(0, 2**63 - 1)


@given(st.integers(0, 300), KEYS)
def test_a_permutation_has_each_index_once(count: int, key: int) -> None:
    assert sorted(permutation(count, key).tolist()) == list(range(count))


def test_a_permutation_never_changes() -> None:
    assert permutation(8, 1).tolist() == [4, 3, 7, 0, 1, 5, 6, 2]


def test_permutations_are_uniform() -> None:
    counts = np.zeros((6, 6))
    for key in range(6000):
        counts[np.arange(6), permutation(6, stream(0, "test", key))] += 1
    chi_squared = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_squared < 25 + 5 * (2 * 25) ** 0.5  # 25 degrees of freedom


@given(st.integers(0, 1000), st.integers(1, 40))
def test_shares_cover_everything_once_and_evenly(count: int, world: int) -> None:
    parts = [list(range(count))[share(count, rank, world)] for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 120), st.data(), KEYS, st.booleans(), st.booleans())
def test_an_epoch_has_each_sample_once_whoever_takes_it(
    count: int, data: st.DataObject, seed: int, keep_tail: bool, together: bool
) -> None:
    """Any size of data, batch, virtual ranks, micro-batches and real ranks, ranks without a sample among them."""
    batch = data.draw(st.integers(1, count + 3 if keep_tail else count))
    sampler = Sampler(count, batch, seed, keep_tail=keep_tail)
    virtual_ranks, accumulate = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    world = data.draw(st.integers(1, 5))
    ranks = [
        Dealer(sampler, virtual_ranks=virtual_ranks, accumulate=accumulate, rank=rank, world=world, together=together)
        for rank in range(world)
    ]
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * sampler.epoch.steps, (epoch + 1) * sampler.epoch.steps):
            parts = [dealer.parts(step) for dealer in ranks]
            taken = [i for mine in parts for part in mine if part.samples for i in part.indices.tolist()]
            assert sorted(taken) == sorted(sampler.batch_of(step).tolist())
            assert sum(part.samples for mine in parts for part in mine) == sampler.size(step) == len(taken)
            assert {dealer.fewest(sampler.size(step)) for dealer in ranks} == {min(map(len, parts))}
            if together:  # all take part in each of the same number of forwards
                assert len({len(mine) for mine in parts}) == 1
                assert all(len(part.indices) for mine in parts for part in mine)
            seen += taken
            assert sampler.consumed(step + 1) == sampler.consumed(step) + len(taken)
        assert len(seen) == len(set(seen)) == sampler.epoch.samples
        assert count - batch < len(seen) <= count
        assert len(seen) == count or not keep_tail


@given(st.integers(1, 64), st.integers(1, 5), st.integers(1, 4), st.integers(1, 5))
def test_every_part_is_what_it_is_in_the_full_world(count: int, full: int, accumulate: int, world: int) -> None:
    sampler = Sampler(count, count, 0)

    def parts(world: int) -> dict[int, tuple[int, list[int]]]:
        dealers = [
            Dealer(sampler, virtual_ranks=full, accumulate=accumulate, rank=r, world=world) for r in range(world)
        ]
        return {part.number: (part.virtual_rank, part.indices.tolist()) for d in dealers for part in d.parts(0)}

    assert parts(world) == parts(full)
    assert all(rank == number // accumulate for number, (rank, _) in parts(full).items())


def test_steps_can_be_had_in_any_order() -> None:
    there, back = Sampler(100, 10, seed=3), Sampler(100, 10, seed=3)
    forwards = {step: there.batch_of(step).tolist() for step in range(30)}
    for step in reversed(range(30)):
        assert back.batch_of(step).tolist() == forwards[step]
    assert forwards[0] != forwards[10]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="a global batch of 11 samples does not fit a training set of 10"):
        Sampler(10, 11, 0)


def test_streams_differ_by_seed_name_and_counters_and_never_change() -> None:
    assert stream(0, "data", 3) == 7348748612269275883
    others = [stream(1, "data", 3), stream(0, "step", 3), stream(0, "data", 4), stream(0, "data", 3, 0)]
    assert len({stream(0, "data", 3), *others}) == 5
    assert all(0 <= value < 2**63 for value in others)


def test_seeding_repeats_what_all_generators_draw() -> None:
    import random

    import torch

    def drawn() -> tuple[float, float, float]:
        seed_everything(stream(7, "step", 1))
        return torch.rand(()).item(), float(np.random.random()), random.random()  # noqa: NPY002  # the global generator is the point

    assert drawn() == drawn()
