"""Whether a configuration's recalibration fits the model, known before the training begins."""

from torch import nn

from relight_trainer.config import BadConfig, TrainerConfig
from relight_trainer.norm_layers import running_layers
from relight_trainer.patterns import require
from relight_trainer.problems import Problem


def check_recalibration(config: TrainerConfig, model: nn.Module) -> None:
    """Raises BadConfig where a pattern fits no layer, and where an evaluation is to recalibrate a model without layers."""
    names = list(running_layers(model))
    if config.evaluate.recalibrate is not None and config.supernet is None and not names:
        message = f"the model {config.model.type} has no batch norm layer with running statistics"
        raise BadConfig([Problem("config.evaluate.recalibrate", message, allowed="null")])
    supernet = config.supernet.recalibrate if config.supernet else None
    for settings, path in ((config.evaluate.recalibrate, "evaluate"), (supernet, "supernet")):
        if settings is not None and settings.layers is not None:
            require(names, settings.layers, f"config.{path}.recalibrate.layers")
