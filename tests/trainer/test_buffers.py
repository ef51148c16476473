"""Buffers that a module replaces, resizes, adds or drops are followed: kept, brought back, made equal over ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train_exact import job
from torch import Tensor, nn

from relight_trainer.buffer_layouts import BuffersDiffer, first_difference, layout_agreement
from relight_trainer.buffers import Kept, Packed, Places, UnsupportedBuffer
from relight_trainer.context import WorkerContext
from relight_trainer.peers import form
from relight_trainer.replicas import EqualBuffers, VirtualBuffers

pytestmark = pytest.mark.timeout(120)
CPU = torch.device("cpu")


class Holder(nn.Module):
    """Buffers of several kinds, in itself and in a child."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.BatchNorm1d(2)
        self.register_buffer("center", torch.zeros(3))
        self.register_buffer("queue", torch.zeros(2, 2), persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("nothing", None)


def _each(change: Callable[[nn.Module, str, Tensor], None]) -> Callable[[nn.Module, str], None]:
    def of(module: nn.Module, name: str) -> None:
        tensor = module._buffers.get(name)
        if tensor is not None:
            change(module, name, tensor)

    return of


def _fill(_: nn.Module, __: str, tensor: Tensor) -> None:
    tensor.fill_(7)


def _replace(module: nn.Module, name: str, tensor: Tensor) -> None:
    setattr(module, name, tensor + 1)


def _replace_by_equal(module: nn.Module, name: str, tensor: Tensor) -> None:
    setattr(module, name, tensor.clone())


def _grow(module: nn.Module, name: str, tensor: Tensor) -> None:
    setattr(module, name, torch.cat([tensor.reshape(-1), torch.ones(1, dtype=tensor.dtype)]))


def _other_storage(_: nn.Module, __: str, tensor: Tensor) -> None:
    tensor.data = torch.full_like(tensor, 5)


def _other_shape_in_place(_: nn.Module, __: str, tensor: Tensor) -> None:
    tensor.data = torch.ones(tensor.numel() + 1, dtype=tensor.dtype)


def _other_dtype(module: nn.Module, name: str, tensor: Tensor) -> None:
    setattr(module, name, tensor.to(torch.float64 if tensor.dtype is torch.float32 else torch.float32))


def _other_dtype_in_place(_: nn.Module, __: str, tensor: Tensor) -> None:
    tensor.data = tensor.data.to(torch.float16)


def _none(module: nn.Module, name: str, _: Tensor) -> None:
    setattr(module, name, None)


def _delete(module: nn.Module, name: str, _: Tensor) -> None:
    delattr(module, name)


def _register_late(module: nn.Module, _: str) -> None:
    module.register_buffer(f"late{len(module._buffers)}", torch.ones(2))


def _tie(module: nn.Module, name: str, _: Tensor) -> None:
    module._buffers["tied"] = module._buffers[name]


CHANGES: dict[str, Callable[[nn.Module, str], None]] = {
    **{f.__name__: _each(f) for f in (
        _fill, _replace, _replace_by_equal, _grow, _other_storage, _other_shape_in_place, _other_dtype,
        _other_dtype_in_place, _none, _delete, _tie)},
    "_register_late": _register_late,
}  # fmt: skip
NAMES = ("center", "queue", "count", "nothing", "inner.running_mean", "inner.num_batches_tracked")
patterns = st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.sampled_from(NAMES)), max_size=6)


def change(model: nn.Module, pattern: list[tuple[str, str]]) -> None:
    for kind, name in pattern:
        parent, _, own = name.rpartition(".")
        with torch.no_grad():
            CHANGES[kind](model.get_submodule(parent), own)


def state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model's buffers but which objects they are."""
    found: dict[str, Any] = {
        f"{path}.{name}": None if t is None else (str(t.dtype), tuple(t.shape), t.double().flatten().tolist())
        for path, module in model.named_modules()
        for name, t in module._buffers.items()
    }
    found["saved"] = [*model.state_dict()]
    return found


def objects(model: nn.Module) -> list[int]:
    return [id(t) for module in model.modules() for t in module._buffers.values()]


