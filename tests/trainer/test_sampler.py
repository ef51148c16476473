import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relight_trainer.sampler import Sampler, permutation, share
from relight_trainer.seeds import seed_everything, stream

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


@given(st.integers(1, 200), st.data(), KEYS)
def test_an_epoch_has_each_sample_at_most_once_and_drops_less_than_a_batch(
    count: int, data: st.DataObject, seed: int
) -> None:
    sampler = Sampler(count, data.draw(st.integers(1, count)), seed)
    world = data.draw(st.integers(1, sampler.batch))
    for epoch in range(2):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        seen = [i for step in steps for rank in range(world) for i in sampler.indices(step, rank, world).tolist()]
        assert len(seen) == len(set(seen))
        assert count - sampler.batch < len(seen) <= count


def test_steps_can_be_had_in_any_order_and_any_world() -> None:
    there, back = Sampler(100, 10, seed=3), Sampler(100, 10, seed=3)
    forwards = {step: there.indices(step, 0, 1).tolist() for step in range(30)}
    for step in reversed(range(30)):
        assert np.concatenate([back.indices(step, rank, 4) for rank in range(4)]).tolist() == forwards[step]
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
