"""YAML as kubectl reads it (sigs.k8s.io/yaml), so that a file means the same here and in a cluster.

YAML 1.1's booleans (`yes`, `on`, `y` ...) and its octal and hexadecimal integers; `1e-3` is a number; timestamps and
`10:30` stay text; keys become text; merge keys work. What JSON cannot hold is refused, and so is what somebody would only
write by mistake or to do harm: duplicate keys, bare keys that YAML reads as booleans (`n`, `on`), not-a-number, foreign
tags, anchors that multiply, endless depth.
"""

import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from relight_trainer.problems import Problem, join, shown

MAX_BYTES = 1 << 20  # more than etcd takes
MAX_DEPTH = 64
MAX_VALUES = 100_000  # counted with every alias expanded

_TAG = "tag:yaml.org,2002:"
_PLAIN = "plain"
_BOOLEANS = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
}
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INTEGER = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[bB]([01]+)|0[oO]?([0-7]+)|(0|[1-9][0-9]*))")
_LOOSE_UNDERSCORE = re.compile(r"(?<![0-9])_|_(?![0-9])")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Document:
    """A JSON value, and the line (from 1) of each key and item in it by its path."""

    value: Any
    lines: dict[str, int] = field(default_factory=dict)


class YamlError(Exception):
    """The text is not a document that can be read; `problem` says why and where."""

    def __init__(
        self,
        message: str,
        *,
        path: str = "",
        line: int | None = None,
        found: str | None = None,
        allowed: str | None = None,
    ) -> None:
        self.problem = Problem(path, message, found=found, allowed=allowed, line=line)
        super().__init__(str(self.problem))


