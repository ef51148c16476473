"""Data files that people bring, through `relight run`: the right training, or refused for good before the first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Home, Job, Result

pytestmark = pytest.mark.timeout(120)

Homes = Callable[[str], Home]


@pytest.fixture
def homes(tmp_path: Path) -> Any:
    made: list[Home] = []

    def home(name: str) -> Home:
        made.append(Home(tmp_path / name))
        made[-1].path.mkdir(parents=True)
        return made[-1]

    yield home
    for one in made:
        left = one.leftovers()
        one.power_cut()
        assert not left, f"left behind: {left}"


def trained(home: Home, **data: Any) -> Result:
    config = {
        "model": {"type": "mlp", "inputs": data.pop("inputs_of_model"), "outputs": 3, "hidden": [4]},
        "data": data,
        "train": {"duration": "2ep", "global_batch": 4},
    }
    return home.run(Job(nodes=1, trainer={"config": config}))


NUMBERS = [f"{170 + i % 2}.0,{1 + i % 2}.0,{0 if i < 5 else 2}" for i in range(10)]


def test_a_label_behind_a_quoted_name_with_a_comma_is_the_column_of_that_name(homes: Homes) -> None:
    quoted, plain = homes("quoted"), homes("plain")
    (quoted.path / "t.csv").write_text("\n".join(['"height, cm",weight,label', *NUMBERS]) + "\n")
    (plain.path / "t.csv").write_text("\n".join(NUMBERS) + "\n")
    by_name = trained(quoted, type="csv", train="t.csv", header=True, label="weight", inputs_of_model=2)
    by_number = trained(plain, type="csv", train="t.csv", label=1, inputs_of_model=2)
    assert (by_name.code, by_number.code) == (0, 0), by_name.said
    assert by_name.digest == by_number.digest


def test_arrays_of_the_other_byte_order_train_the_same_weights(homes: Homes) -> None:
    digests = []
    for order in "<>":
        home = homes("little" if order == "<" else "big")
        inputs = np.random.default_rng(0).random((40, 4)).astype(f"{order}f4")
        np.savez(home.path / "d.npz", inputs=inputs, labels=(np.arange(40) % 2).astype(f"{order}i8"))
        result = trained(home, type="arrays", train="d.npz", inputs_of_model=4)
        assert result.code == 0, result.said
        digests.append(result.digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, 1, 2, -1], "the label is -1; allowed: whole numbers from 0 to 2"),
        ([1, 2, 3, 1], "The labels count from 1: subtract 1 from each"),
    ],
)
def test_a_label_that_the_model_cannot_learn_ends_the_job_at_once(home: Home, labels: list[float], text: str) -> None:
    home.path.mkdir(parents=True)
    np.savez(home.path / "d.npz", inputs=np.ones((40, 4), np.float32), labels=np.array(labels * 10))
    result = trained(home, type="arrays", train="d.npz", inputs_of_model=4)
    assert result.code == 65, result.said
    assert result.restarts["failures"] == 1
    assert result.final["world"]["generation"] == 1
    assert text in result.said
    assert "Traceback" not in result.said
