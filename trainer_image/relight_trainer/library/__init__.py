"""Parts of Relight's training core for scripts and notebooks of your own.

    from relight_trainer.library import (
        Checkpoints, Ema, GlobalBatches, learning_rate, micro_batches, plain_batch_norm, recalibrate, sync_batch_norm,
    )

Each works in one process and, where a default process group exists, over all of its ranks. None needs a job, an
operator or a configuration file. docs/library.md has an example of each.
"""

from relight_trainer.library.averages import moving_average
from relight_trainer.library.batches import GlobalBatches
from relight_trainer.library.checkpoints import Checkpoints
from relight_trainer.library.learning_rates import learning_rate
from relight_trainer.library.micro_batches import MicroBatch, micro_batches
from relight_trainer.library.normalization import plain_batch_norm, sync_batch_norm
from relight_trainer.recalibrate import all_ranks, recalibrate

__all__ = [
    "Checkpoints",
    "GlobalBatches",
    "MicroBatch",
    "all_ranks",
    "learning_rate",
    "micro_batches",
    "moving_average",
    "plain_batch_norm",
    "recalibrate",
    "sync_batch_norm",
]
