"""What `relight inspect` says of a file: a JSON-able report, and the report as text."""

import datetime as dt
import fnmatch
import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from relight_trainer.inspect.contents import Contents, Opaque, TensorRef, WrongInput, short
from relight_trainer.inspect.dtypes import ITEM_SIZES
from relight_trainer.inspect.folders import damage
from relight_trainer.inspect.statistics import Bytes, Statistics, statistics
from relight_trainer.inspect.weights import weights

_MAX_TEXT = 200  # characters of a value
_MAX_ITEMS = 10_000  # in one value
_DEEPEST = 100
_MAX_READ = 16  # times the bytes of the files: tensors may share their bytes, and each is measured
_OPTIONS = ("lr", "momentum", "weight_decay", "betas", "eps", "nesterov", "amsgrad", "initial_lr")


def report(contents: Contents, *, numbers: bool = True, pattern: str = "*") -> dict[str, Any]:
    """Everything about `contents`; without `numbers` no tensor is read. `pattern` (glob) chooses tensors by name.

    Raises WrongInput where no name matches, Unreadable where a file is too short.
    """
    all_tensors = contents.tensors()
    chosen = [(name, ref) for name, ref in all_tensors if fnmatch.fnmatchcase(name, pattern)]
    if all_tensors and not chosen:
        raise WrongInput(f'--only "{pattern}" matches none of the {len(all_tensors)} tensors')
    budget = _MAX_READ * sum({piece.file: piece.file.stat().st_size for _, r in chosen for piece in r.pieces}.values())
    rows: list[dict[str, Any]] = []
    known: dict[TensorRef, Statistics] = {}
    with Bytes() as data:
        for name, ref in chosen:
            found = known.get(ref)
            if numbers and found is None and ref.elements * ITEM_SIZES[ref.dtype] <= budget:
                budget -= ref.elements * ITEM_SIZES[ref.dtype]
                found = known[ref] = statistics(ref, data)
            rows.append(_row(name, ref, found))
    left_out = [row["name"] for row in rows if numbers and "norm" not in row]
    return {
        "path": str(contents.path),
        "kind": contents.kind,
        "facts": plain(contents.facts, items=1 << 24),  # JSON was read for them: as long as that at most
        "notes": [*contents.notes, *_alarms(rows), *_too_large(left_out)],
        "damage": damage(contents) if numbers else [],
        "weights": _sum(_weights(contents)),
        "total": _sum([ref for _, ref in chosen]),
        "tensors": rows,
        "optimizers": [_optimizer(name, tree) for name, tree in _optimizers(contents.tree)],
        "values": {
            name: plain(leaf)
            for name, leaf in contents.leaves()
            if not isinstance(leaf, TensorRef) and fnmatch.fnmatchcase(name, pattern)
        },
    }


