"""Parts of a model that do not move, as a pure function of the step."""

from bisect import bisect_right
from collections.abc import Sequence

from torch import Tensor, nn

from relight_trainer.config import BadConfig
from relight_trainer.globs import chosen
from relight_trainer.patterns import require
from relight_trainer.problems import Problem, shown
from relight_trainer.settings.freeze import Frozen
from relight_trainer.settings.position import Length

_PATH = "config.freeze"


class Freezer:
    """Makes `module` what the rules say of a step. Nothing is saved: any step's state can be had by naming it.

    A frozen parameter needs no gradient and has none, so that no optimizer moves it, whatever its weight decay or
    momentum; a module that owns buffers and is frozen whole is in eval mode, so that its statistics stay.
    Raises BadConfig for patterns that fit nothing, where nothing would be left to train, and for a model of which nothing
    trains without any rule.
    """

    def __init__(self, rules: Sequence[Frozen], module: nn.Module, length: Length) -> None:
        self._module = module
        self._learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self._learning:
            has = "parameters, and none of them requires a gradient" if [*module.parameters()] else "no parameters"
            raise BadConfig(
                [Problem("config.model", f"the model {type(module).__name__} has {has}: nothing would train")]
            )
        names = [*(name for name, _ in module.named_parameters()), *(name for name, _ in module.named_buffers())]
        self._rules: list[tuple[int, int | None, frozenset[str]]] = []
        for i, rule in enumerate(rules):
            require(names, rule.match, f"{_PATH}[{i}].match")
            require(names, rule.but, f"{_PATH}[{i}].but")
            begin = length.steps(rule.after) if rule.after else 0
            end = length.steps(rule.until) if rule.until else None
            if end is not None and end <= begin:
                message = f"it would end at step {end}, before it begins at step {begin}"
                raise BadConfig([Problem(f"{_PATH}[{i}].until", message, shown(str(rule.until)))])
            self._rules.append((begin, end, frozenset(chosen(names, rule.match)) - frozenset(chosen(names, rule.but))))
        self._changes = sorted({0, *(s for begin, end, _ in self._rules for s in (begin, end) if s is not None)})
        for step in self._changes:
            if step < length.total and self._learning.keys() <= self.frozen(step):
                message = f"nothing is left to train at step {step}"
                raise BadConfig([Problem(_PATH, message, allowed="rules that leave a parameter: see `but`")])
        self._still = {
            name: frozenset(f"{name}.{own}" if name else own for own in owned)
            for name, part in module.named_modules()
            if any(True for _ in part.buffers(recurse=False)) and (owned := _own_names(part))
        }
        self._modes = {name: module.get_submodule(name).training for name in self._still}
        self._now: frozenset[str] = frozenset()
        self._stretch = -1  # how many of the changes lie behind

    def frozen(self, step: int) -> frozenset[str]:
        """The names of the parameters and buffers that do not move in the optimizer step after `step` of them."""
        sets = [names for begin, end, names in self._rules if begin <= step and (end is None or step < end)]
        return frozenset().union(*sets)

    def at(self, step: int) -> bool:
        """Make the module what it is to be in the next step, after `step` of them.

        True where the parameters that learn are other ones than before: DDP must be built anew then.
        """
        stretch = bisect_right(self._changes, step)
        if stretch == self._stretch:
            return False
        self._stretch = stretch
        frozen = self.frozen(step)
        before, self._now = self._now, frozen
        for name, parameter in self._learning.items():
            if name in frozen:
                parameter.grad = None
            parameter.requires_grad_(name not in frozen)
        for name, owned in self._still.items():
            if owned <= frozen:
                self._module.get_submodule(name).training = False
            elif owned <= before:
                self._module.get_submodule(name).training = self._module.training and self._modes[name]
        return any((name in frozen) != (name in before) for name in self._learning)


def _own_names(part: nn.Module) -> list[str]:
    own: list[tuple[str, Tensor]] = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
    return [name for name, _ in own]
