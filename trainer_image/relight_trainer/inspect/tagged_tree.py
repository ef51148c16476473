"""Relight's tagged JSON (relight_trainer.checkpoint.tagged) as a tree to look at, without torch."""

from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any

from relight_trainer.inspect.contents import Opaque, TensorRef, Unreadable
from relight_trainer.inspect.dtypes import ITEM_SIZES


def tree_of(document: Any, views: list[Any], entries: Mapping[str, TensorRef]) -> Any:
    """The tree of a parsed document; `views` say which strided part of which entry each tensor is."""

    def tensor(reference: int) -> TensorRef:
        name, dtype, sizes, strides, offset = views[reference]
        [piece] = entries[name].pieces
        return TensorRef.strided(
            dtype, piece.file, piece.offset + offset * ITEM_SIZES[dtype], tuple(sizes), tuple(strides)
        )

    try:
        return _decode(document, tensor)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unreadable(f"its state is damaged ({type(error).__name__}: {error})") from None


def _decode(value: Any, tensor: Callable[[int], TensorRef]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensor) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not next(iter(value)).startswith("$"):
        return {key: _decode(item, tensor) for key, item in value.items()}
    [(tag, body)] = value.items()
    match tag:
        case "$tensor":
            return tensor(body)
        case "$dict" | "$counter":
            return _pairs(body, tensor)
        case "$ordereddict":
            return _pairs(body[0], tensor)
        case "$defaultdict":
            return _pairs(body[1], tensor)
        case "$tuple" | "$set" | "$frozenset" | "$size":
            return tuple(_decode(item, tensor) for item in body)
        case "$deque":
            return tuple(_decode(item, tensor) for item in body[1])
        case "$float":
            return float(body)
        case "$int":
            return int(body, 16)
        case "$bytes" | "$bytearray":
            return b64decode(body)
        case "$dtype" | "$device":
            return body
        case _:
            return Opaque(tag, body)


def _pairs(pairs: list[Any], tensor: Callable[[int], TensorRef]) -> dict[Any, Any]:
    return {_decode(key, tensor): _decode(value, tensor) for key, value in pairs}
