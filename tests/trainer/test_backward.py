"""The backward pass is torch's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relight_trainer.backward import Backward


def gradients(backward: Any, loss_of: Any, seed: float) -> list[Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    loss = loss_of(model(torch.randn(5, 3)))
    backward(loss, torch.full_like(loss, seed, requires_grad=False))
    return [p.grad for p in model.parameters() if p.grad is not None]


def torchs(loss: Tensor, gradient: Tensor) -> None:
    loss.backward(gradient)  # type: ignore[no-untyped-call]


class Marked(Tensor):
    pass


@pytest.mark.parametrize("seed", [1.0, 1 / 3])
@pytest.mark.parametrize("loss_of", [lambda o: o.square().sum(), lambda o: o.abs().sum().as_subclass(Marked)])
@pytest.mark.parametrize("there", [True, False])
def test_gradients_are_those_of_loss_backward_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, seed: float, loss_of: Any, there: bool
) -> None:
    if not there:  # as in a torch that has none, or another one
        monkeypatch.delattr(torch.autograd.graph, "_engine_run_backward")
    assert (Backward()._run is not None) is there
    found, expected = gradients(Backward(), loss_of, seed), gradients(torchs, loss_of, seed)
    assert len(found) == 4
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_loss_without_a_graph_is_an_error_in_the_same_words() -> None:
    words = []
    for backward in (Backward(), torchs):
        with pytest.raises(RuntimeError) as raised:
            backward(torch.ones(()), torch.ones(()))
        words.append(str(raised.value))
    assert words[0] == words[1]


def test_it_is_taken_with_the_torch_that_is_tested() -> None:
    assert Backward()._run is not None
