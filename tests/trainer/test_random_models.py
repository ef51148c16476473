"""Random graphs: two ranks train what one process trains, to 1e-12 in float64, or end for a cause that they name.

60 graphs; RELIGHT_RANDOM_MODELS=500 asks for 500, and RELIGHT_RANDOM_MODELS_FROM for other ones.
"""

import os
from typing import Any

import little
import pytest
import worlds
from branching import worst_gap
from random_models import config
from test_train_equal import CPU, trained
from test_train_exact import job

from relight_agent.exits import ExitCode
from relight_trainer.context import WorkerContext
from relight_trainer.peers import form

COUNT = int(os.environ.get("RELIGHT_RANDOM_MODELS", "60"))
FIRST = int(os.environ.get("RELIGHT_RANDOM_MODELS_FROM", "0"))
EXACT = 1e-12
FINAL = {ExitCode.BAD_CONFIG, ExitCode.BAD_DATA, ExitCode.RANKS_DIFFER}

pytestmark = pytest.mark.timeout(60 + 12 * COUNT)


def everything(context: WorkerContext) -> list[Any]:
    """The weights at the end of each graph's training, or the final error that it ended with."""
    form(CPU)
    ends: list[Any] = []
    for seed in range(FIRST, FIRST + COUNT):
        try:
            trained(context, {**config(seed), "hooks": [{"type": "little:Capture", "name": "end"}]}, seed + 1)
        except Exception as error:
            if getattr(error, "exit_code", None) not in FINAL:
                raise RuntimeError(f"graph {seed}") from error
            ends.append(str(error))
        else:
            ends.append({k: v.tolist() for k, v in little.WEIGHTS["end"].items()})
    return ends


def test_two_ranks_train_random_graphs_as_one_process_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    answers = []
    for ranks in (1, 2):
        root = tmp_path_factory.mktemp(f"ranks-{ranks}")
        answers.append(
            worlds.run(everything, root=root, job=job(root, checkpoints=False), ranks=ranks, timeout=30 + 6 * COUNT)
        )
    [alone], both = answers
    assert all(isinstance(found, list) for found in (alone, *both)), [str(a)[:300] for a in (alone, *both)]
    wrong, refused = {}, {}
    for seed, (one, first, second) in enumerate(zip(alone, *both, strict=True), FIRST):
        if isinstance(first, str) or isinstance(second, str):
            refused[seed] = first, second
        elif first != second or worst_gap(one, first) > EXACT:
            wrong[seed] = worst_gap(one, first), worst_gap(first, second)
    print(f"{COUNT} graphs: {len(wrong)} wrong, {len(refused)} refused: {refused}")
    assert wrong == {}
    assert len(refused) < COUNT / 20, refused
