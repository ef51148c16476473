"""Tagged JSON gives back what it was given: same types, same values."""

import enum
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relight_trainer.checkpoint.errors import UnsupportedState
from relight_trainer.checkpoint.tagged import dumps, loads


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return math.copysign(1, a) == math.copysign(1, b) and (a == b) if not math.isnan(a) else math.isnan(b)
    if isinstance(a, dict):
        return (
            len(a) == len(b)
            and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
            and getattr(a, "default_factory", None) is getattr(b, "default_factory", None)
        )
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        order = a.flags.f_contiguous == b.flags.f_contiguous and a.flags.c_contiguous == b.flags.c_contiguous
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() and order
    return a == b


hashable = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.floats(allow_nan=False))
keys = st.recursive(hashable, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
leaves = st.one_of(
    hashable,
    st.floats(),
    st.complex_numbers(allow_nan=False),
    st.binary().map(bytearray),
    st.sets(keys, max_size=4),
    st.frozensets(keys, max_size=4),
    st.sampled_from([torch.float32, torch.bfloat16, torch.Size([2, 0]), torch.device("cuda:1"), np.dtype("<M8[ns]")]),
    st.dictionaries(keys, st.integers(), max_size=3).map(Counter),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(lambda items: deque(items, maxlen=len(items) or None)),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.text(), inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.dictionaries(keys, inner, max_size=4).map(lambda d: defaultdict(list, d)),
    ),
    max_leaves=12,
)


@given(values)
def test_every_supported_value_comes_back_equal_and_of_its_type(value):
    text = dumps(value)
    assert same(loads(text), value)
    text.encode("ascii")
    json.loads(text, parse_constant=pytest.fail)  # no bare NaN or Infinity


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype="<i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3.5, dtype=">f8"),
        np.zeros((0, 2), dtype=bool),
        np.array(["a", "bcd"]),
        np.array(["2026-01-01"], dtype="datetime64[s]"),
    ],
)
def test_arrays_keep_dtype_shape_order_and_can_be_written(value):
    again = loads(dumps(value))
    assert same(again, value)
    assert again.flags.writeable


@pytest.mark.parametrize(
    "value", [np.float64(0.1), np.int8(-3), np.bool_(True), np.str_("x"), np.datetime64("NaT", "s")]
)
def test_numpy_scalars_stay_numpy_scalars(value):
    again = loads(dumps(value))
    assert type(again) is type(value)
    assert again.tobytes() == value.tobytes()


def test_generators_states_are_restored_exactly():
    rng = np.random.default_rng(7)
    rng.random(3)
    old = np.random.RandomState(7)
    old.rand(3)
    other, older = np.random.default_rng(0), np.random.RandomState(0)
    other.bit_generator.state = loads(dumps(rng.bit_generator.state))
    older.set_state(loads(dumps(old.get_state())))
    assert (other.random(5) == rng.random(5)).all()
    assert (older.rand(5) == old.rand(5)).all()


def test_keys_that_look_like_tags_are_kept():
    for value in ({"$tuple": [1]}, {"$": 1}, {"a": {"$tensor": 0}}, {"$x": 1, "y": 2}):
        assert loads(dumps(value)) == value


def test_sets_are_written_in_one_order():
    forwards, backwards = set(), set()
    for i in range(50):
        forwards.add(i * 64)  # in one hash bucket or another by the order of insertion
        backwards.add((49 - i) * 64)
    assert list(forwards) != list(backwards)
    assert dumps(forwards) == dumps(backwards)


class Colour(enum.Enum):
    RED = 1


class Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"optimizer": {"state": {0: {"foo": Colour.RED}}}}, r"optimizer\.state\[0\]\.foo: cannot save a .*Colour"),
        ({"a": [1, (2, {3: object()})]}, r"a\[1\]\[1\]\[3\]: cannot save a builtins\.object"),
        ({"p": Point(1, 2)}, r"^p: cannot save a .*Point"),
        ({"f": lambda: 0}, r"^f: cannot save a builtins\.function"),
        ({"d": defaultdict(lambda: 0)}, r"^d: cannot save a collections\.defaultdict"),
        ({"n": np.array([object()])}, r"^n: cannot save a numpy\.ndarray"),
        ({"n": np.zeros(1, dtype=[("a", "i4")])}, r"^n: cannot save a numpy\.ndarray"),
        ({"s": {Colour.RED}}, r"^s: cannot save"),
        ({"t": torch.zeros(1)}, r"^t: no tensor is allowed here"),
        (Colour.RED, r"^the state: cannot save"),
    ],
)
def test_an_unknown_type_is_an_error_that_names_its_path(value, message):
    with pytest.raises(UnsupportedState, match=message):
        dumps(value)


def test_a_state_that_contains_itself_is_an_error():
    value = {}
    value["self"] = value
    with pytest.raises(UnsupportedState, match="contains itself"):
        dumps(value)


def test_a_newer_tag_is_an_error():
    with pytest.raises(ValueError, match=r"unknown tag \$quaternion"):
        loads('{"$quaternion":[1,2,3,4]}')
