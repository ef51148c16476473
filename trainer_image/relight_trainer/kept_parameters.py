"""Does the optimizer still hold the model's parameters? A model or hook may have put others in their places."""

from typing import ClassVar

from torch import nn
from torch.optim import Optimizer

from relight_agent.exits import ExitCode
from relight_trainer.buffers import Places

_SHOWN = 6


class ParametersReplaced(Exception):
    """Parameters of the model are not among those that the optimizer moves."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


class KeptParameters:
    """Those of `model`, which `optimizer` was built for."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._places = Places([model], parameters=True)
        self._version = self._places.version

    def check(self) -> None:
        """Raises ParametersReplaced. Costs less than a microsecond as long as no tensor of the model is replaced."""
        version = self._places.look(shapes=False)
        if version == self._version:
            return
        self._version = version
        moved = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        lost = [name for name, p in self._model.named_parameters() if p.requires_grad and id(p) not in moved]
        if lost:
            more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
            raise ParametersReplaced(
                f"the optimizer does not hold the model's parameters {', '.join(lost[:_SHOWN])}{more}: they were replaced or "
                "added after the training began, and would not train; allowed: create all parameters in the model's "
                "__init__, and copy new values into them (`with torch.no_grad(): p.copy_(values)`)"
            )
