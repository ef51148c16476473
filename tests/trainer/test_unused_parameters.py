"""Parameters that take no part in a step, a micro-batch or on a rank: two ranks train what one process trains."""

from pathlib import Path
from typing import Any

import little
import pytest
import worlds
from branching import worst_gap
from test_train_equal import CPU, trained
from test_train_exact import job
from test_train_worlds import until

from relight_trainer.context import WorkerContext
from relight_trainer.peers import form

pytestmark = pytest.mark.timeout(120)

# Weight decay and momentum move a parameter whose gradient is zero, and leave one that has none.
SGD = {"type": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}
SPARSE = {
    "type": "sgd",
    "lr": 0.1,
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
}  # torch's decay wants dense gradients
EXACT = 1e-12


def branches(*uses: dict[str, list[int]], accumulate: int = 1, **sections: Any) -> dict[str, Any]:
    return config({"type": "branching:Branching", "branches": list(uses)}, accumulate=accumulate, **sections)


def config(model: dict[str, Any], *, accumulate: int = 1, **sections: Any) -> dict[str, Any]:
    train = {"duration": "6st", "global_batch": 8, "device": "cpu", "accumulate": accumulate, "virtual_ranks": 2}
    return {
        "model": model,
        "data": {"type": "little:samples", "count": 40},
        "train": {**train, **sections.pop("train", {})},
        "optimizer": SGD,
        "schedule": {"type": "constant"},
        "observe": {"time_split": False},
        **sections,
    }


CASES: dict[str, dict[str, Any]] = {
    "used in every step": branches({}),
    "dropped after the second step": branches({"steps": [0, 1]}),
    "used from the third step on": branches({"steps": [2, 3, 4, 5]}),
    "used in no step": branches({"steps": []}),
    "missing in the last micro-batch": branches({"micros": [0]}, accumulate=2),
    "used in the last micro-batch alone": branches({"micros": [1]}, accumulate=2),
    "used on one rank": branches({"ranks": [1]}),
    "used on the other rank": branches({"ranks": [0]}),
    "dropped on one rank after the second step": branches({"ranks": [0]}, {"steps": [0, 1], "ranks": [1]}),
    "another branch on each rank": branches({"ranks": [0]}, {"ranks": [1]}, {"steps": [3]}),
    "random paths that step 0 does not cover": branches({"steps": [0, 3]}, {"steps": [1, 2, 5]}, {"steps": [4]}),
    "by step, micro-batch and rank": branches(
        {"steps": [1, 4], "micros": [0]}, {"ranks": [0], "micros": [1]}, {"steps": [2]}, accumulate=2
    ),
    "gradients that are views of buckets": branches(
        {"steps": [0, 1]}, {"ranks": [1]}, {"micros": [0]}, accumulate=2, ddp={"gradient_as_bucket_view": True}
    ),
    "a static graph that is none": branches(
        {"steps": [0, 1]}, {"ranks": [1]}, ddp={"static_graph": True}, train={"deterministic": False}
    ),
    "small buckets": branches({"steps": [0, 1]}, {"ranks": [1]}, ddp={"bucket_cap_mb": 0.0001}),
    "found by torch": branches({"steps": [0, 1]}, {"ranks": [1]}, ddp={"find_unused_parameters": True}),
    "not to be found": branches({"steps": [0, 1]}, {"ranks": [1]}, ddp={"find_unused_parameters": False}),
    "frozen later": branches(
        {"steps": [0, 4]}, {"ranks": [1]}, freeze=[{"match": "branches.1*", "after": "2st", "until": "4st"}]
    ),
    "a loss scale": branches({"steps": [0, 1]}, {"ranks": [1]}, train={"precision": "fp16"}),
    "fewer samples than ranks": branches(
        {"steps": [0, 1]}, {"steps": [2, 3]}, train={"last_batch": "keep", "global_batch": 13, "duration": "8st"}
    ),
    "no sample on a rank": branches(
        {"steps": [0, 1, 3]}, {"steps": [2]}, train={"last_batch": "keep", "global_batch": 39, "duration": "6st"}
    ),
    "no sample on a rank, found by torch": branches(
        {"steps": [0, 1, 3]}, {"steps": [2]}, ddp={"find_unused_parameters": True},
        train={"last_batch": "keep", "global_batch": 39, "duration": "6st"},
    ),
    "a last micro-batch that uses nothing": config({"type": "branching:Hungry"}, accumulate=2),
    "a sparse embedding": config({"type": "branching:Table", "steps": [0, 1, 2, 3, 4, 5]}, optimizer=SPARSE),
    "a sparse embedding that is dropped": config({"type": "branching:Table", "steps": [0, 1, 4]}, optimizer=SPARSE),
    "a sparse embedding, no sample on a rank": config(
        {"type": "branching:Table", "steps": [0, 1, 4]}, optimizer=SPARSE,
        train={"last_batch": "keep", "global_batch": 39, "duration": "6st"},
    ),
}  # fmt: skip


def everything(context: WorkerContext) -> dict[str, Any]:
    form(CPU)
    found: dict[str, Any] = {}
    for number, (name, settings) in enumerate(CASES.items(), 1):
        trained(context, {**settings, "hooks": [{"type": "little:Capture", "name": name}]}, number)
        found[name] = {k: v.tolist() for k, v in little.WEIGHTS[name].items()}
        found[f"{name} said"] = little.SAID[name]
    return found


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The weights of each case: of one process, and of each of two ranks."""
    answers = []
    for ranks in (1, 2):
        root = tmp_path_factory.mktemp(f"ranks-{ranks}")
        answers.append(worlds.run(everything, root=root, job=job(root, checkpoints=False), ranks=ranks, timeout=110))
    [alone], both = answers
    assert all(isinstance(found, dict) for found in (alone, *both)), (alone, both)
    return alone, both


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_what_one_process_trains(ends: tuple[dict[str, Any], list[dict[str, Any]]], name: str) -> None:
    alone, both = ends
    assert both[0][name] == both[1][name]
    assert worst_gap(alone[name], both[0][name]) <= EXACT


def test_parameters_without_a_gradient_on_any_rank_are_named(ends: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    [found, _] = ends[1]
    [text] = found["dropped after the second step said"]
    assert text.startswith("no gradient for branches.0.weight, branches.0.bias in step 3, on any rank")
    assert found["used on one rank said"] == found["used in every step said"] == []


def test_a_layer_that_one_node_never_used_stays_when_there_are_two(tmp_path: Path) -> None:
    settings = branches({"steps": []}, {"steps": [0, 4]})
    settings["hooks"] = [{"type": "little:Capture", "name": "end"}, {"type": "little:Seen"}]
    ends = []
    for name, worlds_of_ranks in (("whole", [(1, 0)]), ("grown", [(1, 2), (2, 0)])):
        root = tmp_path / name
        root.mkdir()
        the_job = job(root, checkpoints=False)
        the_job.entry["config"] = settings
        for generation, (ranks, cut) in enumerate(worlds_of_ranks, 1):
            answers = worlds.run(until, cut, root=root, job=the_job, generation=generation, ranks=ranks)
            assert all(isinstance(answer, tuple) for answer in answers), answers
        ends += [weights for _, weights in answers]
    alone, *grown = ends
    assert [worst_gap(alone, end) <= EXACT for end in grown] == [True, True]
