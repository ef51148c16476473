"""Finds the objects whose `load_state_dict` copies the tensors and keeps no reference to them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_OWN_SAY = ("_load_from_state_dict", "set_extra_state", "load_state_dict")


def that_copy(objects: Mapping[str, Any]) -> frozenset[str]:
    """The names of those that may be given tensors in memory that changes afterwards: plain modules."""
    return frozenset(name for name, o in objects.items() if isinstance(o, nn.Module) and all(map(_copies, o.modules())))


def _copies(module: nn.Module) -> bool:
    """Whether a module's part of a state is copied into its parameters and buffers, by torch and by nobody else."""
    if torch.__future__.get_swap_module_params_on_conversion():
        return False
    if module._load_state_dict_pre_hooks or "load_state_dict" in vars(module):  # noqa: SLF001
        return False
    if any(not getattr(type(module), name).__module__.startswith("torch.nn.modules.") for name in _OWN_SAY):
        return False
    own = [*module._parameters.values(), *module._buffers.values()]  # noqa: SLF001
    return all(tensor is None or type(tensor) in (Tensor, nn.Parameter) for tensor in own)
