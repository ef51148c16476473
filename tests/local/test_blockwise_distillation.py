"""examples/blockwise_distillation.yaml as a user would run it: what is frozen keeps its bits, and the ranking is right."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from builders import Home, Job
from tests.blockwise_reference import ranking
from torch import Tensor

from relight_trainer.data.digits import digits
from relight_trainer.recalibrate import calibration_draws

pytestmark = pytest.mark.timeout(240)
EXAMPLES = Path(__file__).parents[2] / "examples"


def weights(checkpoint: Path) -> dict[str, Tensor]:
    from relight_trainer.inspect import read
    from relight_trainer.inspect.statistics import Bytes

    with Bytes() as data:
        return {
            name.removeprefix("model."): torch.from_numpy(data.whole(ref).copy())
            for name, ref in read(checkpoint).tensors()
            if name.startswith("model.")
        }


def test_the_teacher_keeps_its_bits_and_the_ranking_is_that_of_an_independent_computation(home: Home) -> None:
    home.path.mkdir(parents=True)
    shutil.copy(EXAMPLES / "blockwise_distillation.py", home.path)
    spec: dict[str, Any] = yaml.safe_load((EXAMPLES / "blockwise_distillation.yaml").read_text())["spec"]
    result = home.start(Job("blockwise", spec=spec)).wait(200)
    assert result.code == 0, result.said

    first, *_, final = home.checkpoints()
    before, after = weights(first), weights(final)
    assert first.name.startswith("step-000000176")  # block 0 is done; the teacher is since step 88
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in set(before) - still} == {"student"}
    assert {name for name in still if name.startswith("student.")} == {n for n in before if n.startswith("student.0.")}

    train, test = digits(0.2, 0)
    draws = calibration_draws(len(train.inputs), 0, samples=1024, batch=128)
    expected = ranking(after, [train.inputs[torch.from_numpy(d.indices)] for d in draws], test.inputs)
    rows = json.loads((final.parent / "paths.json").read_text())
    assert [row["path"] for row in rows] == [path for path, _ in expected]
    for row, (_, loss) in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(loss, rel=1e-5)
    assert result.final["progress"]["metrics"]["best_path"] == expected[0][0]
