"""docs/own-scripts.md: its first example runs, and the calls that it names exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from relight_trainer import client

PAGE = (Path(__file__).parents[2] / "docs" / "own-scripts.md").read_text()
EXAMPLE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]


@pytest.mark.timeout(60)
def test_the_first_example_trains_outside_a_job() -> None:
    model = torch.nn.Linear(2, 1)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10),
        "loader": DataLoader(TensorDataset(torch.ones(4, 2)), 2),
    }
    exec(EXAMPLE, names)
    assert names["run"].step == 40
    assert not torch.equal(model.weight, before)


def test_the_calls_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`run\.(\w+)", PAGE))
    run = client.start()
    assert {"finish", "alive", "finished"} <= named
    assert [name for name in sorted(named) if not hasattr(run, name)] == []
