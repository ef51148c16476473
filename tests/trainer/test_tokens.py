"""`weigh_by: tokens`: each token of the global batch weighs the same, whoever computes which part of it."""

from pathlib import Path
from typing import Any

import little
import pytest
import torch
import worlds
from test_train_equal import trained
from test_train_exact import job
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from relight_trainer.context import WorkerContext
from relight_trainer.losses import CrossEntropy
from relight_trainer.objective import Objective
from relight_trainer.peers import form
from relight_trainer.sampler import Sampler

pytestmark = pytest.mark.timeout(300)
CPU = torch.device("cpu")
COUNT, LONGEST, STEPS, RATE = 23, 6, 5, 0.5
PADDING = -1


class Tagger(nn.Module):
    """3 classes at each of `LONGEST` positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.last(self.first(inputs).tanh())
        return output.movedim(-1, 1)


class Sentences(torch.utils.data.Dataset[Any]):
    """Sentences of 0 to `LONGEST` tokens, padded."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(count, LONGEST, 4, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(0, 3, (count, LONGEST), generator=generator)
        lengths = torch.randint(0, LONGEST + 1, (count, 1), generator=generator)
        self.labels[torch.arange(LONGEST) >= lengths] = PADDING

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]


def sentences(count: int) -> tuple[Sentences, Sentences]:
    return Sentences(count), Sentences(7)


SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro-batches of at most 2": {"micro_batch": 2},
    "fewer samples than ranks": {"global_batch": 2, "virtual_ranks": 3},
}


def configuration(name: str, weigh_by: str = "tokens") -> dict[str, Any]:
    settings = {"duration": f"{STEPS}st", "global_batch": 9, "last_batch": "keep", "device": "cpu", "log_every": STEPS}
    return {
        "model": {"type": f"{__name__}:Tagger"},
        "data": {"type": f"{__name__}:sentences", "count": COUNT},
        "loader": {"workers": 0},
        "loss": {"type": "cross_entropy", "ignore_index": PADDING, "weigh_by": weigh_by, "label_smoothing": 0.1},
        "train": settings | SCENARIOS[name],
        "optimizer": {"type": "sgd", "lr": RATE, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
        "schedule": {"type": "constant"},
        "observe": {"time_split": False},
        "hooks": [{"type": "little:Capture", "name": name}],
    }


def everything(context: WorkerContext) -> Any:
    form(CPU)
    torch.use_deterministic_algorithms(True)
    results = {}
    for number, name in enumerate(SCENARIOS, 1):
        outcome = trained(context, configuration(name), number)
        results[name] = outcome.result["metrics"], weights(little.WEIGHTS[name])
    trained(context, configuration("micro-batches of at most 2", "samples"), len(SCENARIOS) + 1)
    return results, weights(little.WEIGHTS["micro-batches of at most 2"])


def weights(tensors: dict[str, Tensor]) -> list[float]:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)]).tolist()


def by_hand(batch: int, start: dict[str, Tensor]) -> tuple[list[float], float, float]:
    """(weights, the last step's loss, the loss of the test set) of one process that takes each batch whole."""
    model = Tagger()
    model.load_state_dict(start)
    data, test = sentences(COUNT)
    sampler = Sampler(COUNT, batch, 0, keep_tail=True)
    smoothed = {"ignore_index": PADDING, "label_smoothing": 0.1}
    for step in range(STEPS):
        rows = torch.from_numpy(sampler.batch_of(step))
        model.zero_grad()
        loss = cross_entropy(model(data.inputs[rows]), data.labels[rows], **smoothed)  # type: ignore[arg-type]
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(RATE * parameter.grad)
    tested = cross_entropy(model(test.inputs), test.labels, **smoothed)  # type: ignore[arg-type]
    return weights(model.state_dict()), loss.item(), tested.item()


def start() -> dict[str, Tensor]:
    from relight_trainer.seeds import seed_torch, stream

    seed_torch(stream(0, "init"))
    return Tagger().state_dict()


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_gradient_is_that_of_the_mean_over_all_tokens(tmp_path: Path, ranks: int) -> None:
    answers = worlds.run(everything, root=tmp_path, job=job(tmp_path), ranks=ranks)
    for results, by_samples in answers:
        for name, (metrics, found) in results.items():
            expected, loss, tested = by_hand(SCENARIOS[name].get("global_batch", 9), start())
            assert found == pytest.approx(expected, abs=1e-12, rel=0), name
            assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
            assert float(metrics["test_loss"]) == pytest.approx(tested, abs=1e-4)
        far = max(abs(a - b) for a, b in zip(by_samples, by_hand(9, start())[0], strict=True))
        assert far > 1e-3  # the negative control


def test_the_mean_of_means_is_another_number() -> None:
    torch.manual_seed(0)
    data, _ = sentences(COUNT)
    logits = Tagger()(data.inputs)
    whole = cross_entropy(logits, data.labels, ignore_index=PADDING)
    halves = [
        cross_entropy(logits[rows], data.labels[rows], ignore_index=PADDING) for rows in (slice(4), slice(4, COUNT))
    ]
    criterion = CrossEntropy(ignore_index=PADDING, weigh_by="tokens")
    sums = [Objective(criterion).loss(logits[rows], (0, data.labels[rows]), 1) for rows in (slice(4), slice(4, COUNT))]
    assert criterion.denominator is not None
    assert (sum(sums) / criterion.denominator(data.labels)).item() == pytest.approx(whole.item(), abs=1e-12)
    assert abs(sum(halves).item() / 2 - whole.item()) > 1e-3  # type: ignore[union-attr]  # two of them


def test_targets_that_do_not_count_give_no_gradient() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    CrossEntropy(ignore_index=PADDING, weigh_by="tokens")(logits, torch.full((2, 4), PADDING)).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0
