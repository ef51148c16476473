"""Finds the parts of a loader: objects with `set_epoch`, and the generators of its order and of its data."""

from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from relight_trainer.script_data.generators import is_generator, reachable


@dataclass(frozen=True)
class Parts:
    """The parts of one loader."""

    epochs: tuple[Any, ...]  # objects with `set_epoch`, outermost first
    order: tuple[Any, ...]  # generators of samplers and of the loader: all ranks have them in the same state
    data: tuple[Any, ...]  # generators of the data set, its transforms and `collate_fn`

    @property
    def are_apart(self) -> bool:
        """Whether reading data leaves the order as it is."""
        return not {id(g) for g in self.order} & {id(g) for g in self.data}


def base_of(loader: Any) -> Any:
    """The DataLoader inside accelerate's adapter; other loaders are their own base."""
    base = getattr(loader, "__dict__", {}).get("base_dataloader")
    return loader if base is None else base


def parts_of(loader: Any) -> Parts:
    """Samplers are found however deep they stand inside each other; a data set's own parts are no samplers."""
    base = base_of(loader)
    if not isinstance(base, DataLoader):
        found = list(reachable(loader))
        return Parts(tuple(o for o in found if _takes_epochs(o)), tuple(o for o in found if is_generator(o)), ())
    dataset, running = getattr(base, "dataset", None), getattr(base, "_iterator", None)
    data_side = [dataset, getattr(base, "collate_fn", None), getattr(base, "worker_init_fn", None)]
    outside = {id(o) for o in (*data_side, running) if o is not None}
    order = list(reachable(loader, lambda o: id(o) not in outside and not isinstance(o, Dataset)))
    data = [o for root in data_side if root is not None for o in reachable(root)]
    takers = [o for o in order if _takes_epochs(o)] + ([dataset] if _takes_epochs(dataset) else [])
    return Parts(
        tuple(takers),
        tuple(o for o in order if is_generator(o)),
        tuple({id(o): o for o in data if is_generator(o)}.values()),
    )


def _takes_epochs(value: Any) -> bool:
    return callable(getattr(type(value), "set_epoch", None))
