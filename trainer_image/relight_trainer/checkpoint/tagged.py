"""Tagged JSON: plain Python values as JSON and back, exactly.

JSON alone turns tuples into lists and integer keys into strings, which torch's schedulers and optimizers answer with
silence (`MultiStepLR` never decays again) or a crash. Here whatever JSON cannot say is an object of one key that begins
with `$`. Types are compared exactly: a subclass of `dict` that is not named here is refused, never flattened.

    finite float, str, bool, None, int below 2**53, list, dict with plain string keys     themselves
    {"$int": "0x.."}  {"$float": "inf"}  {"$complex": [re, im]}  {"$bytes": base64}  {"$bytearray": base64}
    {"$tuple": [..]}  {"$set": [..]}  {"$frozenset": [..]}  {"$deque": [maxlen, [..]]}
    {"$dict": [[key, value], ..]}  {"$counter": [[key, count], ..]}  {"$defaultdict": [factory, [[key, value], ..]]}
    {"$ordereddict": [[[key, value], ..], metadata]}      metadata: the `_metadata` of a module's state_dict, or null
    {"$tensor": reference}  {"$size": [..]}  {"$dtype": "float32"}  {"$device": "cuda:0"}
    {"$ndarray": [dtype, shape, order, base64]}  {"$scalar": [dtype, base64]}  {"$numpydtype": dtype}

Arrays are written in place, as text: what is large belongs into a tensor.
"""

import json
import math
import sys
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from relight_trainer.checkpoint.errors import UnsupportedState

Path = tuple["Path", Any] | None  # (where the parent is, key or index in it)

_Tensor, _Parameter = torch.Tensor, torch.nn.Parameter
_JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_EXACT_INT = 2**53  # beyond it, other readers of JSON round
_FACTORIES: dict[str, type] = {t.__name__: t for t in (bool, dict, float, int, list, set, str, tuple)}


def dumps(value: Any, reference: Callable[[torch.Tensor, Path], Any] | None = None, path: Path = None) -> str:
    """`value`, which stands at `path`, as tagged JSON text, ASCII only.

    `reference(tensor, path)` gives what stands in a tensor's place; without it tensors are refused.
    Raises `UnsupportedState` naming the path of what cannot be written, e.g. `optimizer.state[0].momentum`.
    """
    try:
        return _JSON.encode(_Encoder(reference or _no_tensors).encode(value, path))
    except RecursionError:
        raise UnsupportedState("the state is nested too deeply, or contains itself") from None


def spell(path: Path) -> str:
    """A path as a person writes it.

    >>> spell((((None, "state"), 0), "step"))
    'state[0].step'
    """
    if path is None:
        return ""
    before, key = spell(path[0]), path[1]
    if type(key) is not str:
        return f"{before}[{key!r}]"
    return f"{before}.{key}" if before else key


def loads(text: str | bytes, tensor: Callable[[Any], torch.Tensor] | None = None) -> Any:
    """The value that `dumps` wrote; `tensor` gives the tensor of a reference. Raises `ValueError` for other text."""
    return decode(json.loads(text), tensor)


def decode(document: Any, tensor: Callable[[Any], torch.Tensor] | None = None) -> Any:
    """`loads` of what has been parsed already."""

    def no_tensors(_: Any) -> torch.Tensor:
        raise ValueError("there are no tensors here")

    return _Decoder(tensor or no_tensors).decode(document)


def _no_tensors(_: torch.Tensor, path: Path) -> Any:
    raise UnsupportedState(f"{spell(path) or 'the state'}: no tensor is allowed here")