def load_documents(data: bytes) -> list[Document]:
    """The documents in `data`, UTF-8, empty ones left out. Raises YamlError and nothing else."""
    if len(data) > MAX_BYTES:
        raise YamlError("too large", found=f"{len(data)} bytes", allowed=f"at most {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError("not UTF-8 text", line=data.count(b"\n", 0, error.start) + 1) from None
    try:
        nodes = _nodes(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = ", ".join(filter(None, (error.context, error.problem)))
        raise YamlError(f"not YAML: {words}", line=mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(
            "not YAML: a character that no text holds", line=line, found=f"U+{ord(text[error.position]):04X}"
        ) from None
    except (ValueError, OverflowError):  # PyYAML itself, of "\\U00110000"
        words = 'not YAML: an escape such as "\\U00110000" that names no character'
        raise YamlError(words, allowed='at most "\\U0010FFFF"') from None
    documents = (_Values().document(node) for node in nodes)
    return [d for d in documents if d.value is not None]


class _Composer(yaml.SafeLoader):
    """Builds nodes only. Plain scalars keep a tag of their own: what they are is for `_plain` to say."""

    depth = 0

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> Any:  # noqa: ARG002  # the signature is PyYAML's
        if kind is ScalarNode:
            return _PLAIN if implicit[0] else f"{_TAG}str"
        return f"{_TAG}map" if kind is MappingNode else f"{_TAG}seq"

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=self.get_mark())
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _nodes(text: str) -> list[Node]:
    loader = _Composer(text)
    nodes = []
    try:
        while loader.check_node():
            nodes.append(loader.get_node())
    finally:
        loader.dispose()
    return [n for n in nodes if n is not None]


class _Values:
    """One document's values out of its nodes."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.count = 0
        self.open: set[int] = set()

    def document(self, node: Node) -> Document:
        return Document(self.value(node, ""), self.lines)

    def value(self, node: Node, path: str) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise _error("too many values", node, allowed=f"at most {MAX_VALUES}, aliases expanded")
        if isinstance(node, ScalarNode):
            return _scalar(node, path)
        if id(node) in self.open:
            raise _error("an anchor that contains itself", node, path)
        self.open.add(id(node))
        try:
            return self.sequence(node, path) if isinstance(node, SequenceNode) else self.mapping(node, path)
        finally:
            self.open.remove(id(node))

    def sequence(self, node: SequenceNode, path: str) -> list[Any]:
        if node.tag != f"{_TAG}seq":
            raise _error("an unknown tag", node, path, found=node.tag)
        return [self.item(n, join(path, (i,)), n) for i, n in enumerate(node.value)]

    def mapping(self, node: Node, path: str) -> dict[str, Any]:
        if node.tag != f"{_TAG}map":
            raise _error("an unknown tag", node, path, found=node.tag)
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _PLAIN and key_node.value == "<<":
                merged = {**self.merge(value_node, path), **merged}
                continue
            key = _key(key_node, path)
            below = join(path, (key,))
            if key in own:
                raise _error("a key given twice", key_node, below)
            own[key] = self.item(value_node, below, key_node)
        return {**merged, **own}

    def merge(self, node: Node, path: str) -> dict[str, Any]:
        value = self.value(node, path)
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(p, dict) for p in parts):
            raise _error("a merge of something that is no mapping", node, path)
        return {k: v for part in reversed(parts) for k, v in part.items()}

    def item(self, node: Node, path: str, at: Node) -> Any:
        value = self.value(node, path)
        self.lines[path] = at.start_mark.line + 1
        return value


def _key(node: Node, path: str) -> str:
    value = _scalar(node, path) if isinstance(node, ScalarNode) else None
    if value is None:
        raise _error("a key that is not text", node, path)
    if isinstance(value, bool) and node.tag == _PLAIN and node.value.lower() != shown(value):
        # A person means the letter: kubectl would take it for the field "false", and say only that it is unknown.
        message = f"YAML reads this key as {shown(value)}"
        raise _error(message, node, path, found=node.value, allowed=f'"{node.value}", in quotes')
    return value if isinstance(value, str) else shown(value)


def _scalar(node: ScalarNode, path: str) -> Any:
    text: str = node.value
    if node.tag == f"{_TAG}str":
        return _text(text, node, path)
    value = _text(_plain(text, node, path), node, path)
    if node.tag == _PLAIN or _named(value) == node.tag.removeprefix(_TAG):
        return value
    raise _error("a value that does not fit its tag", node, path, found=node.tag)


def _plain(text: str, node: Node, path: str) -> Any:
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _NON_FINITE.fullmatch(text):
        raise _error("not a finite number", node, path, found=text)
    if text[0] not in "+-.0123456789" or (text[0] == "." and _LOOSE_UNDERSCORE.search(text)):
        return text
    digits = text.replace("_", "")
    if match := _INTEGER.fullmatch(digits):
        return _integer(match, digits, node, path)
    return _number(digits, node, path) if _FLOAT.fullmatch(digits) else text


def _integer(match: re.Match[str], digits: str, node: Node, path: str) -> int | float:
    sign, hexadecimal, binary, octal, decimal = match.groups()
    if len(digits) > 70:
        return _number(digits, node, path)
    value = int(hexadecimal or binary or octal or decimal, 16 if hexadecimal else 2 if binary else 8 if octal else 10)
    value = -value if sign == "-" else value
    return value if -(2**63) <= value < 2**64 else _number(digits, node, path)


def _number(digits: str, node: Node, path: str) -> int | float:
    value = float(digits) if _FLOAT.fullmatch(digits) else math.inf
    if not math.isfinite(value):
        raise _error("not a finite number", node, path, found=shown(digits))
    # JSON has one kind of number, and Go writes 8.0 as 8 and 7.6e17 as its shortest digits filled up with zeros.
    return int(Decimal(repr(value))) if value.is_integer() and abs(value) < 1e21 else value


def _text(value: Any, node: Node, path: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        # JSON writes what lies beyond U+FFFF as two halves; PyYAML leaves them apart.
        return value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _error("half a character", node, path, found=shown(value)) from None


def _named(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float"
        case _:
            return "str"


def _error(
    message: str, node: Node, path: str = "", *, found: str | None = None, allowed: str | None = None
) -> YamlError:
    return YamlError(message, path=path, line=node.start_mark.line + 1, found=found, allowed=allowed)
