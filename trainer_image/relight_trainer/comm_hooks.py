"""Gradients sent in fewer bytes."""

from typing import assert_never

from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from relight_agent.exits import ExitCode
from relight_trainer.settings.ddp import Ddp


class UnfitCompression(Exception):
    """The process group cannot send gradients like that."""

    exit_code = ExitCode.BAD_CONFIG


def compress(replica: DistributedDataParallel, settings: Ddp) -> None:
    """Make `replica` send gradients as `settings` say.

    PowerSGD (Vogels et al. 2019, arXiv 1905.13727) keeps on each rank what it has not sent yet. That is in no
    checkpoint: a resumed run begins with none, so it trains on the same samples but not to the same bits.
    """
    match settings.compress:
        case "bf16":
            if next(replica.parameters()).device.type != "cuda":
                raise UnfitCompression("ddp.compress: bf16 needs GPUs and NCCL; allowed here: none, fp16, powersgd")
            replica.register_comm_hook(None, default_hooks.bf16_compress_hook)
        case "fp16":
            replica.register_comm_hook(None, default_hooks.fp16_compress_hook)
        case "powersgd":
            state = powerSGD_hook.PowerSGDState(
                process_group=None,
                matrix_approximation_rank=settings.powersgd_rank,
                start_powerSGD_iter=settings.powersgd_from + 2,  # the warm-up's two
            )
            replica.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        case "none":
            pass
        case unknown:
            assert_never(unknown)
