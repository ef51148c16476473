"""Scikit-learn's handwritten digits, read from the file that it carries.

No network, and no import of scikit-learn, which would cost each new member a second.
"""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch

from relight_agent.exits import ExitCode
from relight_trainer.data.tensors import Samples, Splits
from relight_trainer.sampler import permutation
from relight_trainer.seeds import stream


class NoDigits(Exception):
    """Scikit-learn, or its file of digits, is not installed."""

    exit_code = ExitCode.BAD_DATA


def digits(test_fraction: float, split_seed: int) -> Splits:
    """1797 images (1, 8, 8) in 0..1 of 10 classes; of each class, `test_fraction` chosen by `split_seed` is for tests."""
    with gzip.open(_file(), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    labels = table[:, -1].astype(np.int64)
    images = table[:, :-1].reshape(-1, 1, 8, 8) / np.float32(16)

    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        of_class = np.flatnonzero(labels == label)
        shuffled = of_class[permutation(len(of_class), stream(split_seed, "split", label))]
        test[shuffled[: round(test_fraction * len(of_class))]] = True

    everything = Samples(torch.from_numpy(images), torch.from_numpy(labels))
    return Splits(everything.take(np.flatnonzero(~test)), everything.take(np.flatnonzero(test)))


def _file() -> Path:
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return path
    raise NoDigits("the data set digits comes with scikit-learn, which is not installed: pip install scikit-learn")
