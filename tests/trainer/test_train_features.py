"""What a training does beside the plain case: numbers that are not finite, unused parameters, devices, hooks."""

import itertools
from pathlib import Path
from typing import Any

import little
import pytest
import torch
import worlds
from test_train_equal import CPU, trained
from test_train_exact import job
from torch import nn

from relight_trainer.comm_hooks import UnfitCompression
from relight_trainer.context import WorkerContext
from relight_trainer.finite import FiniteWatch, NonFiniteLoss
from relight_trainer.modes import mode
from relight_trainer.objective import NoTarget, Objective, split
from relight_trainer.peers import form
from relight_trainer.placement import WrongDevice, check_model, explain

pytestmark = pytest.mark.timeout(120)

BASE: dict[str, Any] = {
    "model": {"type": "little:Perceptron", "double": False},
    "data": {"type": "little:samples", "count": 40, "double": False},
    "train": {"duration": "12st", "global_batch": 10, "device": "cpu"},
    "optimizer": {"type": "sgd", "lr": 0.1},
    "observe": {"time_split": False},
}


def with_(**sections: Any) -> dict[str, Any]:
    return {**BASE, **{k: {**BASE.get(k, {}), **v} if isinstance(v, dict) else v for k, v in sections.items()}}


def watched(context: WorkerContext, number: int, *, spoil: int = 0, **sections: Any) -> Any:
    """What the hook Watch has seen of a training, or the text of the error that ended it."""
    little.Watch.seen = []
    try:
        trained(context, with_(**sections, hooks=[{"type": "little:Watch", "spoil": spoil}]), number)
    except NonFiniteLoss as error:
        little.Watch.seen.append(str(error))
    return little.Watch.seen


def ends(context: WorkerContext, number: int) -> list[str]:
    """What the state of the hook Ends was whenever it was saved."""
    little.Ends.noted = []
    sections = with_(train={"duration": "6st"}, evaluate={"every": "4st"}, hooks=[{"type": "little:Ends"}])
    outcome = trained(context, sections, number)
    return [*little.Ends.noted, f"epochs {outcome.result['metrics']['epochs']}"]


