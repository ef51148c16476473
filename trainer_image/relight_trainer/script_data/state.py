"""A loader's or sampler's own state, as it was after the last batch that was trained on."""

import copy
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

State = dict[str, Any]


class HeldState:
    """Stands for a loader, sampler or data set among the objects of the job's state.

    Batches are drawn before they are trained on, so that the state of the moment is ahead of the training. Until
    a loop `claim`s it, the state is the source's own; a DataLoader's is not asked for then, for that would begin an epoch.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self.is_claimed = False
        self._held: State = {"begun": False}

    def state_dict(self) -> State:
        if not self.is_claimed and not isinstance(self.source, DataLoader):
            return self.taken()
        return self._held

    def compared_state(self) -> Any:
        """What must be equal on all ranks: see `equality.reading`."""
        return self.source.compared_state() if hasattr(self.source, "compared_state") else self.state_dict()

    def load_state_dict(self, state: State) -> None:
        self._held = state
        self.load()

    def load(self) -> None:
        """Put the source to where the state that is held says; nothing where there is none."""
        if self._held["begun"]:
            self.source.load_state_dict(copy.deepcopy(self._held["state"]))

    def claim(self) -> None:
        """A loop begins to draw from the source: from here on its state is what `hold` was given last."""
        if not self.is_claimed and not self._held["begun"]:
            self._held = self.state_dict()
        self.is_claimed = True

    def taken(self) -> State:
        """The source's state of now, which nothing changes any more."""
        return {"begun": True, "state": copy.deepcopy(self.source.state_dict())}

    def hold(self, state: State) -> None:
        """`state`, which `taken` gave, is the one behind the last batch that was trained on."""
        self._held = state


class DividedState(HeldState):
    """Of a source that each rank has for itself, and that can be divided anew among another number of ranks."""

    def redistribute(self, states: list[State]) -> State:
        begun = [state["state"] for state in states if state["begun"]]
        return {"begun": True, "state": self.source.redistribute(begun)} if begun else {"begun": False}


def held_state(source: Any) -> HeldState:
    return (DividedState if hasattr(source, "redistribute") else HeldState)(source)


def is_source(value: Any) -> bool:
    """Whether an object that was given as state may be a loader, a sampler or a data set."""
    return hasattr(value, "__iter__") and hasattr(value, "load_state_dict") and not isinstance(value, nn.Module)
