"""The launcher where every way to a CUDA device is noted in $TOUCHED, and refused; with $BAD_FORK, as if it had been touched."""

import os
import runpy
import sys
import traceback
from pathlib import Path

import torch


def refused(*_):
    with Path(os.environ["TOUCHED"]).open("a") as file:
        traceback.print_stack(file=file)
    raise RuntimeError("a device was touched")


# On a machine without CUDA, go as far as torch would with it.
torch.cuda._is_compiled = lambda: True
torch._C._cuda_getDeviceCount = refused
torch._C._cuda_init = refused
torch.cuda._lazy_init = refused
if os.environ.get("BAD_FORK"):
    torch.cuda._is_in_bad_fork = lambda: True

sys.argv = sys.argv[:1]
runpy.run_module("relight_trainer.launcher", run_name="__main__", alter_sys=True)