def _too_large(names: list[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [
        f"{len(names)} tensors were not measured: with them, {_MAX_READ} times the file's bytes would be read: {shown}"
    ]


def _row(name: str, ref: TensorRef, found: Statistics | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "dtype": ref.dtype, "shape": list(ref.shape), "elements": ref.elements}
    row["bytes"] = ref.elements * ITEM_SIZES[ref.dtype]
    if found is not None:
        row |= {"norm": _number(found.norm), "min": found.minimum, "max": found.maximum, "mean": found.mean}
        row |= {"nan": found.nan, "inf": found.inf}
    return row


def _alarms(rows: list[dict[str, Any]]) -> list[str]:
    bad = [row["name"] for row in rows if row.get("nan") or row.get("inf")]
    if not bad:
        return []
    return [f"{len(bad)} of {len(rows)} tensors hold NaN or Inf: {', '.join(bad[:5])}{', ...' if len(bad) > 5 else ''}"]


def _weights(contents: Contents) -> list[TensorRef]:
    try:
        return [ref for _, ref in weights(contents)]
    except WrongInput:
        return []


def _sum(refs: list[TensorRef]) -> dict[str, int]:
    """`elements` and `bytes` count tied tensors as often as they are named; `stored` each once."""
    sizes = {ref.pieces: ref.elements * ITEM_SIZES[ref.dtype] for ref in refs}
    return {
        "tensors": len(refs),
        "elements": sum(ref.elements for ref in refs),
        "bytes": sum(ref.elements * ITEM_SIZES[ref.dtype] for ref in refs),
        "stored": sum(sizes.values()),
    }


def _optimizers(
    tree: Any, name: str = "", depth: int = 0, seen: set[int] | None = None
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """State of torch optimizers: mappings of `state` and `param_groups`, not far below the top; one tree is told once."""
    seen = set() if seen is None else seen
    if isinstance(tree, Mapping) and depth < 4 and id(tree) not in seen:
        seen.add(id(tree))
        if isinstance(tree.get("state"), Mapping) and isinstance(tree.get("param_groups"), list):
            yield name or "(top)", tree
            return
        for key, value in tree.items():
            yield from _optimizers(value, f"{name}.{_clipped(key)}" if name else _clipped(key), depth + 1, seen)


def _optimizer(name: str, tree: Mapping[Any, Any]) -> dict[str, Any]:
    slots: dict[str, list[TensorRef]] = {}
    for of_parameter in tree["state"].values():
        for slot, value in of_parameter.items() if isinstance(of_parameter, Mapping) else ():
            if isinstance(value, TensorRef):
                slots.setdefault(_clipped(slot), []).append(value)
    groups = [
        {
            "parameters": len(group.get("params", [])),
            **{option: plain(group[option]) for option in _OPTIONS if group.get(option) is not None},
        }
        for group in tree["param_groups"]
        if isinstance(group, Mapping)
    ]
    return {
        "name": name,
        "parameters": len(tree["state"]),
        "slots": {slot: _sum(refs) for slot, refs in slots.items()},
        "groups": groups,
    }


def plain(value: Any, *, items: int = _MAX_ITEMS) -> Any:
    """A value as JSON has it, clipped to so many `items`; what JSON cannot say as text."""
    left = itertools.repeat(None, items)
    return _plain(value, left, 0)


def _plain(value: Any, left: Iterator[None], depth: int) -> Any:
    if isinstance(value, bool) or value is None or (isinstance(value, int) and abs(value) < 2**53):
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (Mapping, list, tuple, set, frozenset, deque)):
        if depth > _DEEPEST:
            return "..."
        if isinstance(value, Mapping):
            pairs = {_clipped(k): _plain(v, left, depth + 1) for (k, v), _ in zip(value.items(), left, strict=False)}
            return pairs if len(pairs) == len(value) else pairs | {"...": "..."}
        found = [_plain(item, left, depth + 1) for item, _ in zip(value, left, strict=False)]
        return found if len(found) == len(value) else [*found, "..."]
    if isinstance(value, Opaque):
        return f"<{_clipped(value.qualified)}, not loaded>"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return _clipped(value)


def _clipped(value: Any) -> str:
    text = value if isinstance(value, str) else short(value)
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def text(said: Mapping[str, Any]) -> str:
    """A report for a person to read."""
    lines = [f"{said['path']}: {said['kind']}"]
    facts = {
        k: v
        for k, v in said["facts"].items()
        if k not in ("files", "cursor", "metadata", "config") and v not in ("", None)
    }
    if (created := facts.get("created")) is not None:
        facts["created"] = f"{dt.datetime.fromtimestamp(created, dt.UTC):%Y-%m-%d %H:%M:%S} UTC (the job)"
    lines += [f"  {name} {_shown(value)}" for name, value in facts.items()]
    cursor = {**said["facts"].get("cursor", {}), **said["facts"].get("metadata", {})}
    lines += [
        f"  {name} {_shown(value)}"
        for name, value in cursor.items()
        if value not in ("", None, {}) and name not in facts
    ]
    if said["facts"].get("files"):
        verdict = "; ".join(said["damage"]) or "match" if _has_numbers(said) else "not read"
        lines.append(f"  checksums: {verdict}")
    lines += [f"note: {note}" for note in said["notes"]]
    if said["tensors"]:
        lines += ["", *_table(_tensor_cells(said["tensors"]))]
    counted = [("weights", said["weights"]), ("all tensors", said["total"])]
    lines += ["", *(f"{name}: {_amount(sums)}" for name, sums in counted if sums["tensors"])]
    for optimizer in said["optimizers"]:
        slots = ", ".join(f"{slot} ({sums['elements']:,} elements)" for slot, sums in optimizer["slots"].items())
        lines.append(
            f"optimizer {optimizer['name']}: state of {optimizer['parameters']} parameters: {slots or 'empty'}"
        )
        for i, group in enumerate(optimizer["groups"]):
            lines.append(f"  group {i}: {', '.join(f'{name} {_shown(value)}' for name, value in group.items())}")
    hidden = tuple(f"{o['name']}.param_groups" for o in said["optimizers"])
    values = {n: v for n, v in said["values"].items() if not n.startswith(hidden)} if hidden else said["values"]
    if values:
        lines += ["", "values:", *(f"  {name or '(top)'} = {_shown(value)}" for name, value in values.items())]
    return "\n".join(printable(line.rstrip()) for line in lines)


def _has_numbers(said: Mapping[str, Any]) -> bool:
    return not said["tensors"] or any("norm" in row for row in said["tensors"])


def _tensor_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    cells = [["tensor", "shape", "dtype"]]
    numbers = any("norm" in row for row in rows)
    if numbers:
        cells[0] += ["norm", "min", "max", "mean", "NaN", "Inf"]
    for row in rows:
        shape = "x".join(map(str, row["shape"])) or "scalar"
        line = [row["name"] or "(top)", shape, row["dtype"]]
        if numbers:
            line += [_shown(row.get(column)) for column in ("norm", "min", "max", "mean")]
            line += [str(row.get(column) or "-") for column in ("nan", "inf")]
        cells.append(line)
    return cells


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def _amount(sums: Mapping[str, int]) -> str:
    tied = f", {_size(sums['stored'])} stored: some are tied" if sums["stored"] != sums["bytes"] else ""
    return f"{sums['tensors']} tensors, {sums['elements']:,} elements, {_size(sums['bytes'])}{tied}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)


def printable(line: str) -> str:
    """Names come out of a stranger's file: nothing in them may steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
