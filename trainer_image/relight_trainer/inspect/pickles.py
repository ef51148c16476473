"""Torch's own files (.pt, .pth, .ckpt, ...) read without running what is in them.

A pickle names the functions that rebuild its objects. Here a name is never imported: tensors become `TensorRef`s,
plain containers themselves, and everything else an inert `Opaque`. A pickle that names what only an attack needs is
refused all the same: its reader should know before it is given to `torch.load`.
"""

import io
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from relight_trainer.inspect.contents import Composite, Opaque, Piece, TensorRef, Unreadable
from relight_trainer.inspect.dtypes import ITEM_SIZES, STORAGES

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # torch writes the names of pickle protocol 2
_WOULD_RUN = "torch.load with weights_only=False would run code of its author's choice. Nothing of it was run"
_MAX_PICKLE = 1 << 30  # bytes; the tensors' bytes lie elsewhere
_MAX_BYTE_ORDER = 16  # bytes
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of name and extra field

_PLAIN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "Counter"): Counter,
    ("collections", "deque"): deque,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytearray"): lambda data=b"", *_: bytes(data) if isinstance(data, (bytes, list)) else b"",
    ("builtins", "complex"): complex,
    ("torch", "Size"): tuple,
    ("torch", "per_tensor_affine"): "per_tensor_affine",
    ("torch", "per_channel_affine"): "per_channel_affine",
    ("torch.serialization", "_get_layout"): str,
    ("torch", "device"): lambda *parts: ":".join(map(str, parts)),
    ("_codecs", "encode"): lambda text, _="latin1": str(text).encode("latin1"),  # how old protocols spell bytes
}
_TYPES = {"list": list, "dict": dict, "int": int, "float": float, "str": str, "bool": bool}
_NEVER_DATA = frozenset(
    {
        "_pickle", "_posixsubprocess", "asyncio", "builtins", "code", "codeop", "commands", "ctypes", "ftplib",
        "http", "imp", "importlib", "marshal", "multiprocessing", "nt", "operator", "os", "pdb", "pickle", "pip", "platform",
        "posix", "pty", "pydoc", "requests", "runpy", "shutil", "signal", "site", "smtplib", "socket", "subprocess", "sys",
        "tempfile", "threading", "timeit", "types", "urllib", "webbrowser",
    }
)  # fmt: skip


class Storage(NamedTuple):
    """Where a storage's bytes begin, and how many there are."""

    dtype: str
    file: Path
    offset: int
    bytes: int


class _Reader(pickle.Unpickler):
    def __init__(self, stream: BinaryIO, storage: Callable[[tuple[Any, ...]], Any], named: set[str]) -> None:
        super().__init__(stream, encoding="utf-8", errors="backslashreplace")
        self._storage = storage
        self._named = named
        self._classes: dict[str, type[Opaque]] = {}

    def find_class(self, module: str, name: str) -> Any:
        module = _PYTHON_2.get(module, module)
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module == "torch" and (name in ITEM_SIZES or name in STORAGES):
            return STORAGES.get(name, name)
        if (module, name) in _REBUILD:
            return _REBUILD[module, name]
        if module == "builtins" and name in _TYPES:
            return _TYPES[name]
        qualified = f"{module}.{name}"
        if module.partition(".")[0] in _NEVER_DATA:
            raise Unreadable(f"it names {qualified}: {_WOULD_RUN}")
        self._named.add(qualified)
        if qualified not in self._classes:
            base = Composite if module in ("torch._utils", "torch._tensor") and name.startswith("_rebuild") else Opaque
            self._classes[qualified] = type(name, (base,), {"qualified": qualified})
        return self._classes[qualified]

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or not pid or pid[0] != "storage":
            raise Unreadable("it refers to something that no torch file holds")
        return self._storage(pid)


def unpickled(data: bytes, storage: Callable[[tuple[Any, ...]], Any], named: set[str]) -> Any:
    """The tree of a pickle; classes that were not imported are added to `named`. Raises Unreadable."""
    return _load(io.BytesIO(data), storage, named)