class _Encoder:
    """Runs once a step, so: no path is spelled before it is needed, and the commonest types come first."""

    def __init__(self, reference: Callable[[torch.Tensor, Path], Any]) -> None:
        self._reference = reference

    def encode(self, value: Any, path: Path) -> Any:
        kind = type(value)
        if kind is _Tensor or kind is _Parameter:
            return {"$tensor": self._reference(value, path)}
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if -_EXACT_INT < value < _EXACT_INT else {"$int": hex(value)}
        if kind is dict:
            for key in value:
                if type(key) is not str or key[:1] == "$":
                    return {"$dict": self._pairs(value, path)}
            return {key: self.encode(item, (path, key)) for key, item in value.items()}
        if kind is list:
            return self._items(value, path)
        if kind is tuple:
            return {"$tuple": self._items(value, path)}
        return self._rarer(value, path)

    def _rarer(self, value: Any, path: Path) -> Any:
        kind = type(value)
        if kind is OrderedDict:
            metadata = self.encode(getattr(value, "_metadata", None), (path, "_metadata"))
            return {"$ordereddict": [self._pairs(value, path), metadata]}
        if kind is Counter:
            return {"$counter": self._pairs(value, path)}
        if kind is defaultdict:
            factory = value.default_factory
            if factory is None or factory in _FACTORIES.values():
                return {"$defaultdict": [factory and factory.__name__, self._pairs(value, path)]}
        if kind is set or kind is frozenset:
            return {f"${kind.__name__}": sorted((self._key(item, path) for item in value), key=json.dumps)}
        if kind is deque:
            return {"$deque": [value.maxlen, self._items(value, path)]}
        if kind is bytes or kind is bytearray:
            return {f"${kind.__name__}": _text(value)}
        if kind is complex:
            return {"$complex": [self.encode(value.real, path), self.encode(value.imag, path)]}
        if kind is torch.Size:
            return {"$size": list(value)}
        if kind is torch.dtype:
            return {"$dtype": dtype_name(value)}
        if kind is torch.device:
            return {"$device": str(value)}
        return self._numpy(value, path)

    def _numpy(self, value: Any, path: Path) -> Any:
        numpy: Any = sys.modules.get("numpy")  # a user's image may have torch without it
        if numpy is not None:
            dtype: Any = value if isinstance(value, numpy.dtype) else getattr(value, "dtype", None)
            if isinstance(dtype, numpy.dtype) and dtype.kind in "biufcSUmM":  # no objects, no records
                if value is dtype:
                    return {"$numpydtype": dtype.str}
                if isinstance(value, numpy.generic):
                    return {"$scalar": [dtype.str, _text(value.tobytes())]}
                if type(value) is numpy.ndarray:
                    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
                    return {"$ndarray": [dtype.str, list(value.shape), order, _text(value.tobytes(order))]}
        kind = type(value)
        raise UnsupportedState(f"{spell(path) or 'the state'}: cannot save a {kind.__module__}.{kind.__qualname__}")

    def _items(self, values: Iterable[Any], path: Path) -> list[Any]:
        return [self.encode(value, (path, i)) for i, value in enumerate(values)]

    def _pairs(self, mapping: Mapping[Any, Any], path: Path) -> list[list[Any]]:
        return [[self._key(key, path), self.encode(value, (path, key))] for key, value in mapping.items()]

    def _key(self, key: Any, path: Path) -> Any:
        if type(key) is str:
            return key
        return _Encoder(_no_tensors).encode(key, path)


class _Decoder:
    def __init__(self, tensor: Callable[[Any], torch.Tensor]) -> None:
        self._tags: dict[str, Callable[[Any], Any]] = {
            "$tensor": tensor,
            "$int": lambda text: int(text, 16),
            "$float": float,
            "$complex": lambda parts: complex(*map(self.decode, parts)),
            "$bytes": b64decode,
            "$bytearray": lambda text: bytearray(b64decode(text)),
            "$tuple": lambda items: tuple(map(self.decode, items)),
            "$set": lambda items: set(map(self.decode, items)),
            "$frozenset": lambda items: frozenset(map(self.decode, items)),
            "$deque": lambda body: deque(map(self.decode, body[1]), maxlen=body[0]),
            "$dict": lambda pairs: dict(self._pairs(pairs)),
            "$counter": lambda pairs: Counter(dict(self._pairs(pairs))),
            "$defaultdict": lambda body: defaultdict(_FACTORIES[body[0]] if body[0] else None, self._pairs(body[1])),
            "$ordereddict": self._ordered,
            "$size": torch.Size,
            "$dtype": dtype_of,
            "$device": torch.device,
            "$ndarray": _array,
            "$scalar": lambda body: _array([body[0], [], "C", body[1]])[()],
            "$numpydtype": _numpy_dtype,
        }

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((key, body),) = value.items()
            if key.startswith("$"):
                if key not in self._tags:
                    raise ValueError(f"unknown tag {key}: written by a newer Relight?")
                return self._tags[key](body)
        return {key: self.decode(item) for key, item in value.items()}

    def _pairs(self, pairs: list[list[Any]]) -> Iterable[tuple[Any, Any]]:
        return ((self.decode(key), self.decode(value)) for key, value in pairs)

    def _ordered(self, body: list[Any]) -> OrderedDict[Any, Any]:
        value = OrderedDict(self._pairs(body[0]))
        metadata = self.decode(body[1])
        if metadata is not None:
            value._metadata = metadata  # type: ignore[attr-defined]  # noqa: SLF001  # torch's own convention
        return value


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype's own name.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a name; raises `ValueError` where this torch has none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"this torch ({torch.__version__}) has no dtype {name}")  # noqa: TRY004  # the text is wrong, not a type
    return dtype


def _text(data: bytes | bytearray) -> str:
    return b64encode(data).decode("ascii")


def _array(body: list[Any]) -> Any:
    import numpy as np

    dtype, shape, order, text = body
    return np.ndarray(shape, dtype, buffer=bytearray(b64decode(text)), order=order)


def _numpy_dtype(name: str) -> Any:
    import numpy as np

    return np.dtype(name)
