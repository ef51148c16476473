"""Digests of all ranks in, the first difference out."""

import json
from typing import Any

import pytest

from relight_trainer.equality.compare import Difference, ObjectDigest, TensorDigest, differing, explain


@pytest.mark.parametrize(
    ("summaries", "found"),
    [
        ([{"model": "a"}], []),
        ([{"model": "a", "optimizer": "b"}] * 3, []),
        ([{"model": "a"}, {"model": "a"}, {"model": "b"}], [("model", 2)]),
        ([{"model": "a", "optimizer": "b"}, {"model": "c", "optimizer": "b"}], [("model", 1)]),
        ([{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "0", "b": "2"}], [("a", 2), ("b", 1)]),
        ([{"model": "a"}, {"model": "a", "ema": "b"}], [("ema", 1)]),
        ([{"model": "a", "ema": "b"}, {"model": "a"}], [("ema", 1)]),
    ],
)
def test_the_objects_that_differ_with_the_first_rank(summaries: list[dict[str, str]], found: list[Any]) -> None:
    assert differing(summaries) == found


def state(value: Any = None, **tensors: tuple[str, int]) -> ObjectDigest:
    return ObjectDigest(
        "", json.dumps(value), [TensorDigest(n, kind, lane, lane) for n, (kind, lane) in tensors.items()]
    )


F = "float32 (2,)"


@pytest.mark.parametrize(
    ("mine", "other", "said"),
    [
        (state(w=(F, 1), b=(F, 2)), state(w=(F, 1), b=(F, 3)), "model, first in b"),
        (state(w=(F, 1), b=(F, 2)), state(w=(F, 9), b=(F, 9)), "model, first in w"),
        (state(w=(F, 1)), state(w=("float32 (3,)", 1)), "model, first in w (float32 (2,) on rank 0, float32 (3,) on rank 3)"),
        (state(w=(F, 1)), state(w=(F, 1), b=(F, 1)), "model, first in b (rank 0 has no such tensor)"),
        (state(w=(F, 1), b=(F, 1)), state(w=(F, 1)), "model, first in b (rank 3 has no such tensor)"),
        (state({"lr": 0.1}), state({"lr": 0.2}), "model, first in lr (0.1 on rank 0, 0.2 on rank 3)"),
        (state({"": {"groups": [{"lr": 1}]}}), state({"": {"groups": [{"lr": 2}]}}),
         "model, first in groups[0].lr (1 on rank 0, 2 on rank 3)"),
        (state({"betas": {"$tuple": [1, 2]}}), state({"betas": {"$tuple": [1, 3]}}),
         "model, first in betas[1] (2 on rank 0, 3 on rank 3)"),
        (state({"a": 1}), state({"a": 1, "b": 2}), "model, first in b (nothing on rank 0, 2 on rank 3)"),
        (state({"a": [1]}), state({"a": [1, 2]}), "model, first in a ([1] on rank 0, [1, 2] on rank 3)"),
        (state({"a": 1}), None, "model (rank 3 was given no object of this name)"),
        (None, state({"a": 1}), "model (rank 0 was given no object of this name)"),
    ],
)  # fmt: skip
def test_a_difference_names_its_place(mine: ObjectDigest | None, other: ObjectDigest | None, said: str) -> None:
    found = explain("model", 3, mine, other)
    assert str(found) == said
    assert Difference.load(json.loads(json.dumps(found.dump()))) == found


def test_keys_in_another_order_differ_too() -> None:
    found = explain("model", 1, state({"a": 1, "b": 2}), state({"b": 2, "a": 1}))
    assert str(found) == "model (keys in one order on rank 0, in another on rank 1)"


def test_all_tensors_that_differ_are_listed() -> None:
    found = explain("model", 1, state(a=(F, 1), b=(F, 2), c=(F, 3)), state(a=(F, 0), b=(F, 2), c=(F, 0)))
    assert found.tensors == ("a", "c")


def test_a_digest_is_sent_whole() -> None:
    digest = state({"lr": 0.1}, w=(F, -(2**63)), b=(F, 2**63 - 1))
    assert ObjectDigest.load(digest.dump()) == digest
