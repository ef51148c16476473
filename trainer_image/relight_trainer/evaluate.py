"""Accuracy and loss over a test set, the same for any number of ranks: each takes its shard, and sums are summed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from relight_trainer.data.tensors import Samples
from relight_trainer.peers import Interrupted, Peers

_BATCH = 256


def shard_sums(model: nn.Module, shard: Samples, interrupted: Callable[[], bool]) -> Tensor:
    """(samples, right answers, sum of losses) over one rank's shard, float64 on the model's device.

    Raises Interrupted between two batches once `interrupted()`. The model is in training mode again afterwards.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=shard.labels.device)
    model.eval()
    try:
        with torch.no_grad():
            for inputs, labels in zip(*(torch.split(t, _BATCH) for t in shard), strict=True):
                if interrupted():
                    raise Interrupted
                if len(labels) == 0:  # split gives one empty batch of an empty shard
                    continue
                logits = model(inputs).double()
                sums[0] += len(labels)
                sums[1] += (logits.argmax(1) == labels).sum()
                sums[2] += cross_entropy(logits, labels, reduction="sum")
    finally:
        model.train()
    return sums


def evaluate(model: nn.Module, test: Samples, peers: Peers, interrupted: Callable[[], bool]) -> dict[str, str]:
    """Metrics over the whole test set, the same text on every rank. Called by all ranks."""
    shard = Samples(*(t[peers.rank :: peers.world] for t in test))
    sums = peers.sum(shard_sums(model, shard, interrupted), interrupted)
    return metrics(sums)


def metrics(sums: Tensor) -> dict[str, str]:
    count, right, loss = sums.tolist()  # counts are exact in float64 up to 2**53
    if count == 0:
        return {}
    return {"test_accuracy": f"{right / count:.4f}", "test_loss": f"{loss / count:.4f}"}
