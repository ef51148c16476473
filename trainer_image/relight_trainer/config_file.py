"""A configuration from files and the command line: `extends:` and `--set`. Imports no torch.

    extends: base.yaml            a file, relative to this one; what stands here goes over what stands there
    train: {duration: 90ep}

Mappings are merged key by key, anything else is replaced; so is a mapping whose `type` is another one, for its other
fields are arguments of that.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relight_trainer.config import BadConfig, TrainerConfig, parse
from relight_trainer.problems import MAX_PATH, Problem, join, shown
from relight_trainer.strict import nearest
from relight_trainer.yaml_loader import MAX_BYTES, YamlError, load_documents

EXTENDS = "extends"
_PLACE = ("spec", "trainer", "config")  # of a configuration in a TrainingJob


def load(path: str | Path, sets: Sequence[str] = ()) -> TrainerConfig:
    """The configuration in a file of its own or in a TrainingJob, with `sets` (`a.b=c`) put into it. Raises BadConfig."""
    value = _parsed(sys.stdin.buffer.read(MAX_BYTES + 1), "stdin") if str(path) == "-" else _read(Path(path))
    return _load(value, Path.cwd() if str(path) == "-" else Path(path).parent, str(path), sets)


def load_text(data: bytes, sets: Sequence[str] = ()) -> TrainerConfig:
    """As `load`, of the text of a file that would lie in the working folder. Raises BadConfig."""
    return _load(_parsed(data, "stdin"), Path.cwd(), "stdin", sets)


def _load(value: Any, folder: Path, name: str, sets: Sequence[str]) -> TrainerConfig:
    place = _PLACE if isinstance(value, Mapping) and value.get("kind") == "TrainingJob" else ()
    for key in place:
        value = value.get(key) if isinstance(value, Mapping) else None
        if value is None:
            raise BadConfig([Problem(".".join(place), f"missing in {name}", allowed="a job with a trainer.config")])
    return parse(resolved(value, folder, sets), ".".join(place) or "config")


def is_bare(path: str | Path) -> bool:
    """Whether there is a trainer's configuration in the file, and no object of Kubernetes."""
    if not Path(path).is_file():
        return False
    try:
        return _is_bare(_read(Path(path)))
    except BadConfig:
        return False


def is_bare_text(data: bytes) -> bool:
    """The same of a file's text."""
    try:
        return _is_bare(_parsed(data, ""))
    except BadConfig:
        return False


def _is_bare(value: Any) -> bool:
    known = TrainerConfig.json_names() | {EXTENDS}
    return isinstance(value, Mapping) and not {"kind", "apiVersion"} & set(value) and bool(known & set(value))


def resolved(value: Any, folder: Path, sets: Sequence[str] = (), path: str = "config") -> Any:
    """`value` with what it extends, files being relative to `folder`, and with `sets` put into it. Raises BadConfig."""
    return with_sets(_extended(value, folder, path, ()), sets, path)


def with_sets(value: Any, sets: Sequence[str], path: str = "config") -> Any:
    """`value` with each of `sets`, such as `train.duration=5ep`, put into it. Raises BadConfig."""
    for text in sets:
        keys, equals, written = text.partition("=")
        if not equals or not all(keys.split(".")):
            raise BadConfig([Problem(path, "not a setting", shown(f"--set {text}"), "--set section.field=value")])
        try:
            documents = load_documents(written.encode())
        except YamlError as error:
            raise BadConfig([Problem(join(path, keys.split(".")), f"in --set: {error}", shown(written))]) from None
        value = _put(_begun(value, keys), keys.split("."), documents[0].value if documents else None, path)
    return value


def merged(base: Any, over: Any) -> Any:
    """`over` laid over `base`.

    >>> merged({"a": {"x": 1, "y": 2}, "b": [1]}, {"a": {"y": 3}, "b": []})
    {'a': {'x': 1, 'y': 3}, 'b': []}
    >>> merged({"o": {"type": "sgd", "momentum": 0.9}}, {"o": {"type": "adamw"}})
    {'o': {'type': 'adamw'}}
    """
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    if "type" in over and over["type"] != base.get("type", over["type"]):
        return over
    return {**base, **{key: merged(base[key], value) if key in base else value for key, value in over.items()}}


def _extended(value: Any, folder: Path, path: str, below: tuple[Path, ...]) -> Any:
    if not isinstance(value, Mapping) or EXTENDS not in value:
        return value
    name = value[EXTENDS]
    where = join(path, (EXTENDS,))
    if not isinstance(name, str) or not name:
        raise BadConfig([Problem(where, "wrong type", shown(name), "the name of a file, relative to this one")])
    file = (folder / name).resolve()
    if file in below:
        cycle = " -> ".join(p.name for p in (*below[below.index(file) :], file))
        raise BadConfig([Problem(where, f"goes in a circle: {cycle}", shown(name))])
    if not file.is_file():
        near = nearest(file.name, [p.name for p in file.parent.glob("*.y*ml")]) if file.parent.is_dir() else None
        raise BadConfig(
            [Problem(where, "no such file", shown(str(file), MAX_PATH), "a file, relative to this one", near)]
        )
    base = _extended(_read(file), file.parent, path, (*below, file))
    if not isinstance(base, Mapping):
        raise BadConfig([Problem(where, f"{file.name} has no mapping in it", shown(name))])
    return merged(base, {key: part for key, part in value.items() if key != EXTENDS})


def _read(file: Path) -> Any:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadConfig([Problem(str(file), f"cannot be read: {error.strerror or error}")]) from None
    return _parsed(data, str(file))


def _parsed(data: bytes, name: str) -> Any:
    try:
        documents = load_documents(data)
    except YamlError as error:
        raise BadConfig([Problem(name, str(error.problem))]) from None
    if len(documents) != 1:
        raise BadConfig([Problem(name, "not one document", f"{len(documents)} documents", "exactly one")])
    return documents[0].value


def _begun(value: Any, keys: str) -> Any:
    """`value` with the `type` that a section has by default, where `keys` lead into one that `value` leaves out."""
    section, _, field = keys.partition(".")
    known = TrainerConfig.model_fields.get(section)
    kind = getattr(known.default, "type", None) if known else None
    if not field or kind is None or not isinstance(value, Mapping) or value.get(section) is not None:
        return value
    return {**value, section: {"type": kind}}


def _put(value: Any, keys: Sequence[str], written: Any, path: str) -> Any:
    if not keys:
        return written
    key, *rest = keys
    if isinstance(value, list):
        if not key.isdigit() or int(key) >= len(value):
            raise BadConfig([Problem(path, "no such item", shown(key), f"0 to {len(value) - 1}")])
        return [*value[: int(key)], _put(value[int(key)], rest, written, f"{path}[{key}]"), *value[int(key) + 1 :]]
    if value is not None and not isinstance(value, Mapping):
        raise BadConfig([Problem(path, f"has no field {key}", shown(value), "a mapping")])
    value = value or {}
    return {**value, key: _put(value.get(key), rest, written, join(path, (key,)))}
