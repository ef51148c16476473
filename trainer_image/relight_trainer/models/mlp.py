from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(*, inputs: int, hidden: Sequence[int], outputs: int, dropout: float) -> nn.Module:
    """Linear layers with ReLU and dropout between them: (n, ...) of `inputs` numbers each -> (n, outputs)."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([inputs, *hidden]):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear([inputs, *hidden][-1], outputs))