@given(before=patterns, after=patterns)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_what_was_kept_comes_back_whatever_was_done_to_the_buffers(
    before: list[tuple[str, str]], after: list[tuple[str, str]]
) -> None:
    model = Holder()
    kept = Kept(Places([model]), CPU)
    kept.keep()
    for first, then in ((before, after), (after, before)):  # the second time with room made for another layout
        change(model, first)
        expected, same = state(model), objects(model)
        kept.keep()
        change(model, then)
        kept.bring_back()
        assert state(model) == expected
        assert objects(model) == same


@given(pattern=patterns)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_look_finds_what_named_buffers_finds(pattern: list[tuple[str, str]]) -> None:
    model = Holder()
    places = Places([model], parameters=True)
    for step in pattern:
        version, kinds = places.version, [(id(t), t.shape, t.dtype) for t in places.named.values()]
        change(model, [step])
        changed = places.look() != version
        expected = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        assert [*places.named] == [*expected]
        assert all(t is expected[name] for name, t in places.named.items())
        assert changed or kinds == [(id(t), t.shape, t.dtype) for t in expected.values()]
        assert places.look() == places.version


def test_a_submodule_that_comes_late_is_looked_into() -> None:
    model = Holder()
    places = Places([model])
    model.add_module("late", nn.BatchNorm1d(1))
    places.look()
    assert "late.running_mean" in places.named


def test_what_cannot_be_followed_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedBuffer, match=r"the buffer graph is a sparse_coo tensor, \(3, 3\) float32; allowed"):
        Packed({"graph": torch.eye(3).to_sparse()}, CPU)
    model = nn.Sequential(torch.jit.script(nn.BatchNorm1d(2)))
    with pytest.raises(UnsupportedBuffer, match=r"0 is a RecursiveScriptModule of torch.jit; allowed: the module"):
        Places([model])


class Centred(nn.Module):
    """A centre that is replaced in each forward, as DINO's loss does, and a queue that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.center: Tensor
        self.register_buffer("center", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x) - self.center
        self.center = self.center * 0.5 + x.mean(0) * 0.5
        if not hasattr(self, "queue"):
            self.register_buffer("queue", torch.zeros(0))
        self.queue = torch.cat([self.queue, y[:1, 0]])
        return y


def data(step: int, rank: int) -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(10 * step + rank))


def on_ranks(context: WorkerContext) -> Any:
    form(CPU)
    model = Centred()
    equal = EqualBuffers([model], CPU)
    found = []
    with torch.no_grad():
        for step in range(4):
            outputs = [model(data(step, context.rank))]
            equal.sync()
            found.append((state(model), [o.tolist() for o in outputs]))
    return found


def played(_: WorkerContext, ranks: int) -> Any:
    model = Centred()
    virtual = VirtualBuffers(model, CPU)
    found = []
    with torch.no_grad():
        for step in range(4):
            outputs = []
            for rank in range(ranks):
                virtual.begin(rank)
                outputs.append(model(data(step, rank)).tolist())
            virtual.end()
            found.append((state(model), outputs))
    return found


def test_one_rank_that_plays_three_has_the_buffers_and_outputs_of_three(tmp_path: Path) -> None:
    theirs = worlds.run(on_ranks, root=tmp_path, job=job(tmp_path), ranks=3)
    [mine] = worlds.run(played, 3, root=tmp_path, job=job(tmp_path), ranks=1)
    for step, (buffers, outputs) in enumerate(mine):
        assert [found[step] for found in theirs] == [(buffers, [output]) for output in outputs]
    assert mine[-1][0][".queue"][1] == (4,)


def dropped(context: WorkerContext) -> Any:
    form(CPU)
    model = Centred()
    equal = EqualBuffers([model], CPU)
    with torch.no_grad():
        model(data(0, context.rank))
        equal.sync()
        expected = state(model)
        equal.keep()
        model(data(1, context.rank))
        model(data(2, context.rank))
        moved = state(model) != expected
        equal.bring_back()
        back = state(model) == expected
        model(data(1, context.rank))
        equal.sync()
    return moved, back, state(model)


def test_a_dropped_step_leaves_no_trace_in_replaced_buffers(tmp_path: Path) -> None:
    found = worlds.run(dropped, root=tmp_path, job=job(tmp_path))
    expected = worlds.run(on_ranks, root=tmp_path, job=job(tmp_path))[0][1][0]
    assert found == [(True, True, expected)] * 2


KINDS = [
    "bool", "uint8", "int16", "int64", "uint16", "uint64", "bfloat16", "float16", "float64", "complex64", "complex32",
    "float8_e4m3fn", "float8_e5m2", "int4", "uint2", "float4_e2m1fn_x2",
]  # fmt: skip


def odd_kinds(context: WorkerContext) -> Any:
    form(CPU)
    model = nn.Module()
    for kind in (k for k in KINDS if hasattr(torch, k)):
        words = torch.full((16,), 17 + context.rank, dtype=torch.uint8)
        model.register_buffer(f"of_{kind}", words.view(getattr(torch, kind)) if kind != "bool" else words > 17)
    EqualBuffers([model], CPU).sync()
    return {name: buffer.view(torch.uint8).tolist() for name, buffer in model.named_buffers()}


def test_buffers_of_every_dtype_become_rank_0s(tmp_path: Path) -> None:
    mine, theirs = worlds.run(odd_kinds, root=tmp_path, job=job(tmp_path))
    assert isinstance(mine, dict), mine
    assert mine == theirs
    assert mine["of_int64"] == [17] * 16
    assert len(mine) >= 12


def grown(context: WorkerContext, who: int, at: int, seconds: float) -> Any:
    """Two syncs; in step `at` the queue of rank `who` (-1: of both) grows, and later another one's."""
    form(CPU)
    model = Holder()
    equal = EqualBuffers([model], CPU, layout_agreement("test", lambda: seconds))
    for step in range(3):
        model.center.fill_(context.rank)  # type: ignore[operator]
        if step == at and who in (-1, context.rank):
            model.queue = torch.cat([model.queue, torch.full((1, 2), float(context.rank))])  # type: ignore[list-item]
        if step == 0 and who == 2:  # different from the start
            model.queue = torch.zeros(2 + context.rank)
        equal.sync()
    return state(model)


