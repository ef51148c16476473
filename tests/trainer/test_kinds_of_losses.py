"""A loss that is no tensor is refused with what it is and what is allowed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relight_trainer.evaluate import sums_of
from relight_trainer.losses import CrossEntropy, LossMisfit
from relight_trainer.objective import Objective, OwnObjective

RUN: Any = None
BATCH = (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))


def returning(step: Callable[[Tensor], Any], name: str = "training_step") -> nn.Module:
    model = nn.Linear(2, 2)
    setattr(model, name, lambda batch, _: step(model(batch[0]).square().mean()))
    return model


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (lambda _, __: {"main": torch.ones(()), "aux": 1}, "a dict with the entries main, aux"),
        (lambda _, __: {}, "a dict with the entries none"),
        (lambda _, __: (torch.ones(()), None), "a tuple of 2: Tensor, NoneType"),
        (lambda _, __: 1.5, "a float, 1.5"),
        (lambda _, __: None, "a NoneType"),
    ],
)
def test_what_a_loss_returns_is_a_tensor(criterion: Callable[[Any, Any], Any], words: str) -> None:
    objective = Objective(criterion)
    with pytest.raises(LossMisfit) as caught:
        objective.term(torch.zeros(3, 2), BATCH, 3)
    assert str(caught.value).startswith(f"the loss returns {words}; allowed: a tensor")
    model = returning(lambda _: criterion(None, None))
    own = OwnObjective()
    with pytest.raises(LossMisfit) as caught:
        own.term(own.output(model, BATCH, RUN), BATCH, 3)
    assert str(caught.value).startswith(f"training_step returns {words}; allowed: a tensor of one number, or")


@pytest.mark.parametrize("step", [lambda loss: loss, lambda loss: {"loss": loss, "aux": 1}])
def test_a_training_step_returns_a_tensor_or_a_mapping_with_the_loss(step: Callable[[Tensor], Any]) -> None:
    own = OwnObjective()
    model = returning(step)
    loss, times = own.term(own.output(model, BATCH, RUN), BATCH, 3)
    assert (loss.dim(), times) == (0, 3)


def test_a_model_that_returns_no_tensor_is_named_beside_the_loss_that_cannot_take_it() -> None:
    with pytest.raises(
        LossMisfit, match=r"the model returns a tuple of 2: Tensor, Tensor, which the loss cannot take \("
    ):
        Objective(CrossEntropy()).term((torch.zeros(3, 2), torch.zeros(1)), BATCH, 3)
    taken = Objective(lambda output, target: output[0].mean() + target.sum())  # a loss of one's own may
    assert taken.term((torch.ones(3, 2), None), BATCH, 3)[0] == 1


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (torch.ones(()), "validation_step returns a Tensor; allowed: a mapping"),
        ({"loss": 1.5}, "validation_step returns a float, 1.5 as loss; allowed: a tensor of one number"),
        (
            {"a": torch.ones(3)},
            r"validation_step returns a tensor of shape \(3,\) as a; allowed: a tensor of one",
        ),
    ],
)
def test_a_validation_step_returns_named_numbers(found: Any, words: str) -> None:
    model = returning(lambda _: found, "validation_step")
    with pytest.raises(LossMisfit, match=words):
        sums_of(model, OwnObjective(), RUN)(BATCH, 3)
    fine = returning(lambda loss: {"loss": loss, "one": torch.ones(1)}, "validation_step")
    assert sums_of(fine, OwnObjective(), RUN)(BATCH, 3)["one"] == 3
