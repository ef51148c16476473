"""Metrics over a test set, the same for any number of ranks: each takes its shard, and sums are summed."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relight_trainer.data.draws import shard
from relight_trainer.data.splits import Split
from relight_trainer.losses import LossMisfit
from relight_trainer.modes import mode
from relight_trainer.objective import Objective, kind_of, split
from relight_trainer.peers import Interrupted, Peers
from relight_trainer.targets import WrongLabel

if TYPE_CHECKING:
    from relight_trainer.step_context import StepContext

_BATCH = 256
_TOKENS = "(tokens)"  # among the sums: what the loss is divided by, where that is not the samples

Sums = Callable[[Any, int], Mapping[str, Tensor]]  # from a batch and its size to sums over its samples


def sums_of(
    model: nn.Module, objective: Objective, run: "StepContext", tokens: Callable[[Any], Tensor] | None = None
) -> Sums:
    """What is summed in an evaluation of `model`: its loss, and right answers where it tells classes apart.

    The loss is a mean over samples, or over what `tokens` counts in a target. A model with
    `validation_step(batch, run)` names its own metrics there, each a mean over the batch's samples.
    """
    own = getattr(model, "validation_step", None)
    if own is not None:
        return lambda batch, size: {name: value * size for name, value in _metrics(own(batch, run)).items()}

    def sums(batch: Any, size: int) -> Mapping[str, Tensor]:
        output = objective.output(model, batch, run)
        if isinstance(output, Tensor):
            output = output.double()
        found = {"loss": objective.loss(output, batch, size)}
        if tokens is not None:
            found[_TOKENS] = tokens(split(batch)[2])
        several = isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] > 1
        if several and _are_classes(labels := split(batch)[2], size):
            found["accuracy"] = (output.argmax(1) == labels).sum()
        return found

    return sums


def _metrics(found: Any) -> Mapping[str, Tensor]:
    """What a model's validation_step has returned. Raises LossMisfit where it is something else."""
    if not isinstance(found, Mapping):
        raise LossMisfit(f"validation_step returns {kind_of(found)}; allowed: a mapping from names to tensors")
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else kind_of(value)
            raise LossMisfit(f"validation_step returns {what} as {name}; allowed: a tensor of one number")
    return {name: value.reshape(()) for name, value in found.items()}


def _are_classes(labels: Any, size: int) -> bool:
    return isinstance(labels, Tensor) and labels.shape == (size,) and not labels.is_floating_point()


def shard_sums(
    model: nn.Module, sums: Sums, test: Split, *, rank: int, world: int, interrupted: Callable[[], bool]
) -> tuple[list[str], Tensor]:
    """The names of the metrics and (samples, sum of each), float64, over one rank's shard of `test`.

    Every rank knows the names, also one without a sample: it looks at one that does not count. Raises Interrupted
    between two batches once `interrupted()`. Every module's mode is as before afterwards.
    """
    draws = list(shard(test.size, rank, world, _BATCH))
    stand_in = not draws
    names: list[str] = []
    total: Tensor | None = None
    with mode(model, training=False), torch.inference_mode():
        for draw, batch in zip(draws or shard(1, 0, 1, 1), test.batches(draws or shard(1, 0, 1, 1)), strict=True):
            if interrupted():
                raise Interrupted
            size = len(draw.indices)
            try:
                found = sums(batch, size)
            except WrongLabel as error:
                error.name(f"data.test[{draw.indices[error.row]}]")
                raise
            names = list(found)
            values = torch.stack([v.double() for v in found.values()])
            values = torch.cat([values.new_tensor([size]), values])
            total = values if total is None else total + values
    assert total is not None
    return names, torch.zeros_like(total) if stand_in else total.clone()


def evaluate(
    model: nn.Module, sums: Sums, test: Split, peers: Peers, interrupted: Callable[[], bool]
) -> dict[str, str]:
    """Means over the whole test set, the same text on every rank; nothing where it is empty. Called by all ranks."""
    if not test.size:
        return {}
    names, total = shard_sums(model, sums, test, rank=peers.rank, world=peers.world, interrupted=interrupted)
    count, *rest = peers.sum(total, interrupted).tolist()  # counts are exact in float64 up to 2**53
    found = dict(zip(names, rest, strict=True))
    over = {"loss": max(1, found.pop(_TOKENS))} if _TOKENS in found else {}
    return {f"test_{name}": f"{value / over.get(name, count):.4f}" for name, value in sorted(found.items())}
