"""Clipping against torch's own and against the paper's formula."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relight_trainer.clip import build_clip
from relight_trainer.config import BadConfig
from relight_trainer.settings.clip import ClipAgc, ClipNorm, ClipValue


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).double()


def backward(model: nn.Module, scale: float = 1.0) -> None:
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (model(x).exp().sum() * scale).backward()


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_the_norm_is_torchs(limit: float, order: float) -> None:
    ours, theirs = net(), net()
    backward(ours)
    backward(theirs)
    clip = build_clip(ClipNorm(max=limit, order=order), ours)
    assert clip is not None
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit, order)
    assert torch.equal(clip(), expected)
    for a, b in zip(gradients(ours), gradients(theirs), strict=True):
        assert torch.equal(a, b)
    whole = torch.cat([g.reshape(-1) for g in gradients(ours)])
    assert torch.linalg.vector_norm(whole, order).item() <= limit * (1 + 1e-6)


def test_values_are_clamped_and_parameters_without_gradient_are_left_out() -> None:
    model = net()
    backward(model)
    next(model.parameters()).grad = None
    before = [g.clone() for g in gradients(model)]
    clip = build_clip(ClipValue(max=0.5), model)
    assert clip is not None
    norm = clip()
    assert norm.item() == pytest.approx(torch.cat([g.reshape(-1) for g in before]).norm().item(), rel=1e-12)
    for a, b in zip(gradients(model), before, strict=True):
        assert torch.equal(a, b.clamp(-0.5, 0.5))


def test_agc_is_the_papers_formula_unit_by_unit_and_leaves_out_what_it_is_told() -> None:
    model = net()
    backward(model)
    before = copy.deepcopy(gradients(model))
    clip = build_clip(ClipAgc(factor=0.02, eps=1e-3, but=["3"]), model)
    assert clip is not None
    clip()
    clipped = 0
    for (name, p), old in zip(model.named_parameters(), before, strict=True):
        assert p.grad is not None
        units = list(zip(p, p.grad, old, strict=True)) if p.ndim > 1 else [(p, p.grad, old)]
        for weight, new, g in units:
            limit = 0.02 * max(weight.norm().item(), 1e-3)
            factor = limit / g.norm().item() if g.norm().item() > limit and not name.startswith("3") else 1.0
            assert torch.allclose(new, g * factor, rtol=1e-12, atol=0)
            clipped += factor < 1
    assert clipped >= 4
    with pytest.raises(BadConfig, match=r'config.clip.but: fits no name in the model; found "haed"'):
        build_clip(ClipAgc(but=["haed"]), model)


def test_under_a_scaler_what_is_clipped_is_the_unscaled_gradient() -> None:
    def steps(scaled: bool) -> list[Tensor]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, enabled=scaled)
        clip = build_clip(ClipNorm(max=0.1), model)
        assert clip is not None
        for _ in range(3):
            optimizer.zero_grad()
            backward(model, 2.0**14 if scaled else 1.0)
            scaler.scale(torch.ones(()))
            scaler.unscale_(optimizer)
            clip()
            scaler.step(optimizer)
            scaler.update()
        return list(model.parameters())

    for p, q in zip(steps(True), steps(False), strict=True):
        assert (p - q).abs().max() <= 1e-12


@pytest.mark.parametrize("settings", [ClipNorm(), ClipNorm(order=3.0), ClipValue(), ClipAgc()])
def test_clipping_never_waits_for_the_host(settings: Any) -> None:
    model = nn.Linear(4, 3, device="meta")  # whose values nobody can read
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    clip = build_clip(settings, model)
    assert clip is not None
    assert clip().device.type == "meta"


def test_no_clipping_costs_nothing() -> None:
    assert build_clip(None, net()) is None
