"""The memory of a configured training: what `relight memory` says."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relight_trainer.config import TrainerConfig
from relight_trainer.data.splits import Draw, open_splits
from relight_trainer.freeze import Freezer
from relight_trainer.objective import Objective, OwnObjective, OwnStep
from relight_trainer.observe.memory import Footprint, Unpredictable, measure, rows
from relight_trainer.optim import build_optimizer
from relight_trainer.precision import autocast
from relight_trainer.registry import build
from relight_trainer.settings.loss import LOSSES
from relight_trainer.settings.model import MODELS
from relight_trainer.settings.position import Length
from relight_trainer.settings.spans import EpochSize
from relight_trainer.step_context import OutsideTraining

_CPU = torch.device("cpu")


def one_sample(config: TrainerConfig) -> Any:
    """A batch of the training set's first sample. Raises what opening the data set raises."""
    loader = config.loader.model_copy(update={"workers": 0})
    splits = open_splits(config.data, loader, config.train.seed, _CPU)
    batches = splits.train.batches(iter([Draw(0, np.zeros(1, np.int64))]))
    return next(batches)


def sample_like(form: Sequence[int]) -> Any:
    """A batch of one made-up sample and its label."""
    return torch.empty(1, *form, device="meta"), torch.empty(1, dtype=torch.int64, device="meta")


def footprint(config: TrainerConfig, sample: Any, samples: int) -> Footprint:
    """One worker's memory where it takes `samples` at a time. Raises Unpredictable, and what building raises."""
    forward = autocast(config.train.precision, _CPU)
    own = False

    def make_model() -> nn.Module:
        nonlocal own
        model: nn.Module = build(MODELS, config.model)
        own = hasattr(model, "training_step")
        return model

    def make_optimizer(model: nn.Module) -> Optimizer:
        Freezer(config.freeze, model, Length(1, EpochSize(1, samples, samples))).at(0)
        optimizer = build_optimizer(config.optimizer, model, config.train.global_batch)
        for group in optimizer.param_groups if config.train.device != "cpu" else ():
            if not group.get("fused") and group.get("foreach", True) is None:
                group["foreach"] = True  # torch's choice on a GPU: all parameters at once, intermediate results too
        return optimizer

    def loss_of(model: nn.Module, batch: Any) -> Tensor:
        objective = OwnObjective() if own else Objective(build(LOSSES, config.loss))
        with forward():
            output = objective.output(OwnStep(model) if own else model, batch, OutsideTraining(config, model))
        return objective.loss(output, batch, samples)

    return measure(make_model, make_optimizer, rows(sample, samples), loss_of, samples)


def account(config: TrainerConfig, workers: int, sample: Any) -> dict[str, Any]:
    """The memory of one of `workers`, as JSON. Bytes, but where the name says otherwise."""
    parts = workers * config.train.micro_batches(workers)
    found = footprint(config, sample, max(1, math.ceil(config.train.global_batch / parts)))
    copies = {
        "ema": found.parameters + found.buffers if config.ema else 0,
        "ddp": 0 if workers == 1 or config.ddp.gradient_as_bucket_view else found.gradients,
    }
    state = found.parameters + found.buffers + found.optimizer + copies["ema"]
    return {
        "workers": workers,
        "samples": found.samples,
        "precision": config.train.precision,
        "elements": found.elements,
        "optimizerType": config.optimizer.type,
        "bytes": {
            "parameters": found.parameters,
            "frozen": found.frozen,
            "gradients": found.gradients,
            "buffers": found.buffers,
            "optimizer": found.optimizer,
            **copies,
            "batch": found.batch,
            "activations": found.activations,
        },
        "peak": found.peak + sum(copies.values()),
        "snapshots": 2 * state,
        "layers": dict(sorted(found.by_module.items(), key=lambda item: -item[1])),
    }


def fitting(config: TrainerConfig, workers: int, sample: Any, limit: int) -> TrainerConfig | None:
    """`config` with the largest `micro_batch`, halved again and again, that stays below `limit`; None where none does."""
    samples = math.ceil(config.train.global_batch / workers)
    while samples > 1:
        samples = math.ceil(samples / 2)
        train = config.train.model_copy(update={"accumulate": "auto", "micro_batch": samples})
        smaller = config.model_copy(update={"train": train})
        try:
            if account(smaller, workers, sample)["peak"] <= limit:
                return smaller
        except Unpredictable:  # batch norm of one sample
            break
    return None
