"""A saved state whose buffers have other shapes than a new module's is loaded, where the module was built alike."""

import pytest
import torch
from hypothesis import given, settings
from test_buffers import Holder, change, patterns, state
from torch import nn

from relight_trainer.buffer_history import BufferHistory
from relight_trainer.checkpoint import pack, unpack

Pattern = list[tuple[str, str]]


def saved(model: nn.Module, history: BufferHistory) -> dict[str, object]:
    whole = unpack(pack({"model": model.state_dict(), "history": history.record()}))
    return dict(whole)


def resumed(whole: dict[str, object], model: nn.Module) -> BufferHistory:
    history = BufferHistory({"model": model})
    history.fit(whole["history"], whole)  # type: ignore[arg-type]
    model.load_state_dict(whole["model"])  # type: ignore[arg-type]
    return history


@given(first=patterns, then=patterns)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_whatever_was_done_to_the_buffers_a_new_module_takes_over_twice(first: Pattern, then: Pattern) -> None:
    model: nn.Module = Holder()
    history = BufferHistory({"model": model})
    for pattern in (first, then):
        change(model, pattern)
        other = Holder()
        history = resumed(saved(model, history), other)
        ours, theirs = model.state_dict(), other.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(t, theirs[n]) and t.dtype is theirs[n].dtype for n, t in ours.items())
        model = other  # which is cut next


def test_as_long_as_no_shape_changes_nothing_is_saved() -> None:
    model = Holder()
    history = BufferHistory({"model": model, "other": object()})
    before = state(model)
    change(model, [("_fill", "center"), ("_replace", "center"), ("_other_storage", "count"), ("_grow", "queue")])
    assert state(model) != before
    assert history.record() == {}  # the queue is not persistent


def test_a_module_that_was_built_otherwise_is_left_to_the_strict_load() -> None:
    model = nn.Module()
    model.register_buffer("queue", torch.zeros(2))
    history = BufferHistory({"model": model})
    model.queue = torch.ones(5)
    whole = saved(model, history)
    other = nn.Module()
    other.register_buffer("queue", torch.zeros(3))
    with pytest.raises(RuntimeError, match="size mismatch for queue"):
        resumed(whole, other)
    without = nn.Module()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        resumed(whole, without)
    never = {"model": whole["model"], "history": {}}  # as of a module that was larger from the start
    with pytest.raises(RuntimeError, match="size mismatch for queue"):
        resumed(never, _built(2))


def _built(size: int) -> nn.Module:
    module = nn.Module()
    module.register_buffer("queue", torch.zeros(size))
    return module
