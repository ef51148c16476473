"""A label or a loss that does not fit is refused with its sample; a loss of several numbers weighs as its samples do."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import worlds
from test_train_exact import job
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from relight_agent.exits import ExitCode
from relight_trainer import train
from relight_trainer.context import WorkerContext
from relight_trainer.data.labels import KnownLabels
from relight_trainer.data.tensors import Samples
from relight_trainer.evaluate import sums_of
from relight_trainer.failures import classify
from relight_trainer.losses import BinaryCrossEntropy, CrossEntropy, LossMisfit, Mse
from relight_trainer.objective import Objective
from relight_trainer.peers import form
from relight_trainer.targets import Allowed, Targets, WrongLabel

pytestmark = pytest.mark.timeout(120)
CPU = torch.device("cpu")
LOGITS = torch.zeros(4, 3)


def known(labels: Any, name: str = "data.train") -> KnownLabels:
    return KnownLabels(torch.as_tensor(labels), lambda index: f"{name}[{index}]")


BAD_LABELS: list[tuple[Any, dict[str, Any], str]] = [
    ([0, 1, 2, -1], {}, r"\[3\]: the label is -1; allowed: whole numbers from 0 to 2, because the model has 3 outputs\. To leave such samples out of the loss, set loss\.ignore_index: -1"),
    ([0, 1, -100, 1], {}, r"\[2\]: the label is -100; .* loss\.ignore_index: -100"),
    ([1, 2, 3, 1], {}, r"\[2\]: the label is 3; .*The labels count from 1: subtract 1 from each"),
    ([0, 1, 2, 5], {}, r"\[3\]: the label is 5; .*Give the model 6 outputs, or number the classes from 0 without gaps"),
    ([0, 1, -1, -2], {"ignore_index": -1}, r"\[3\]: the label is -2; .*or -1, which loss\.ignore_index leaves out\. Number the classes from 0"),
    ([0.0, 0.5, 1.0, 1.0], {}, r"\[1\]: the label is 0\.5; .*To predict numbers instead of classes, set loss: \{type: mse\}"),
    ([0.0, float("nan"), 1.0, 1.0], {}, r"\[1\]: the label is nan; "),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "arguments", "message"), BAD_LABELS)
def test_labels_in_memory_are_all_compared_with_the_models_outputs_at_the_first_batch(
    labels: Any, arguments: dict[str, Any], message: str
) -> None:
    first = torch.zeros(4, dtype=torch.as_tensor(labels).dtype)  # a batch without the wrong one
    with pytest.raises(WrongLabel, match=r"^data\.train" + message) as raised:
        Targets(CrossEntropy(**arguments), [known(labels), known([0], "data.test")]).compared(LOGITS, first)
    assert classify(raised.value) is ExitCode.BAD_DATA
    with pytest.raises(WrongLabel, match=r"^data\.test" + message):
        Targets(CrossEntropy(**arguments), [known([0]), known(labels, "data.test")]).compared(LOGITS, first)


@pytest.mark.parametrize(("labels", "arguments", "message"), [row for row in BAD_LABELS if isinstance(row[0][1], int)])
def test_streamed_labels_are_refused_by_their_row(labels: Any, arguments: dict[str, Any], message: str) -> None:
    for label in range(3):  # the first batches are right
        targets = Targets(CrossEntropy(**arguments))
        targets.compared(LOGITS, torch.full((4,), label))
        with pytest.raises(
            WrongLabel, match="sample " + message.split(r"\]", maxsplit=1)[0][2:] + " of a batch: the label is"
        ):
            targets.compared(LOGITS, torch.tensor(labels))


def test_torchs_own_cross_entropy_and_a_function_name_the_label_too() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    for criterion in (nn.CrossEntropyLoss(), nn.NLLLoss(), cross_entropy):
        with pytest.raises(WrongLabel, match=r"sample 3 of a batch: .*\b3\b"):
            Targets(criterion).compared(LOGITS, labels)
    with pytest.raises(WrongLabel, match=r"data\.train\[3\]: the label is 3"):
        Targets(nn.CrossEntropyLoss(), [known(labels)]).compared(LOGITS, labels)


def test_an_ignored_label_counts_nothing_only_where_that_is_asked_for() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3), torch.tensor([0, -100, 2, 1])
    found = Targets(CrossEntropy(ignore_index=-100), [known(labels)]).compared(logits, labels)
    assert torch.equal(found, cross_entropy(logits, labels, reduction="sum"))
    with pytest.raises(WrongLabel, match=r"-100"):
        Targets(CrossEntropy()).compared(logits, labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float32, torch.float64])
def test_whole_labels_of_every_type_are_classes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    found = Targets(CrossEntropy(), [known(labels.to(dtype))]).compared(logits, labels.to(dtype))
    assert torch.equal(found, cross_entropy(logits, labels, reduction="sum"))


def test_shares_of_classes_are_no_labels() -> None:
    shares = torch.rand(4, 3).softmax(1)
    found = Targets(CrossEntropy(), [known(shares)]).compared(LOGITS, shares)
    assert torch.equal(found, cross_entropy(LOGITS, shares, reduction="sum"))


@pytest.mark.parametrize("criterion", [BinaryCrossEntropy(), nn.BCEWithLogitsLoss()])
@pytest.mark.parametrize("memory", [True, False])
def test_targets_of_yes_and_no_lie_between_0_and_1(criterion: Any, memory: bool) -> None:
    targets = torch.tensor([[0.0], [1.0], [2.0], [1.0]])
    with pytest.raises(
        WrongLabel, match=r"(data\.train\[2\]|sample 2 of a batch): the target is 2; allowed: numbers from 0 to 1"
    ):
        Targets(criterion, [known(targets) if memory else None]).compared(torch.zeros(4, 1), targets)
    Targets(criterion).compared(torch.zeros(4, 1), targets.clamp(max=1))


@pytest.mark.parametrize(
    ("criterion", "output", "target", "message"),
    [
        (CrossEntropy(), (4, 3), torch.zeros(4, 2, dtype=torch.int64), r"\(4, 3\) and the targets are \(4, 2\) of int64; allowed: targets \(4,\), a class for each place"),
        (CrossEntropy(), (4, 3), torch.zeros(5, dtype=torch.int64), r"targets are \(5,\) of int64"),
        (CrossEntropy(), (4, 3), torch.zeros(4), r"targets are \(4,\) of float32; allowed: whole numbers"),
        (Mse(), (4, 3), torch.zeros(4), r"the model gives \(4, 3\) and the targets are \(4,\)"),
        (nn.MSELoss(), (4, 1), torch.zeros(4), r"\(4, 1\) and the targets are \(4,\) of float32; allowed: the same shape for both"),
        (nn.L1Loss(), (4,), torch.zeros(4, 1), r"allowed: the same shape for both"),
    ],
)  # fmt: skip
def test_an_output_that_does_not_fit_the_target_is_refused(
    criterion: Any, output: Any, target: Tensor, message: str
) -> None:
    with pytest.raises(LossMisfit, match=message) as raised:
        Targets(criterion).compared(torch.zeros(output), target)
    assert classify(raised.value) is ExitCode.BAD_CONFIG


def test_one_output_for_each_target_is_that_targets() -> None:
    output, target = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0])
    assert Mse()(output, target).item() == 5.0
    assert torch.equal(BinaryCrossEntropy()(output, target / 4), BinaryCrossEntropy()(output[:, 0], target / 4))


def test_one_output_tells_no_classes_apart() -> None:
    model = nn.Linear(2, 1)
    sums = sums_of(model, Objective(BinaryCrossEntropy()), cast("Any", None))
    assert set(sums((torch.ones(4, 2), torch.tensor([0, 1, 1, 0])), 4)) == {"loss"}


class FakeGpu(Tensor):
    """A tensor that says it is on a GPU, as the guard asks."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]