def one_rank(context: WorkerContext) -> Any:
    form(CPU)
    return {
        "fp16": watched(context, 1, train={"precision": "fp16"}, spoil=6),
        "skip": watched(context, 2, train={"non_finite": "skip"}, spoil=6),
        "fail": watched(context, 3, spoil=6),
        "fp32": watched(context, 7),
        "bf16": watched(context, 4, train={"precision": "bf16"}),
        "own": watched(context, 5, model={"type": "little:OwnStep"}),
        "mapping": watched(context, 6, data={"type": "little:mappings", "count": 40}, loader={"workers": 0}),
        "saved": ends(context, 8),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    root = tmp_path_factory.mktemp("alone")
    [found] = worlds.run(one_rank, root=root, job=job(root, checkpoints=False), ranks=1)
    assert isinstance(found, dict), found
    return found


@pytest.mark.parametrize("name", ["fp16", "skip"])
def test_a_spoiled_gradient_moves_neither_weights_nor_schedule(alone: dict[str, list[Any]], name: str) -> None:
    steps = alone[name]
    assert [s["step"] for s in steps] == list(range(1, 13))
    skipped = [s["step"] for s in steps if s["skipped"]]
    assert 6 in skipped
    if name == "skip":
        assert skipped == [6]
    for before, at in itertools.pairwise(steps):
        assert (at["weights"] == before["weights"]) == at["skipped"]
        assert at["taken"] == before["taken"] + (not at["skipped"])
    taken_before = {s["step"]: s["taken"] for s in steps}
    by_count: dict[int, float] = {}
    for s in steps:  # the rate is a function of the updates taken before it
        count = taken_before[s["step"]] - (not s["skipped"])
        assert by_count.setdefault(count, s["lr"]) == s["lr"]


def test_the_loss_scale_is_halved_for_a_spoiled_gradient(alone: dict[str, list[Any]]) -> None:
    steps = alone["fp16"]
    for before, at in itertools.pairwise(steps):
        assert at["scale"] == before["scale"] * (0.5 if at["skipped"] else 1)


def test_otherwise_a_spoiled_gradient_ends_the_job_before_its_step_is_done(alone: dict[str, list[Any]]) -> None:
    *steps, error = alone["fail"]
    assert [s["step"] for s in steps] == [1, 2, 3, 4, 5]
    assert error == "the gradient is infinite in step 6"


@pytest.mark.parametrize(("name", "near"), [("own", 1e-6), ("bf16", 0.02), ("mapping", 0.1)])
def test_other_precisions_and_other_shapes_of_batch_learn_the_same(
    alone: dict[str, list[Any]], name: str, near: float
) -> None:
    losses = [s["loss"] for s in alone[name]]
    assert losses == pytest.approx([s["loss"] for s in alone["fp32"]], abs=near)  # `mapping` has noise on its samples
    assert len(set(losses)) == 12


def test_what_a_hook_does_at_a_steps_end_is_saved_with_that_step(alone: dict[str, list[Any]]) -> None:
    *noted, logged = alone["saved"]
    first = ["step1", "step2", "step3", "step4", "epoch"]
    whole = [*first, "evaluation", "step5", "step6"]
    ends = [whole[:n] for n in (0, 1, 2, 3, 5, 7, 8)] + [[*whole, "evaluation"]]
    assert {*noted} <= {"saved with " + " ".join(end) for end in ends}
    assert "saved with " + " ".join(first) in noted  # before an evaluation always
    assert logged == "epochs 1"


def two_ranks(context: WorkerContext) -> Any:
    form(CPU)
    found: dict[str, Any] = {}
    for number, (name, sections) in enumerate(
        {
            "plain": {},
            "idle": {"model": {"idle": True}},
            "view": {"ddp": {"gradient_as_bucket_view": True, "bucket_cap_mb": 0.001}},
            "fp16": {"ddp": {"compress": "fp16"}},
            "powersgd": {"ddp": {"compress": "powersgd", "powersgd_from": 2}},
            "static": {"ddp": {"static_graph": True}, "train": {"deterministic": False}},
        }.items(),
        1,
    ):
        trained(context, {**with_(**sections), "hooks": [{"type": "little:Capture", "name": name}]}, number)
        found[name] = {k: v.tolist() for k, v in little.WEIGHTS[name].items()}
        found[f"{name} said"] = little.SAID[name]
    with pytest.raises(UnfitCompression, match="bf16 needs GPUs and NCCL"):
        trained(context, with_(ddp={"compress": "bf16"}), 99)
    return found


def test_the_knobs_of_ddp(tmp_path: Path) -> None:
    found, other = worlds.run(two_ranks, root=tmp_path, job=job(tmp_path, checkpoints=False))
    assert isinstance(found, dict), found
    assert {k: v for k, v in found.items() if "said" not in k} == {k: v for k, v in other.items() if "said" not in k}
    plain = found["plain"]

    def gap(name: str) -> float:
        return max((torch.tensor(found[name][k]) - torch.tensor(plain[k])).abs().max().item() for k in plain)

    assert gap("idle") < 1e-6
    assert [text for text in found["idle said"] if "idle.weight, idle.bias" in text], found["idle said"]
    assert found["plain said"] == []
    assert gap("view") == gap("static") == 0.0
    assert 0 < gap("fp16") < 0.002
    assert 0 < gap("powersgd") < 0.5


def test_every_modules_mode_comes_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    for bits in range(32):
        modules = list(model.modules())
        flags = [bool(bits >> i & 1) for i in range(len(modules))]
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        with pytest.raises(KeyError), mode(model, training=bool(bits % 2)):  # noqa: PT012  # what is inside is the point
            assert {m.training for m in modules} == {bool(bits % 2)}
            raise KeyError
        assert [m.training for m in modules] == flags


def test_a_tensor_elsewhere_is_named() -> None:
    meta = torch.device("meta")
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    check_model(model, CPU)
    model[0].scale = torch.ones(2, device=meta)
    model[1].running_mean = torch.zeros(2, device=meta)
    with pytest.raises(
        WrongDevice, match=r"the buffer 1.running_mean is on meta; model.0.scale is on meta, a plain attr"
    ):
        check_model(model, CPU)
    good = nn.Linear(2, 2)
    batch = {"image": torch.ones(1, 2), "boxes": [torch.ones(1), torch.ones(1, device=meta)]}
    with pytest.raises(WrongDevice, match=r"training is on cpu, but batch\['boxes'\]\[1\] is on meta"):
        explain(RuntimeError("Expected all tensors to be on the same device"), good, batch, CPU)
    explain(RuntimeError("something else"), good, {"image": torch.ones(1, 2)}, CPU)


def test_a_real_error_of_devices_is_explained() -> None:
    model, batch = nn.Linear(2, 2), (torch.ones(1, 2, device="meta"), torch.ones(1))
    with pytest.raises((RuntimeError, NotImplementedError)) as caught:
        model(batch[0])
    with pytest.raises(WrongDevice, match=r"batch\[0\] is on meta"):
        explain(caught.value, model, batch, CPU)


def test_numbers_on_a_device_are_looked_at_later_with_the_right_step() -> None:
    watch = FiniteWatch(torch.device("cuda"))  # what is noted may lie anywhere
    watch.note("loss", torch.tensor(1.0), 3)
    watch.note_found("gradient", torch.tensor(0.0), 3)
    watch.settle()
    watch.note("loss", torch.tensor(2.0), 4)
    watch.note_found("gradient", torch.tensor(1.0), 4)
    with pytest.raises(NonFiniteLoss, match="the gradient is infinite in step 5"):
        watch.settle()
    with pytest.raises(NonFiniteLoss, match="the loss is nan in step 1"):
        FiniteWatch(CPU).note("loss", torch.tensor(float("nan")), 0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_loss_of_any_reduction_counts_samples(reduction: str) -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    objective = Objective(nn.CrossEntropyLoss(reduction=reduction))
    expected = nn.functional.cross_entropy(logits, labels, reduction="sum")
    assert torch.allclose(objective.loss(logits, (None, labels), 5), expected)


def test_a_batch_without_a_target_is_refused_in_words() -> None:
    assert split(({"a": 1}, 2, 3)) == (({"a": 1}, 2), {}, 3)
    assert split({"x": 1, "labels": 2}) == ((), {"x": 1}, 2)
    with pytest.raises(NoTarget, match="a batch is a dict; allowed: a tuple"):
        split({"x": 1})