def test_a_queue_that_grows_on_all_ranks_is_equal(tmp_path: Path) -> None:
    mine, theirs = worlds.run(grown, -1, 1, 30.0, root=tmp_path, job=job(tmp_path))
    assert isinstance(mine, dict), mine
    assert mine == theirs
    assert mine[".queue"][1] == (3, 2)
    assert mine[".queue"][2][-2:] == [0.0, 0.0]


@pytest.mark.parametrize("who", [0, 1])
def test_a_queue_that_grows_on_one_rank_alone_ends_with_its_name(tmp_path: Path, who: int) -> None:
    found = worlds.run(grown, who, 1, 2.0, root=tmp_path, job=job(tmp_path), timeout=20)[who]
    assert found.startswith("BuffersDiffer: the buffers of rank ")
    assert f"rank {who} has in step 2 of this run, center (3,) float32, queue (3, 2) float32" in found
    assert "have not for 2 s" in found


def test_ranks_with_other_shapes_end_at_once_with_the_first_that_differs(tmp_path: Path) -> None:
    found = worlds.run(grown, 2, 9, 30.0, root=tmp_path, job=job(tmp_path))
    words = "rank 0 has queue (2,) float32, rank 1 has queue (3,) float32"
    assert all(f"BuffersDiffer: the ranks' buffers differ in names, shapes or dtypes: {words}" in f for f in found)
    assert int(BuffersDiffer.exit_code) == 79


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (["a (1,)"], ""),
        (["b (1,)"], "rank 0 has a (1,), rank 3 has b (1,)"),
        (["a (1,)", "c"], "rank 0 has no further buffer, rank 3 has c"),
        ([], "rank 0 has a (1,), rank 3 has no further buffer"),
    ],
)
def test_the_first_difference_is_told(theirs: list[str], words: str) -> None:
    assert first_difference(["a (1,)"], theirs, 3) == words
