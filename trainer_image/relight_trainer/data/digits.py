"""Scikit-learn's handwritten digits, read from the file that it carries.

No network, and no import of scikit-learn, which would cost each new member a second.
"""

import numpy as np

from relight_trainer.data.carried import carried_table
from relight_trainer.data.tensors import TrainTest, divided_by_class


def digits(test_fraction: float, split_seed: int) -> TrainTest:
    """1797 images (1, 8, 8) in 0..1 of 10 classes; of each class, `test_fraction` chosen by `split_seed` is for tests."""
    table = carried_table("digits", "scikit-learn", "sklearn/datasets/data/digits.csv.gz")
    images = table[:, :-1].reshape(-1, 1, 8, 8) / np.float32(16)
    return divided_by_class(images, table[:, -1].astype(np.int64), test_fraction, split_seed)
