"""States that are asked for again and again: whether they are what they were is known without building them anew.

`state_dict()` of a small model and its optimizer takes longer than to copy their tensors. What it gives hardly ever
changes, though: names and tensors stay, a learning rate moves. A live state compares the containers in which torch keeps
all this with what was in them, by identity first, so that tensors that are the same objects cost nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from relight_trainer.buffers import Places

Place = tuple[int, str]  # parameter group, key


class Live(ABC):
    """An object whose `state_dict()` gives the same again until it says something else."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def same(self) -> bool:
        """Whether `state_dict()` would give what it gave last, numbers in tensors apart."""

    def numbers(self) -> Iterator[tuple[Place, Any]]:
        """The numbers outside tensors that may change at any step, with their places."""
        yield from ()

    def gapped(self, state: dict[str, Any], gap: Any) -> dict[str, Any]:  # noqa: ARG002  # for who has such numbers
        """`state` with `gap` in their places, which are in the same order there."""
        return state

    def changed(self) -> dict[Place, Any] | None:
        """Those that are others than before, where that is all that has changed; they count as seen."""
        return None


def live(stateful: Any) -> Live | None:
    """`stateful` as a live state, where its `state_dict()` is torch's own."""
    if isinstance(stateful, nn.Module) and type(stateful).state_dict is nn.Module.state_dict:
        return _LiveModule(stateful)
    if isinstance(stateful, Optimizer) and type(stateful).state_dict is Optimizer.state_dict:
        return _LiveOptimizer(stateful)
    return None


class _LiveModule(Live):
    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._places = Places([module], parameters=True)
        self._version = -1
        self._containers: list[Any] = []
        self._seen: list[Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        self._version = self._places.look(shapes=False)
        modules = list(self._module.modules())
        self._containers = [held for m in modules for held in (m._non_persistent_buffers_set, *_hooks(m))]  # noqa: SLF001
        self._seen = [held.copy() for held in self._containers] if all(map(_is_plain, modules)) else None
        # The tensors themselves, not views made for this call: those of the next step are the same objects.
        state: dict[str, Any] = self._module.state_dict(keep_vars=True)
        return state

    def same(self) -> bool:
        return self._places.look(shapes=False) == self._version and _equal(self._containers, self._seen)


_OWN_SAY = ("state_dict", "_save_to_state_dict", "get_extra_state")


def _hooks(module: nn.Module) -> tuple[Any, Any]:
    return module._state_dict_hooks, module._state_dict_pre_hooks  # noqa: SLF001


def _is_plain(module: nn.Module) -> bool:
    """Whether a module's part of the state is its parameters and buffers, and nothing else has a say in it."""
    own = "state_dict" in vars(module) or any(
        getattr(type(module), name) is not getattr(nn.Module, name) for name in _OWN_SAY
    )
    return not own and not any(_hooks(module))


class _LiveOptimizer(Live):
    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._seen: list[Any] | None = None
        self._groups: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        optimizer = self._optimizer
        before, after = self._hooks()
        state = optimizer.state_dict()
        self._seen, self._groups = None, []
        if not (before or after or "state_dict" in vars(optimizer)) and self._is_plain():
            parameters = [[*group["params"]] for group in optimizer.param_groups]
            self._seen = [{p: {**own} for p, own in optimizer.state.items()}, before.copy(), after.copy(), parameters]
            self._groups = [{**group} for group in optimizer.param_groups]
        return state

    def same(self) -> bool:
        return self._same_parameters() and all(
            group.keys() == seen.keys() and all(map(is_, group.values(), seen.values()))
            for group, seen in zip(self._optimizer.param_groups, self._groups, strict=True)
        )

    def numbers(self) -> Iterator[tuple[Place, Any]]:
        for i, group in enumerate(self._groups):
            for key, value in group.items():
                if _is_number(key, value):
                    yield (i, key), value

    def gapped(self, state: dict[str, Any], gap: Any) -> dict[str, Any]:
        if self._seen is None:
            return state
        groups = [{k: gap if _is_number(k, v) else v for k, v in g.items()} for g in state["param_groups"]]
        return {**state, "param_groups": groups}

    def changed(self) -> dict[Place, Any] | None:
        if not self._same_parameters():
            return None
        found: dict[Place, Any] = {}
        for i, (group, seen) in enumerate(zip(self._optimizer.param_groups, self._groups, strict=True)):
            if [*group] != [*seen]:
                return None
            for key, value in group.items():
                if value is not seen[key] and key != "params":
                    if isinstance(seen[key], Tensor) or isinstance(value, Tensor) or not _cannot_change(value):
                        return None
                    found[i, key] = seen[key] = value
        return found

    def _same_parameters(self) -> bool:
        """Whether parameters, their states and their groups are what they were, but for the groups' settings."""
        optimizer = self._optimizer
        parameters = [group["params"] for group in optimizer.param_groups]
        return _equal([optimizer.state, *self._hooks(), parameters], self._seen)

    def _is_plain(self) -> bool:
        optimizer = self._optimizer
        return all(
            isinstance(parameter, Tensor) and type(own) is dict and all(map(_cannot_change, own.values()))
            for parameter, own in optimizer.state.items()
        ) and all(k == "params" or _cannot_change(v) for group in optimizer.param_groups for k, v in group.items())

    def _hooks(self) -> tuple[Any, Any]:
        optimizer = self._optimizer
        return optimizer._optimizer_state_dict_pre_hooks, optimizer._optimizer_state_dict_post_hooks  # noqa: SLF001


def _is_number(key: str, value: Any) -> bool:
    """Whether an entry of a parameter group is neither a tensor nor its parameters."""
    return key != "params" and not isinstance(value, Tensor)


def _cannot_change(value: Any) -> bool:
    """Whether it is another value only where it is another object."""
    if type(value) is tuple:
        return all(map(_cannot_change, value))
    return value is None or isinstance(value, (int, float, str, Tensor))


def _equal(some: Any, others: Any) -> bool:
    try:
        return bool(some == others)
    except (RuntimeError, ValueError):  # tensors that are not the same objects
        return False
