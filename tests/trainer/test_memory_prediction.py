"""The memory that a training will want, foretold from shapes: against closed forms and against what a run allocates."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from relight_trainer.models.digits_cnn import digits_cnn
from relight_trainer.models.resnet import resnet18
from relight_trainer.observe.memory import Unpredictable, measure, rows

Optimizers = Callable[[nn.Module], torch.optim.Optimizer]


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]).float(), batch[1])


def batch_of(shape: tuple[int, ...], samples: int) -> Any:
    return rows((torch.empty(1, *shape, device="meta"), torch.empty(1, dtype=torch.int64, device="meta")), samples)


OPTIMIZERS: dict[str, Optimizers] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), amsgrad=True),
    "adafactor": lambda m: torch.optim.Adafactor(m.parameters()),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_gradients_buffers_and_optimizer_are_exact(name: str) -> None:
    def make() -> nn.Module:
        return digits_cnn(width=4).to(torch.bfloat16 if name == "adamw" else torch.float32)

    model = make()
    optimizer = OPTIMIZERS[name](model)
    batch = (torch.randn(5, 1, 8, 8, dtype=next(model.parameters()).dtype), torch.zeros(5, dtype=torch.int64))
    loss_of(model, batch).backward()
    gradients = [p.grad for p in model.parameters()]
    optimizer.step()
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]

    def total(tensors: Any) -> int:
        return sum(t.nelement() * t.element_size() for t in tensors)

    found = measure(make, OPTIMIZERS[name], batch, loss_of, 5)
    assert found.parameters == total(model.parameters())
    assert found.elements == sum(p.numel() for p in model.parameters())
    assert found.gradients == total(gradients)
    assert found.buffers == total(model.buffers())
    assert found.optimizer == total(state)
    assert found.batch == total(batch)
    assert found.frozen == 0


def test_what_is_frozen_has_neither_gradients_nor_state() -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 3))
        model[0].requires_grad_(False)
        return model

    found = measure(make, OPTIMIZERS["momentum"], batch_of((10,), 4), loss_of, 4)
    learned = (20 * 3 + 3) * 4
    assert (found.parameters, found.frozen) == (220 * 4 + learned, 220 * 4)
    assert found.gradients == found.optimizer == learned


@pytest.mark.parametrize("samples", [1, 32])
def test_activations_of_a_perceptron_are_those_of_the_textbook(samples: int) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))

    found = measure(make, OPTIMIZERS["sgd"], batch_of((784,), samples), loss_of, samples)
    # ReLU keeps its output, which the second layer keeps as its input: one storage. The loss keeps log-probabilities,
    # and its total weight, one number. The first layer's input is the batch.
    hidden, probabilities = samples * 100 * 4, samples * 10 * 4
    assert found.by_module == {"1": hidden, "": probabilities + 4}
    assert found.activations == hidden + probabilities + 4


def test_a_tied_weight_is_one_and_a_constructor_may_look_at_values() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            assert torch.linspace(0, 1, 3)[1].item() == 0.5
            self.embed = nn.Embedding(50, 8)
            self.head = nn.Linear(8, 50, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x).mean(1))

    batch = torch.zeros(4, 7, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    found = measure(Tied, OPTIMIZERS["momentum"], batch, loss_of, 4)
    assert found.parameters == found.gradients == found.optimizer == 50 * 8 * 4


def test_a_view_of_a_parameter_and_a_layer_used_twice_are_counted_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.sigmoid(self.layer(x)))

    found = measure(Twice, OPTIMIZERS["sgd"], batch_of((8,), 4), loss_of, 4)
    assert found.parameters == found.gradients == 8 * 8 * 4
    assert found.by_module == {"": 2 * 4 * 8 * 4 + 4}  # the sigmoid's output, log-probabilities, the total weight


def allocated_at_most(run: Callable[[], Any]) -> int:
    """The most bytes that `run` had allocated at one time, by the profiler's record of the allocator's calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    now = most = 0
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.fixture
def without_onednn() -> Iterator[None]:
    """Its kernels take working memory of their own, on some processors as much as all gradients."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(enabled)


@pytest.mark.usefixtures("without_onednn")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_peak_is_what_a_real_run_allocates_within_ten_percent(precision: torch.dtype) -> None:
    samples, shape = 8, (3, 32, 32)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            output = model(batch[0])
        return cross_entropy(output.float(), batch[1])

    def make() -> nn.Module:
        return resnet18(classes=10)

    kept: list[Any] = []

    def run() -> None:
        model = make()
        optimizer = OPTIMIZERS["momentum"](model)
        batch = torch.randn(samples, *shape), torch.zeros(samples, dtype=torch.int64)
        kept.extend((model, optimizer, batch))
        for _ in range(2):
            loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    found = measure(make, OPTIMIZERS["momentum"], batch_of(shape, samples), loss, samples)
    assert found.peak == pytest.approx(allocated_at_most(run), rel=0.1)
    assert found.peak > found.parameters + found.optimizer + found.activations
    assert sum(found.by_module.values()) == found.activations


def test_a_model_that_looks_at_values_is_told_apart() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(Unpredictable, match="the model looks at values that only a real run has"):
        measure(Looks, OPTIMIZERS["sgd"], batch_of((3,), 2), loss_of, 2)


def test_a_step_that_fails_is_told_in_its_own_words() -> None:
    with pytest.raises(
        Unpredictable, match=r"a step on 2 samples of this shape fails: RuntimeError: .*\[2, 4\] X \[3, 3\]"
    ):
        measure(lambda: nn.Linear(3, 3), OPTIMIZERS["sgd"], batch_of((4,), 2), loss_of, 2)
