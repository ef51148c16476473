"""The moving average follows tensors that the module replaces, and averages every dtype that holds numbers."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from test_buffers import Centred, Holder, change, objects, patterns, state
from torch import Tensor, nn

from relight_trainer.checkpoint import pack, unpack
from relight_trainer.ema import Ema
from relight_trainer.settings.ema import EmaArguments

pytestmark = pytest.mark.timeout(120)
HALF = EmaArguments(decay=0.5, warmup=False)


def averages(ema: Ema) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in ema.state_dict()["weights"].items()}


class Replacing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.center: Tensor
        self.register_buffer("center", torch.zeros(2))


def test_a_buffer_that_is_replaced_is_averaged() -> None:
    model = Replacing()
    ema = Ema(HALF, model)
    for value in (0.5, 1.0, 2.0):
        model.center = torch.full((2,), value)
        ema.update()
    assert averages(ema)["center"].tolist() == [1.3125, 1.3125]  # ((0 + 0.5) / 2 + 1) / 2 ...


def test_a_parameter_that_is_replaced_is_averaged() -> None:
    model = Replacing()
    with torch.no_grad():
        model.linear.weight.fill_(1.0)
    ema = Ema(HALF, model)
    model.linear.weight = nn.Parameter(torch.full((2, 2), 3.0))
    ema.update()
    assert averages(ema)["linear.weight"].flatten().tolist() == [2.0] * 4


@given(steps=patterns)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_average_is_that_of_a_loop_in_float64_whatever_happens_to_the_tensors(steps: Any) -> None:
    model = Holder()
    ema = Ema(HALF, model)
    expected = {name: t.detach().double() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    floating = {name for name, t in expected.items() if not name.endswith(("count", "tracked"))}
    for step in steps:
        change(model, [step])
        ema.update()
        now = {name: t.detach() for name, t in [*model.named_parameters(), *model.named_buffers()]}
        before, expected = expected, {}
        for name, own in now.items():
            old = before.get(name) if name in floating else None
            goes_on = own.is_floating_point() and old is not None and old.shape == own.shape
            expected[name] = (old + own.double()) / 2 if goes_on and old is not None else own.double()
        floating = {name for name, own in now.items() if own.is_floating_point()}
        found = averages(ema)
        assert found.keys() == expected.keys()
        for name, average in found.items():
            assert torch.allclose(average.double(), expected[name], atol=1e-6), name


@given(inside=patterns)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_after_a_swap_the_module_has_its_own_tensors_whatever_an_evaluation_replaced(inside: Any) -> None:
    model = Holder()
    ema = Ema(HALF, model)
    model.center.fill_(8.0)  # type: ignore[operator]
    ema.update()
    expected, same = state(model), objects(model)
    with ema.swapped():
        assert model.center.tolist() == [4.0] * 3  # type: ignore[operator]
        for kind, name in inside:
            if kind != "_fill":
                change(model, [(kind, name)])
    assert state(model) == expected
    assert objects(model) == same


def test_a_late_buffer_and_a_grown_one_begin_with_what_they_are() -> None:
    model = Centred()
    ema = Ema(HALF, model)
    for _ in range(3):
        with torch.no_grad():
            model(torch.randn(4, 3))
        ema.update()
        assert torch.equal(averages(ema)["queue"], model.queue)
    assert not torch.equal(averages(ema)["center"], model.center)


NARROW = [k for k in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz") if hasattr(torch, k)]


@pytest.mark.parametrize("kind", NARROW)
def test_narrow_numbers_are_averaged_as_in_float64_and_lent_in_their_own_dtype(kind: str) -> None:
    model = nn.Module()
    dtype = getattr(torch, kind)
    model.register_buffer("scale", torch.ones(8).to(dtype))
    ema = Ema(EmaArguments(decay=0.999, warmup=False), model)
    model.scale = torch.full((8,), 2.0).to(dtype)
    for _ in range(500):
        ema.update()
    exact = 2 - 0.999**500
    # In the dtype's own steps the average would never have moved: 1 + 0.001 is 1 in each of them.
    assert averages(ema)["scale"].double().sub(exact).abs().max() < 1e-4
    own = model.scale
    with ema.swapped():
        assert model.scale is own
        assert own.dtype is dtype
        assert torch.equal(own.float(), torch.full((8,), exact).to(dtype).float())
    assert own.float().tolist() == [2.0] * 8
    saved = unpack(pack({"ema": ema.state_dict()}))["ema"]
    other = Ema(EmaArguments(), model)
    other.load_state_dict(saved)
    assert torch.equal(averages(other)["scale"], averages(ema)["scale"])


def test_dtypes_that_hold_no_numbers_are_copied() -> None:
    model = nn.Module()
    kinds = [k for k in ("bool", "uint8", "int64", "uint16", "int4", "uint2", "float4_e2m1fn_x2") if hasattr(torch, k)]
    for kind in kinds:
        words = torch.full((4,), 3, dtype=torch.uint8)
        model.register_buffer(
            f"of_{kind}", words > 1 if kind == "bool" else torch.cat([words] * 2).view(getattr(torch, kind))
        )
    model.register_buffer("graph", torch.eye(3).to_sparse())
    ema = Ema(HALF, model)
    for buffer in model.buffers():
        if not buffer.is_sparse:
            buffer.view(torch.uint8).fill_(1)
    ema.update()
    with ema.swapped():
        pass
    for name, average in ema.state_dict()["weights"].items():
        if name != "graph":
            assert average.view(torch.uint8).unique().tolist() == [1], name


def test_a_saved_average_of_another_shape_is_refused_and_not_spread_out() -> None:
    ema = Ema(HALF, nn.Linear(3, 1))
    saved = Ema(HALF, nn.Linear(1, 1)).state_dict()
    with pytest.raises(
        ValueError, match=r"of another model: weight is \(1, 1\) float32 there and \(1, 3\) float32 here"
    ):
        ema.load_state_dict(saved)
