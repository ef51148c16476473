"""Evaluations with batch norm statistics of their own, in a real training."""

from pathlib import Path
from typing import Any

import pytest
import worlds
from safetensors.torch import load_file
from test_train_exact import job, result, until

from relight_trainer import recalibrate as recalibration
from relight_trainer import train
from relight_trainer.context import WorkerContext
from relight_trainer.inspect import WrongInput, read
from relight_trainer.inspect.statistics import Bytes
from relight_trainer.recalibrate_checkpoint import recalibrate_checkpoint

pytestmark = pytest.mark.timeout(120)


def test_an_evaluation_with_statistics_of_its_own_sees_what_recalibrate_writes_and_changes_nothing(
    tmp_path: Path,
) -> None:
    results = {}
    for name, settings in (("plain", {}), ("own", {"recalibrate": {"samples": 96, "batch": 48}})):
        root = tmp_path / name
        root.mkdir()
        [*outcomes] = worlds.run(train.run, root=root, job=job(root, steps=6, evaluate=settings))
        results[name] = result(outcomes)
    assert results["own"]["weightsDigest"] == results["plain"]["weightsDigest"]
    source = str(tmp_path / "own" / "checkpoints")
    with pytest.raises(WrongInput, match="there is no folder"):  # before anything is computed
        recalibrate_checkpoint(source, tmp_path / "none" / "out.pt")
    far = ["hooks=[{type: 'not_here:Hook'}]"]
    said = recalibrate_checkpoint(source, tmp_path / "out.safetensors", sets=far, samples=96, batch=48)
    for name, metrics in (("before", results["plain"]["metrics"]), ("after", results["own"]["metrics"])):
        assert said[name] == {key: value for key, value in metrics.items() if key in said[name]}
    assert said["before"] != said["after"]


@pytest.mark.parametrize(
    ("rule", "named", "kept"),
    [
        ({"match": ["0", "1"], "after": "2st"}, [], {"1"}),
        ({"match": ["0", "1"], "until": "100%"}, [], {"1"}),  # to the end of the last step, and so in its evaluation
        ({"match": ["0", "1"], "until": "3st"}, [], set()),
        ({"match": ["0", "1"], "after": "2st"}, ["1"], {"4", "8"}),
    ],
)
def test_layers_that_the_configuration_freezes_keep_their_statistics(
    tmp_path: Path, rule: dict[str, Any], named: list[str], kept: set[str]
) -> None:
    recalibrate = {"samples": 96, "batch": 48, **({"layers": named} if named else {})}
    the_job = job(tmp_path, steps=6, freeze=[rule], evaluate={"recalibrate": recalibrate})
    metrics = result(worlds.run(train.run, root=tmp_path, job=the_job, ranks=1))["metrics"]
    out = tmp_path / "out.safetensors"
    said = recalibrate_checkpoint(str(tmp_path / "checkpoints"), out, samples=96, batch=48, layers=named)
    assert said["after"] == {key: value for key, value in metrics.items() if key in said["after"]}
    assert (said["layers"], said["kept"]) == (3 - len(kept), len(kept))
    [final] = tmp_path.glob("checkpoints/step-*.final")
    new = load_file(out)
    with Bytes() as data:
        old = {name: data.whole(ref).tobytes() for name, ref in read(final).tensors()}
    same = {
        n.rpartition(".")[0] for n, t in new.items() if "running_mean" in n and old[f"model.{n}"] == t.numpy().tobytes()
    }
    assert same == kept


def test_an_evaluation_that_is_done_again_after_a_resume_leaves_the_same_layers_alone(tmp_path: Path) -> None:
    settings = {
        "freeze": [{"match": ["0", "1"], "after": "4st"}],
        "evaluate": {"every": "4st", "recalibrate": {"samples": 96, "batch": 48}},
    }
    found = []
    for cut in (False, True):
        root = tmp_path / str(cut)
        root.mkdir()
        if cut:
            worlds.run(until, 0, 4, root=root, job=job(root, steps=6, **settings), ranks=1)
        the_job = job(root, steps=6, **settings)
        [outcome] = worlds.run(seen, root=root, job=the_job, ranks=1, generation=2)
        found.append(outcome)
    assert found[0][-1] == found[1][-1]
    assert found[0][0] == found[1][0] == 2  # of the three layers, in the evaluation between steps


def seen(context: WorkerContext) -> Any:
    """How many layers the first evaluation recalibrated, and how the training ended."""
    counts: list[int] = []
    choose = recalibration.layers_to_recalibrate

    def note(*args: Any) -> Any:
        found = choose(*args)
        counts.append(len(found))
        return found

    recalibration.layers_to_recalibrate = note
    outcome = train.run(context)
    return counts[0], outcome.result