def test_on_a_gpu_a_streamed_label_makes_the_loss_nan_and_is_named_when_it_is_looked_at() -> None:
    for criterion, wrong in ((CrossEntropy(), 3), (CrossEntropy(ignore_index=-100), -1), (CrossEntropy(), -100)):
        targets = Targets(criterion)
        right = torch.tensor([0, 1, 2, criterion.ignore_index or 1])
        targets._begun = True
        targets._watched = Allowed(0, 2, criterion.ignore_index, 3, can_ignore=True)
        loss = targets.compared(LOGITS, right.as_subclass(FakeGpu))
        assert torch.equal(loss.as_subclass(Tensor), criterion(LOGITS, right))
        targets.require_right()
        assert targets.compared(LOGITS, torch.tensor([0, 1, 2, wrong]).as_subclass(FakeGpu)).isnan()
        targets.compared(LOGITS, right.as_subclass(FakeGpu))
        with pytest.raises(WrongLabel, match=f"the label is {wrong}; allowed: whole numbers from 0 to 2"):
            targets.require_right()


# Losses of several numbers, and what each means over the whole global batch.


class Several(nn.Module):
    """The numbers of a binary cross entropy over (n, 3) in one of the shapes that a loss may have."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form
        if form == "sum":
            self.reduction = "sum"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        numbers = binary_cross_entropy_with_logits(output, target, reduction="none")
        match self._form:
            case "mean":
                return numbers.mean()
            case "sum":
                return numbers.mean(1).sum()
            case "one":
                return numbers.mean().reshape(1)
            case "samples":
                return numbers.mean(1)
            case "numbers":
                return numbers
            case "flat":
                return numbers.reshape(-1)
            case "across":
                return numbers.T
        raise AssertionError(self._form)


FORMS = ("mean", "sum", "one", "samples", "numbers", "flat", "across")
COUNT, RATE, STEPS = 23, 0.5, 4


class Plain(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3, dtype=torch.float64)


def data() -> tuple[Samples, None]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(COUNT, 4, generator=generator, dtype=torch.float64)
    return Samples(inputs, torch.rand(COUNT, 3, generator=generator, dtype=torch.float64)), None


CASES = list(itertools.product(FORMS, (1, 3)))


def everything(context: WorkerContext) -> dict[str, list[float]]:
    import little
    from test_train_equal import trained

    form(CPU)
    found = {}
    for number, (kind, accumulate) in enumerate(CASES, 1):
        name = f"{kind}-{accumulate}"
        config = {
            "model": {"type": f"{__name__}:Plain"},
            "data": {"type": f"{__name__}:data"},
            "loss": {"type": f"{__name__}:Several", "form": kind},
            "train": {"duration": f"{STEPS}st", "global_batch": 10, "last_batch": "keep", "device": "cpu", "accumulate": accumulate},
            "optimizer": {"type": "sgd", "lr": RATE, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
            "schedule": {"type": "constant"},
            "observe": {"time_split": False},
            "hooks": [{"type": "little:Capture", "name": name}],
        }  # fmt: skip
        trained(context, config, number)
        found[name] = torch.cat([t.flatten() for _, t in sorted(little.WEIGHTS[name].items())]).tolist()
    return found


def by_hand() -> list[float]:
    """The weights of a training that takes each global batch whole: the mean over all its numbers."""
    from relight_trainer.sampler import Sampler
    from relight_trainer.seeds import seed_torch, stream

    seed_torch(stream(0, "init"))
    model, (samples, _) = Plain(), data()
    sampler = Sampler(COUNT, 10, 0, keep_tail=True)
    for step in range(STEPS):
        rows = torch.from_numpy(sampler.batch_of(step))
        model.zero_grad()
        binary_cross_entropy_with_logits(model(samples.inputs[rows]), samples.labels[rows]).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(RATE * parameter.grad)
    return torch.cat([t.flatten() for _, t in sorted(model.state_dict().items())]).tolist()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_loss_of_any_shape_has_the_gradient_of_the_mean_over_the_global_batch(tmp_path: Path, ranks: int) -> None:
    expected = by_hand()
    for found in worlds.run(everything, root=tmp_path, job=job(tmp_path), ranks=ranks):
        assert set(found) == {f"{kind}-{accumulate}" for kind, accumulate in CASES}, found
        for name, weights in found.items():
            assert weights == pytest.approx(expected, abs=1e-12, rel=0), name


def test_a_loss_whose_numbers_belong_to_no_sample_is_refused() -> None:
    objective = Objective(lambda output, _: output.flatten()[:7])
    with pytest.raises(LossMisfit, match=r"loss: \(7,\), 7 numbers for 4 samples; allowed: one number") as raised:
        objective.term(LOGITS, (None, torch.zeros(4)), 4)
    assert classify(raised.value) is ExitCode.BAD_CONFIG


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_training_with_a_wrong_label_ends_for_good_before_its_first_step(
    tmp_path: Path, streamed: bool, ranks: int
) -> None:
    labels = np.arange(20) % 3
    labels[7] = 3
    np.savez(tmp_path / "d.npz", inputs=np.ones((20, 4), np.float32), labels=labels)
    source: dict[str, Any] = {"type": "arrays", "train": str(tmp_path / "d.npz"), "test": str(tmp_path / "d.npz")}
    if streamed:
        source = {"type": f"{__name__}:Streamed.open"}
    config = {
        "model": {"type": "mlp", "inputs": 4, "hidden": [4], "outputs": 3},
        "data": source,
        "loader": {"workers": 0},
        "train": {"duration": "2ep", "global_batch": 20, "device": "cpu"},
    }
    the_job = replace(job(tmp_path), entry={"kind": "config", "config": config})
    answers = worlds.run(train.run, root=tmp_path, job=the_job, ranks=ranks)
    # A label in memory is known to all ranks; a streamed one to the rank that it comes to.
    told = [answer for answer in answers if "WrongLabel: data.train[7]" in answer]
    assert len(told) == (1 if streamed else ranks), answers
    folder = tmp_path / "checkpoints"
    assert not folder.exists() or not any(folder.glob("step-*"))


class Streamed(torch.utils.data.Dataset[Any]):
    """A data set whose labels are seen as they come."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.ones(4), 3 if index == 7 else index % 3

    @staticmethod
    def open() -> tuple["Streamed", None]:
        return Streamed(), None


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])), nn.NLLLoss(ignore_index=1)]
)
def test_a_mean_over_something_else_than_samples_is_refused_where_a_step_has_parts(criterion: Any) -> None:
    labels = torch.tensor([0, 1, 2, 0])
    with pytest.raises(LossMisfit, match=r"loss: (CrossEntropyLoss|NLLLoss) gives a mean over .*denominator") as raised:
        Targets(criterion, [known(labels)], divided=True).compared(LOGITS, labels)
    assert classify(raised.value) is ExitCode.BAD_CONFIG
    Targets(criterion, [known(labels)]).compared(LOGITS, labels)  # in one part it is the mean over the global batch
    for right in (nn.CrossEntropyLoss(), type(criterion)(reduction="sum", weight=criterion.weight)):
        Targets(right, [known(labels)], divided=True).compared(LOGITS, labels)
