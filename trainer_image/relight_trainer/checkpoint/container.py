"""One training state as one safetensors file: tensors by name, everything else as tagged JSON in the metadata.

Each file entry is a tensor in the order in which it lies in memory: a channels_last weight of shape (N, C, H, W) stands
there with shape (N, H, W, C). What the state's tensors are is said by its views, one for each tensor in the order of
traversal: `[entry, dtype, sizes, strides, offset in elements]`. Tied tensors are two views of one entry. Tensors that
overlap in other ways, that have gaps, or whose dtype safetensors does not know share an entry of plain bytes.

Metadata: `relight.state` (tagged JSON whose `$tensor` references count the views) and `relight.views` (JSON).
"""

import json
import struct
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from relight_trainer.checkpoint import tagged
from relight_trainer.checkpoint.errors import UnsupportedState
from relight_trainer.checkpoint.memory import Buffer, bytes_of, in_memory, owned

State = dict[str, Any]

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_ALIGNMENT = 64  # of the first tensor's bytes in a file: torch's own, and a multiple of every item size
_SPAN_ALIGNMENT = 16  # of the start of shared bytes: the largest item size
_LENGTH = struct.Struct("<Q")


class Entry(NamedTuple):
    """A named piece of a safetensors file."""

    name: str
    dtype: str  # as safetensors says it
    sizes: tuple[int, ...]
    bytes: int
    alignment: int


class View(NamedTuple):
    """A tensor of the state: where it lies in which entry."""

    entry: str
    dtype: torch.dtype
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int  # in elements


class _Source(NamedTuple):
    """Where an entry's bytes come from: the whole of a dense tensor, or a span of the storage below it."""

    tensor: int
    span: tuple[int, int] | None  # first byte in the storage, number of bytes


