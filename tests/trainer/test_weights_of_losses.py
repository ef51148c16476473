"""A loss that is kept as a number is, as a tensor, what weighing the tensor gives: bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relight_trainer.run import Run
from relight_trainer.step import _Weight

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@given(value=st.floats(0, 2.0**14, width=32), samples=st.integers(1, 10**6), world=st.integers(1, 7))
def test_a_sum_weighed_as_a_number_has_the_bits_of_the_tensors_product(
    dtype: torch.dtype, value: float, samples: int, world: int
) -> None:
    loss = torch.tensor(value, dtype=dtype)
    weight = _Weight(world / samples, 1, loss)
    assert weight.factor is not None
    run = object.__new__(Run)
    run.loss_is(loss.item() * weight.factor, dtype)
    assert run.loss is not None
    assert run.loss.dtype is dtype
    assert torch.equal(run.loss, weight.of(loss))


@given(samples=st.integers(1, 300))
def test_a_mean_stays_a_number_only_where_nothing_is_rounded(samples: int) -> None:
    loss = torch.tensor(0.3)
    weight = _Weight(1 / samples, samples, loss)
    if samples.bit_count() == 1:
        assert weight.factor == 1.0
        assert torch.equal(weight.of(loss), loss)
    else:
        assert weight.factor is None or samples == 1
