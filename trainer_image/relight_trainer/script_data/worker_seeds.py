"""In a DataLoader's worker process: each batch is read with random numbers of its own, whichever process reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data._utils import fetch

from relight_trainer.script_data.generators import is_generator, reachable, reseed
from relight_trainer.seeds import seed_everything, stream


@dataclass(frozen=True)
class Seeded:
    """What a worker process is asked for: the indices of a batch, and the seed of what is drawn while it is read."""

    indices: Any
    seed: int


class WorkerStart:
    """A `worker_init_fn`: the user's own, then what reads `Seeded` batches. Pickled where processes are spawned."""

    def __init__(self, theirs: Callable[[int], Any] | None) -> None:
        self._theirs = theirs

    def __call__(self, worker: int) -> None:
        if self._theirs is not None:
            self._theirs(worker)
        _read_seeded()


def _read_seeded() -> None:
    """In this process, which reads batches and does nothing else."""
    kind: Any = fetch._MapDatasetFetcher  # noqa: SLF001  # the one place behind the queue and before the data set
    read = kind.fetch

    def read_seeded(self: Any, request: Any) -> Any:
        if not isinstance(request, Seeded):
            return read(self, request)
        generators = vars(self).get("relight_generators")
        if generators is None:
            found = [o for root in (self.dataset, self.collate_fn) for o in reachable(root) if is_generator(o)]
            generators = self.relight_generators = list({id(o): o for o in found}.values())
        seed_everything(request.seed)
        for i, generator in enumerate(generators):
            reseed(generator, stream(request.seed, "data set", i))
        return read(self, request.indices)

    kind.fetch = read_seeded