def no_storage(_: tuple[Any, ...]) -> Any:
    raise Unreadable("it refers to tensors that are not there")


def _load(stream: BinaryIO, storage: Callable[[tuple[Any, ...]], Any], named: set[str]) -> Any:
    try:
        return _Reader(stream, storage, named).load()
    except Unreadable:
        raise
    except RecursionError:
        raise Unreadable("its pickle is nested too deeply") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise Unreadable(f"its pickle is damaged ({type(error).__name__}: {error})") from None


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_zip(path: Path, named: set[str], start: int = 0, length: int | None = None) -> Any:
    """The tree of a file of torch >= 1.6 (TorchScript too), or of one that lies inside another file."""
    with path.open("rb") as file:
        window = io.BufferedReader(_Window(file, start, path.stat().st_size if length is None else length))
        try:
            with zipfile.ZipFile(window) as archive:
                entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
                if "data.pkl" not in entries:
                    raise Unreadable("a zip file, but not torch's: data.pkl is missing")
                if entries["data.pkl"].file_size > _MAX_PICKLE:
                    raise Unreadable("its data.pkl is too large to be one")
                if "byteorder" in entries and entries["byteorder"].file_size > _MAX_BYTE_ORDER:
                    raise Unreadable("damaged: byteorder is too long")
                data = archive.read(entries["data.pkl"])
                order = archive.read(entries["byteorder"]) if "byteorder" in entries else b"little"
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise Unreadable(f"damaged: {error}") from None
        if order.strip() != b"little":
            raise Unreadable("its tensors are big-endian")

        def storage(pid: tuple[Any, ...]) -> Storage:
            dtype, key, count = pid[1], str(pid[2]), int(pid[4])
            info = entries.get(f"data/{key}")
            if info is None or info.compress_type != zipfile.ZIP_STORED:
                raise Unreadable(f"damaged: data/{key} is {'missing' if info is None else 'compressed'}")
            file.seek(start + info.header_offset)
            name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            at = start + info.header_offset + _LOCAL_HEADER.size + name + extra
            size = count * ITEM_SIZES[dtype]
            if size > info.file_size:
                raise Unreadable(f"damaged: data/{key} has {info.file_size} bytes instead of {size}")
            return Storage(dtype, path, at, size)

        return unpickled(data, storage, named)


def read_legacy(path: Path, named: set[str]) -> Any:
    """The tree of a file of torch < 1.6: pickles one after the other, then the storages. Raises Unreadable."""
    sizes: dict[str, tuple[str, int]] = {}
    offsets: dict[str, int] = {}

    def storage(pid: tuple[Any, ...]) -> "_Late":
        if len(pid) > 5 and pid[5] is not None:
            raise Unreadable("its storages are views of each other, as torch wrote them before 0.4")
        sizes[str(pid[2])] = (pid[1], int(pid[4]))
        return _Late(pid[1], str(pid[2]))

    with path.open("rb") as file:
        if _load(file, no_storage, set()) != _LEGACY_MAGIC:
            raise Unreadable("a pickle, but not torch's")
        for _ in ("protocol", "system"):
            _load(file, no_storage, set())
        tree = _load(file, storage, named)
        for key in _load(file, no_storage, set()):
            head = file.read(8)
            if len(head) < 8 or str(key) not in sizes:
                raise Unreadable("damaged: storages are missing")
            dtype, count = sizes[str(key)]
            offsets[str(key)] = file.tell()
            file.seek(count * ITEM_SIZES[dtype], io.SEEK_CUR)
        if file.tell() > path.stat().st_size:
            raise Unreadable("damaged: it is shorter than its tensors")
    return _Placing(path, offsets).place(tree)


class _Late(NamedTuple):
    """A storage whose place is known only once the pickle has been read."""

    dtype: str
    key: str


