"""The launcher on a machine whose CUDA breaks forks: each initialisation before a worker is noted in $TOUCHED and refused.

With $BAD_FORK, workers find that it has happened all the same.
"""

import os
import runpy
import traceback
from pathlib import Path

import torch


def asked(*_):
    """What asks the CUDA runtime for its devices, unless told to ask NVML, which needs no initialisation."""
    if os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK") == "1":
        return 0
    return initialised()


def initialised(*_):
    if "LOCAL_RANK" in os.environ:  # a worker may
        return 0
    with Path(os.environ["TOUCHED"]).open("a") as file:
        traceback.print_stack(file=file)
    raise RuntimeError("a device was touched")


torch.cuda.is_available = lambda: bool(asked())
torch.cuda.device_count = asked
torch.cuda._lazy_init = initialised
if torch.cuda._is_compiled():  # elsewhere these names would make torch believe that it is
    torch._C._cuda_getDeviceCount = asked
    torch._C._cuda_init = initialised
if os.environ.get("BAD_FORK"):
    torch.cuda._is_in_bad_fork = lambda: True

runpy.run_module("relight_trainer.launcher", run_name="__main__", alter_sys=True)
