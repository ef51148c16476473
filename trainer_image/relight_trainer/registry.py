"""What a configuration may name: models, data sets, losses, hooks, known without importing any of them.

type: digits_cnn            one of ours: a class of arguments and an `Entry` in its section's table
type: "my.nets:Deep"        whatever Python can import, called with the other fields as arguments
type: "my.nets:deep"        the same, for what the module has named with `@register("deep")`
type: "plugin:deep"         an entry point of the group `relight.plugins`, of whatever distribution is installed
"""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, NamedTuple, TypeVar

from pydantic import BeforeValidator, ConfigDict

from relight_agent.exits import ExitCode
from relight_trainer.problems import Problem, shown
from relight_trainer.strict import StrictModel, nearest, one_of

PLUGINS = "relight.plugins"
NOT_IMPORTED = "cannot be imported"
ANYTHING = "package.module:callable"
CUSTOM = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_][\w-]*(\.[A-Za-z_]\w*)*$"
_registered: dict[str, Callable[..., Any]] = {}

Thing = TypeVar("Thing", bound=Callable[..., Any])


class Arguments(StrictModel):
    """`type` names the registered thing; the other fields are its arguments."""

    type: str

    def keywords(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields if name != "type"}


class Custom(Arguments):
    """Somebody's own: its arguments are checked where it can be imported."""

    model_config = ConfigDict(extra="allow")

    def keywords(self) -> dict[str, Any]:
        return {**super().keywords(), **(self.model_extra or {})}


class Entry(NamedTuple):
    target: str  # module:function, imported only where it is built
    arguments: type[Arguments]


Table = Mapping[str, Entry]


class Unregistered(Exception):
    """What a configuration names cannot be had; `problem` says why, its path relative to the name's section."""

    exit_code = ExitCode.BAD_CONFIG

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def register(name: str) -> Callable[[Thing], Thing]:
    """A decorator: call what it decorates `module:name` in configurations. Raises ValueError for a name in use."""

    def decorate(thing: Thing) -> Thing:
        key = f"{thing.__module__}:{name}"
        if _registered.get(key, thing) is not thing:
            raise ValueError(f"{key} is registered twice")
        _registered[key] = thing
        return thing

    return decorate


def arguments(table: Table) -> dict[str, type[Arguments]]:
    """The class of arguments of each name in `table`."""
    return {name: entry.arguments for name, entry in table.items()}


def named(table: Table, custom: type[Custom] = Custom) -> BeforeValidator:
    """The validator of a field that names something: one of `table`, or somebody's own as a `custom`."""
    classes = arguments(table)

    def validate(value: Any) -> Any:
        if isinstance(value, custom):
            return value
        name = value.get("type") if isinstance(value, Mapping) else None
        if isinstance(name, str) and name not in classes and re.fullmatch(CUSTOM, name):
            return custom.model_validate(value)
        return one_of(classes, value, also=ANYTHING)

    return BeforeValidator(validate)


def build(table: Table, chosen: Arguments) -> Any:
    """Import what `chosen.type` names and call it with the arguments. Raises Unregistered."""
    return resolve(table, chosen.type)(**chosen.keywords())


def check(table: Table, chosen: Arguments) -> Iterator[Problem]:
    """What is wrong with the name and the arguments, their paths relative to the section. Imports the target."""
    try:
        target = resolve(table, chosen.type)
        signature = inspect.signature(target)
    except Unregistered as error:
        yield error.problem
        return
    except ValueError:  # some of C's have no signature
        return
    given, known = chosen.keywords(), signature.parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in known.values())
    names = [name for name, p in known.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in sorted(given.keys() - set(names)) if not anything else ():
        yield Problem(name, "unknown field", shown(name), ", ".join(names) or "no arguments", nearest(name, names))
    for name in names:
        if known[name].default is inspect.Parameter.empty and name not in given:
            yield Problem(name, "missing", allowed=f"an argument of {chosen.type}")


def check_call(name: str, *positional: Any, **keywords: Any) -> Iterator[Problem]:
    """What is wrong with calling what `name` stands for like this, paths relative to the section. Imports it."""
    try:
        inspect.signature(resolve({}, name)).bind(*positional, **keywords)
    except Unregistered as error:
        yield error.problem
    except TypeError as error:
        yield Problem("type", f"does not take the other fields: {error}", shown(name))
    except ValueError:  # some of C's have no signature
        return


def resolve(table: Table, name: str) -> Callable[..., Any]:
    """What `name` stands for. Raises Unregistered."""
    target = table[name].target if name in table else name
    module_name, _, attribute = target.partition(":")
    if module_name == "plugin":
        return _plugin(attribute)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise Unregistered(Problem("type", f"{module_name} {NOT_IMPORTED} ({reason})", shown(name))) from error
    if target in _registered:
        return _registered[target]
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [n for n in vars(found) if not n.startswith("_") and callable(getattr(found, n))]
            names += [key.partition(":")[2] for key in _registered if key.startswith(f"{module_name}:")]
            near = nearest(part, names)
            raise Unregistered(
                Problem("type", f"{module_name} has no {part}", shown(name), nearest=near and f"{module_name}:{near}")
            )
        found = getattr(found, part)
    if not callable(found):
        raise Unregistered(Problem("type", "not callable", shown(name), "a function or a class"))
    thing: Callable[..., Any] = found
    return thing


def _plugin(name: str) -> Callable[..., Any]:
    known = {point.name: point for point in entry_points(group=PLUGINS)}
    if name not in known:
        allowed = ", ".join(f"plugin:{n}" for n in sorted(known)) or f"none is installed (group {PLUGINS})"
        near = nearest(name, known)
        raise Unregistered(
            Problem("type", "no such plug-in", shown(f"plugin:{name}"), allowed, near and f"plugin:{near}")
        )
    loaded: Callable[..., Any] = known[name].load()
    return loaded