class _LateTensor(NamedTuple):
    storage: _Late
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Placing:
    """Gives each tensor its place in the file; what is in the tree many times is looked at once."""

    def __init__(self, path: Path, offsets: Mapping[str, int]) -> None:
        self._path = path
        self._offsets = offsets
        self._placed: dict[int, tuple[Any, Any]] = {}  # by id: what was there, which keeps the id its own, and what is

    def place(self, tree: Any) -> Any:
        if id(tree) not in self._placed:
            self._placed[id(tree)] = tree, tree  # for what contains itself
            self._placed[id(tree)] = tree, self._of(tree)
        return self._placed[id(tree)][1]

    def _of(self, tree: Any) -> Any:
        if isinstance(tree, _LateTensor):
            at = self._offsets[tree.storage.key] + tree.offset * ITEM_SIZES[tree.dtype]
            return TensorRef.strided(tree.dtype, self._path, at, tree.shape, tree.strides)
        if isinstance(tree, Opaque):
            tree.args, tree.state, tree.items = self.place(tree.args), self.place(tree.state), self.place(tree.items)
            return tree
        if isinstance(tree, dict):
            return {key: self.place(value) for key, value in tree.items()}
        if isinstance(tree, (list, tuple, deque)) and type(tree) in (list, tuple, deque):
            return type(tree)(self.place(value) for value in tree)
        return tree


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any, dtype: str | None = None) -> Any:
    shape, strides = tuple(map(int, size)), tuple(map(int, stride))
    kind = dtype or storage.dtype
    if isinstance(storage, _Late):
        return _LateTensor(storage, kind, int(offset), shape, strides)
    item = ITEM_SIZES[kind]
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1 if 0 not in shape else 0
    if offset < 0 or min(strides, default=0) < 0 or (int(offset) + last) * item > storage.bytes:
        raise Unreadable("damaged: a tensor reaches beyond its storage")
    piece = Piece(storage.file, storage.offset + int(offset) * item, shape, strides, (0,) * len(shape))
    return TensorRef(kind, shape, (piece,))


def _tensor_v3(storage: Any, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: str, *_: Any) -> Any:
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _quantized(storage: Any, offset: int, size: Any, stride: Any, quantizer: Any, *_: Any) -> Any:
    numbers = _tensor(storage, offset, size, stride)
    return _composite("quantized tensor", {"int_repr": numbers, "quantizer": quantizer})


def _sparse(layout: Any, data: Any) -> Any:
    """COO is (indices, values, size[, coalesced]), the compressed layouts are (compressed indices, plain indices, values, size)."""
    names = (
        ("indices", "values")
        if len(data) in (3, 4) and isinstance(data[2], tuple)
        else ("compressed", "plain", "values")
    )
    parts = dict(zip((*names, "size"), data, strict=False))
    return _composite("sparse tensor", parts | {"layout": layout})


def _composite(kind: str, parts: dict[str, Any]) -> Composite:
    made = Composite()
    made.qualified, made.state = kind, parts
    return made


def _first(data: Any, *_: Any) -> Any:
    return data


def _of_subclass(function: Callable[..., Any], _type: Any, args: tuple[Any, ...], _state: Any) -> Any:
    return function(*args)


def _member(owner: Any, name: Any, *_: Any) -> Any:
    """How Python 3.11.0 to 3.11.3 spell a member of an enumeration; of anything else it is an attack."""
    if not (isinstance(owner, type) and issubclass(owner, Opaque) and isinstance(name, str)):
        raise Unreadable(f"it names builtins.getattr: {_WOULD_RUN}")
    return owner(name)


def _reconstructed(cls: Any, _base: Any, _state: Any) -> Any:
    return cls()


_REBUILD: Mapping[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_qtensor"): _quantized,
    ("torch._utils", "_rebuild_sparse_tensor"): _sparse,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_subclass,
    ("torch.storage", "UntypedStorage"): "uint8",
    ("copyreg", "_reconstructor"): _reconstructed,
    ("builtins", "getattr"): _member,
    ("collections", "defaultdict"): lambda _=None, *items: defaultdict(None, *items),
}
