"""Digests of tensors: equal for equal bits, and different for everything else."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from relight_trainer.equality.digest import _ROWS_AT_ONCE, ROW, digests, multilinear
from relight_trainer.equality.reading import Reading

pytestmark = pytest.mark.timeout(120)

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip
# Around the borders of words, rows and blocks of rows.
SIZES = [1, 2, 3, 5, 4 * ROW - 1, 4 * ROW, 4 * ROW + 1, 8 * ROW + 3]


def of(tensor: Tensor) -> list[int]:
    return of_all([tensor])[0]


def of_all(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Each lane of what is computed on a device, and of what is computed on the CPU: what holds must hold of both."""
    [group] = digests(tensors)
    assert group.indices == list(range(len(tensors)))
    found: list[list[int]] = torch.cat([multilinear(tensors), group.digests], 1).tolist()
    return found


def bits(size: int, dtype: torch.dtype, seed: int) -> Tensor:
    """A flat tensor of random bits."""
    item = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (size * item,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return (raw % 2 if dtype is torch.bool else raw).view(dtype)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SIZES), st.sampled_from(DTYPES), st.integers(0, 2**31), st.data())
def test_any_flipped_bit_shows_in_both_lanes(size: int, dtype: torch.dtype, seed: int, data: st.DataObject) -> None:
    tensor = bits(size, dtype, seed)
    before = of(tensor)
    assert of(tensor.clone()) == before
    raw = tensor.view(torch.uint8)
    place = data.draw(st.integers(0, raw.numel() - 1))
    raw[place] ^= 1 if dtype is torch.bool else 1 << data.draw(st.integers(0, 7))
    after = of(tensor)
    assert all(one != other for one, other in zip(before, after, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SIZES[1:]), st.sampled_from(DTYPES), st.integers(0, 2**31), st.data())
def test_two_elements_that_change_places_show(size: int, dtype: torch.dtype, seed: int, data: st.DataObject) -> None:
    tensor = bits(size, dtype, seed)
    item = tensor.element_size()
    raw = tensor.view(torch.uint8).view(size, item)
    one, other = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=2, unique=True))
    swapped = raw.clone()
    swapped[[one, other]] = raw[[other, one]]
    assert (of(swapped.view(-1).view(dtype)) == of(tensor)) == torch.equal(raw, swapped)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 3 * ROW), st.integers(0, 2**31), st.data())
def test_signs_that_flip_in_pairs_show(size: int, seed: int, data: st.DataObject) -> None:
    # The highest bit of a word: what a sum without weights of its own for each place would lose.
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    one, other = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=2, unique=True))
    flipped = tensor.clone()
    flipped[[one, other]] *= -1
    assert all(a != b for a, b in zip(of(tensor), of(flipped), strict=True))


def test_a_change_in_any_block_of_a_large_tensor_shows() -> None:
    size = ROW * (2 * _ROWS_AT_ONCE + 3) + 17
    tensor = torch.zeros(size)
    seen = {tuple(of(tensor))}
    for place in (0, ROW, ROW * _ROWS_AT_ONCE, size - 18, size - 1):
        changed = tensor.clone()
        changed[place] = 1.0
        seen.add(tuple(of(changed)))
    assert len(seen) == 6


def test_the_bits_count_and_not_the_numbers() -> None:
    assert of(torch.tensor([0.0])) != of(torch.tensor([-0.0]))
    assert of(torch.tensor([math.nan])) == of(torch.tensor([math.nan]))
    other_nan = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert of(other_nan) != of(torch.tensor([math.nan]))


def test_neither_strides_nor_neighbours_nor_the_place_in_memory_count() -> None:
    images = torch.randn(2, 3, 40, 50)
    assert of(images.contiguous(memory_format=torch.channels_last)) == of(images)
    halves = torch.randn(100).half()
    for start in range(4):
        assert of(halves[start : start + 50]) == of(halves[start : start + 50].clone())
    alone = of(images[0, 0])
    assert of_all([halves, images[0, 0], torch.empty(0), images])[1] == alone


def test_shape_dtype_name_and_numbers_count_in_an_objects_digest() -> None:
    class Holder:
        def __init__(self, **state: object) -> None:
            self.state = state

        def state_dict(self) -> dict[str, object]:
            return self.state

    zeros = torch.zeros(4)
    states = [
        {"a": zeros},
        {"a": zeros.view(2, 2)},
        {"a": zeros.int()},
        {"b": zeros},
        {"a": zeros, "b": zeros},
        {"a": zeros, "lr": 0.1},
        {"a": zeros, "lr": 0.2},
        {"a": zeros, "lr": (0.2,)},
        {"a": zeros, "lr": [0.2]},
    ]
    shorts = {Reading({"it": Holder(**state)}).result()["it"].short for state in states}
    assert len(shorts) == len(states)


def test_a_buffer_that_is_not_persistent_is_no_state() -> None:
    def short(value: float, *, persistent: bool) -> str:
        module = nn.Module()
        module.register_buffer("noise", torch.tensor(value), persistent=persistent)
        return Reading({"model": module}).result()["model"].short

    assert short(1.0, persistent=False) == short(2.0, persistent=False)
    assert short(1.0, persistent=True) != short(2.0, persistent=True)
