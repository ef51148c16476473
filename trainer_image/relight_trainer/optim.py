from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from relight_trainer.schedule import Rates
from relight_trainer.settings.optimizer import AdamW, Sgd


def build_optimizer(config: Sgd | AdamW, parameters: Iterable[nn.Parameter]) -> Optimizer:
    if isinstance(config, Sgd):
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def set_rates(optimizer: Optimizer, rates: Rates) -> None:
    """Set learning rate and momentum of the next step in all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rates.lr
        if "betas" in group:
            group["betas"] = (rates.momentum, group["betas"][1])
        else:
            group["momentum"] = rates.momentum