@dataclass(frozen=True)
class Layout:
    """How the tensors of a state become the entries of a file: a function of their paths, geometry and aliases only,
    so the same on all ranks of a replicated state.
    """

    entries: tuple[Entry, ...]
    views: tuple[View, ...]
    sources: tuple[_Source, ...]  # one for each entry

    @classmethod
    def of(cls, paths: Sequence[tagged.Path], tensors: Sequence[torch.Tensor]) -> "Layout":
        views: list[View | None] = [None] * len(tensors)
        parts: list[tuple[Entry, _Source]] = []
        taken = {"__metadata__"}
        for group in _overlapping(tensors):
            name = _free(tagged.spell(paths[group[0]]), taken)
            first = tensors[group[0]]
            order = _memory_order(first)
            one = all(_geometry(tensors[i]) == _geometry(first) for i in group)
            if one and order is not None and first.dtype in _DTYPES:
                sizes = tuple(first.shape[d] for d in order)
                size = first.element_size()
                entry = Entry(name, _DTYPES[first.dtype], sizes, first.numel() * size, size)
                parts.append((entry, _Source(group[0], None)))
                start = int(first.storage_offset()) * size
            else:
                spans = [_span(tensors[i]) for i in group]
                start = min(s[0] for s in spans) // _SPAN_ALIGNMENT * _SPAN_ALIGNMENT
                length = max(s[1] for s in spans) - start
                parts.append((Entry(name, "U8", (length,), length, 1), _Source(group[0], (start, length))))
            for i in group:
                t = tensors[i]
                offset = int(t.storage_offset()) - start // t.element_size()
                views[i] = View(name, t.dtype, tuple(t.shape), t.stride(), offset)
        # A safetensors file has no holes; with the widest items first each entry is aligned all the same.
        parts.sort(key=lambda part: -part[0].alignment)
        return cls(tuple(p[0] for p in parts), tuple(v for v in views if v is not None), tuple(p[1] for p in parts))

    def views_json(self) -> list[Any]:
        return [[v.entry, tagged.dtype_name(v.dtype), v.sizes, v.strides, v.offset] for v in self.views]

    def source(self, index: int, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensor to copy into entry `index`: dense, on its own device."""
        tensor, span = self.sources[index]
        t = tensors[tensor]
        if span is None:
            return t
        return torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage(), span[0], (span[1],), (1,))

    def all_sources(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`source` of each entry."""
        return [
            tensors[tensor] if span is None else self.source(i, tensors)
            for i, (tensor, span) in enumerate(self.sources)
        ]

    def target(self, index: int, memory: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Entry `index`'s flat uint8 `memory` in the shape and strides of its source, to be copied into."""
        tensor, span = self.sources[index]
        if span is not None:
            return memory
        t = tensors[tensor]
        return torch.empty(0, dtype=t.dtype).set_(
            memory.untyped_storage(), memory.storage_offset() // t.element_size(), t.shape, t.stride()
        )


def flatten(state: State) -> tuple[str, list[tagged.Path], list[torch.Tensor]]:
    """(tagged JSON, paths, tensors) of a state, tensors in the order of traversal. Raises `UnsupportedState`."""
    paths: list[tagged.Path] = []
    tensors: list[torch.Tensor] = []

    def reference(tensor: torch.Tensor, path: tagged.Path) -> int:
        paths.append(path)
        tensors.append(checked(tensor, path))
        return len(tensors) - 1

    return tagged.dumps(state, reference), paths, tensors


def checked(tensor: torch.Tensor, path: tagged.Path) -> torch.Tensor:
    """`tensor`, which stands at `path`. Raises `UnsupportedState` where its bytes are not its values."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise UnsupportedState(f"{tagged.spell(path)}: only dense tensors that have memory can be saved")
    if tensor.is_conj() or tensor.is_neg():
        raise UnsupportedState(
            f"{tagged.spell(path)}: lazily conjugated or negated; call .resolve_conj().resolve_neg()"
        )
    return tensor


class Head:
    """The head of a safetensors file whose metadata changes from write to write in one value only, its state."""

    def __init__(self, entries: Iterable[Entry], metadata: dict[str, str]) -> None:
        places: dict[str, Any] = {}
        at = 0
        for entry in entries:
            places[entry.name] = {"dtype": entry.dtype, "shape": entry.sizes, "data_offsets": [at, at + entry.bytes]}
            at += entry.bytes
        self.data_bytes = at
        self._before = '{"__metadata__":' + _json({"format": "pt", **metadata})[:-1] + ',"relight.state":'
        self._after = "}" + (f",{_json(places)[1:]}" if places else "}")

    def framed(self, size: int) -> tuple[bytes, bytes]:
        """What stands before and after the state, a JSON string and spaces, in a head of `size` bytes."""
        return _LENGTH.pack(size - _LENGTH.size) + self._before.encode(), self._after.encode()

    def bytes(self, state: str) -> bytes:
        """Everything before the first tensor's bytes."""
        text = f"{self._before}{json.dumps(state)}{self._after}".encode()
        size = -(-(_LENGTH.size + len(text)) // _ALIGNMENT) * _ALIGNMENT
        return _LENGTH.pack(size - _LENGTH.size) + text.ljust(size - _LENGTH.size)

    @classmethod
    def of(cls, layout: Layout) -> "Head":
        return cls(layout.entries, {"relight.views": _json(layout.views_json())})


def head_of(buffer: Buffer) -> memoryview:
    """Everything of a safetensors file before its first tensor's bytes."""
    view = memoryview(buffer).cast("B")
    return view[: _LENGTH.size + _LENGTH.unpack_from(view)[0]]


def entries_of(buffer: Buffer) -> tuple[dict[str, str], dict[str, memoryview]]:
    """(metadata, bytes of each entry by name) of a safetensors file. Raises `ValueError` for anything else."""
    view = memoryview(buffer).cast("B")
    try:
        (length,) = _LENGTH.unpack_from(view)
        start = _LENGTH.size + length
        head = json.loads(bytes(view[_LENGTH.size : start]))
        metadata = head.pop("__metadata__", {})
        places = {name: value["data_offsets"] for name, value in head.items()}
        if start + max((end for _, end in places.values()), default=0) > len(view):
            raise ValueError("truncated")
        return metadata, {name: view[start + begin : start + end] for name, (begin, end) in places.items()}
    except (struct.error, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a safetensors file: {error}") from error


def rebuild(
    document: Any, views: list[Any], entries: dict[str, memoryview], lent: Container[str] = frozenset()
) -> State:
    """The state of a parsed document and its views; tensors on the CPU, tied ones share memory again.

    Those of the top-level entries of the state that are `lent` lie in `entries` themselves.
    """
    copies: dict[str, torch.Tensor] = {}
    own: dict[str, torch.Tensor] = {}

    def tensor_in(memory: dict[str, torch.Tensor], make: Callable[[memoryview], torch.Tensor]) -> Callable[[int], Any]:
        def tensor(reference: int) -> torch.Tensor:
            name, dtype, sizes, strides, offset = views[reference]
            if name not in memory:
                memory[name] = make(entries[name])
            storage = memory[name].untyped_storage()
            return torch.empty(0, dtype=tagged.dtype_of(dtype)).set_(storage, offset, sizes, strides)

        return tensor

    copied = tensor_in(copies, owned)
    if not lent or any(key[:1] == "$" for key in document):
        state: State = tagged.decode(document, copied)
        return state
    in_place = tensor_in(own, in_memory)
    return {key: tagged.decode(value, in_place if key in lent else copied) for key, value in document.items()}


def pack(state: State) -> bytearray:
    """The state as one safetensors file. Raises `UnsupportedState` naming the path of what cannot be saved."""
    text, paths, tensors = flatten(state)
    layout = Layout.of(paths, tensors)
    head = Head.of(layout)
    first = head.bytes(text)
    data = bytearray(len(first) + head.data_bytes)
    data[: len(first)] = first
    at = len(first)
    for i, entry in enumerate(layout.entries):
        source = layout.source(i, tensors).cpu()
        data[at : at + entry.bytes] = bytes_of(source)
        at += entry.bytes
    return data


def unpack(buffer: Buffer | torch.Tensor, *, lent: Container[str] = frozenset()) -> State:
    """The state of `pack` or `Snapshots.read`, as any buffer of bytes or a uint8 CPU tensor.

    Tensors are on the CPU and own their memory; strides and aliases are as they were, `requires_grad` is not kept. Tensors
    of the objects that are `lent` lie in the buffer, which must be writable and stay as it is until they have been copied.
    Raises `ValueError` where the bytes are no packed state.
    """
    metadata, entries = entries_of(bytes_of(buffer) if isinstance(buffer, torch.Tensor) else buffer)
    try:
        return rebuild(json.loads(metadata["relight.state"]), json.loads(metadata["relight.views"]), entries, lent)
    except KeyError as error:
        raise ValueError(f"not a packed state: {error} is missing") from None


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _geometry(t: torch.Tensor) -> tuple[Any, ...]:
    return t.dtype, t.shape, t.stride(), t.storage_offset()


def _span(t: torch.Tensor) -> tuple[int, int]:
    """First byte and the byte after the last of a tensor, in its storage."""
    size = t.element_size()
    start = int(t.storage_offset()) * size
    if t.numel() == 0:
        return start, start
    last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return start, start + (last + 1) * size


def _memory_order(t: torch.Tensor) -> list[int] | None:
    """The dimensions from the slowest to the fastest, or None where the elements do not lie densely, each once."""
    if t.numel() == 0:
        return list(range(t.dim()))
    strides = t.stride()
    order = sorted(range(t.dim()), key=lambda d: -strides[d])
    expected = 1
    for d in reversed(order):
        if t.shape[d] != 1:
            if strides[d] != expected:
                return None
            expected *= t.shape[d]
    return order


def _overlapping(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    """Indices grouped where tensors overlap in memory, in the order of each group's first member."""
    by_storage: dict[tuple[torch.device, int], list[tuple[int, int, int]]] = {}
    groups: list[list[int]] = []
    for i, t in enumerate(tensors):
        if t.numel() == 0:
            groups.append([i])
        else:
            key = (t.device, t.untyped_storage().data_ptr())
            by_storage.setdefault(key, []).append((*_span(t), i))
    for spans in by_storage.values():
        spans.sort()
        end = -1
        for start, stop, i in spans:
            if start >= end:
                groups.append([])
            groups[-1].append(i)
            end = max(end, stop)
    return sorted((sorted(group) for group in groups), key=lambda group: group[0])


def _free(path: str, taken: set[str]) -> str:
    """A name for an entry: the tensor's path, made unique and encodable."""
    name = base = path.encode("utf-8", "backslashreplace").decode() or "tensor"
    n = 1
    while name in taken:
        n += 1
        name = f"{base}#{n}"
    taken.add(name)
    return name
