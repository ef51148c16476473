"""A moving average of a model's weights."""

from torch import nn

from relight_trainer.ema import Ema
from relight_trainer.settings.ema import EmaArguments


def moving_average(model: nn.Module, decay: float = 0.9999, *, warmup: bool = True) -> Ema:
    """The moving average of `model`'s parameters and floating-point buffers; other buffers are copied.

    Call `update()` after each optimizer step; `with average.swapped():` puts the average into the model. With
    `warmup`, update n decays by (1 + n) / (10 + n) while that is less than `decay`. `state_dict()` and
    `load_state_dict()` make it part of a checkpoint. Raises ValueError where `decay` is not in [0, 1).
    """
    return Ema(EmaArguments(decay=decay, warmup=warmup), model)
