"""How two files of training state differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from relight_trainer.inspect.contents import Contents, TensorRef
from relight_trainer.inspect.report import plain, printable
from relight_trainer.inspect.statistics import Bytes, difference
from relight_trainer.inspect.weights import weights

_SHOWN = 20  # names in one list of the text


def compare(a: Contents, b: Contents, *, only_weights: bool = False) -> dict[str, Any]:
    """A JSON-able account; its `equal` says whether there is any difference.

    Tensors are equal where shape, dtype and every number are (NaN equals NaN; strides do not matter). With
    `only_weights`, the weights of each are compared, whatever they are called in the file; else everything is.
    """
    left, right = _leaves(a, only_weights), _leaves(b, only_weights)
    both = [name for name in left if name in right]
    shapes: list[Any] = []
    dtypes: list[Any] = []
    values: list[Any] = []
    unequal: list[Any] = []
    elements = equal = same = 0
    with Bytes() as data:
        for name in both:
            x, y = left[name], right[name]
            if not (isinstance(x, TensorRef) and isinstance(y, TensorRef)):
                p, q = _plain(x), _plain(y)
                if p != q:
                    values.append({"name": name, "a": p, "b": q})
                continue
            if x.shape != y.shape:
                shapes.append({"name": name, "a": list(x.shape), "b": list(y.shape)})
                continue
            if x.dtype != y.dtype:
                dtypes.append({"name": name, "a": x.dtype, "b": y.dtype})
            found = difference(x, y, data)
            elements, equal = elements + found.elements, equal + found.equal
            if found.equal == found.elements:
                same += 1
            else:
                differing = found.elements - found.equal
                row = {"name": name, "differing": differing, "elements": found.elements, "maxAbs": found.max_abs}
                unequal.append(row | {"notFinite": found.not_finite})
    only_a, only_b = [n for n in left if n not in right], [n for n in right if n not in left]
    return {
        "a": str(a.path),
        "b": str(b.path),
        "equal": not (only_a or only_b or shapes or dtypes or values or unequal),
        "onlyA": only_a,
        "onlyB": only_b,
        "shapes": shapes,
        "dtypes": dtypes,
        "values": values,
        "tensors": {"compared": same + len(unequal), "equal": same, "elements": elements, "equalElements": equal},
        "maxAbs": max((row["maxAbs"] for row in unequal), default=0.0),
        "unequal": sorted(unequal, key=lambda row: (-row["maxAbs"], row["name"])),
    }


def _leaves(contents: Contents, only_weights: bool) -> dict[str, Any]:
    return dict(weights(contents)) if only_weights else dict(contents.leaves())


def _plain(leaf: Any) -> Any:
    return f"a tensor of shape {list(leaf.shape)}" if isinstance(leaf, TensorRef) else plain(leaf)


def text(said: Mapping[str, Any]) -> str:
    """An account for a person to read."""
    tensors = said["tensors"]
    lines = []
    for side, key in (("a", "onlyA"), ("b", "onlyB")):
        if said[key]:
            lines.append(f"only in {said[side]} ({len(said[key])}): {_some(said[key])}")
    for what, key in (("shape", "shapes"), ("dtype", "dtypes"), ("value", "values")):
        rows = [f"{row['name']}: {what} {row['a']} and {row['b']}" for row in said[key]]
        lines += _first(rows)
    lines += _first([_row(row) for row in said["unequal"]])
    lines.append(
        f"{tensors['equal']} of {tensors['compared']} tensors are equal, {tensors['equalElements']:,} of "
        f"{tensors['elements']:,} elements; the largest difference is {said['maxAbs']:.3g}"
    )
    lines.append("equal" if said["equal"] else "different")
    return "\n".join(map(printable, lines))


def _row(row: Mapping[str, Any]) -> str:
    said = f"{row['name']}: {row['differing']:,} of {row['elements']:,} differ"
    if row["notFinite"]:
        said += f", {row['notFinite']:,} of them because one is NaN or infinite"
    if row["notFinite"] < row["differing"]:
        said += f", {'the others ' if row['notFinite'] else ''}by up to {row['maxAbs']:.3g}"
    return said


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _first(rows: list[str]) -> list[str]:
    return rows if len(rows) <= _SHOWN else [*rows[:_SHOWN], f"... and {len(rows) - _SHOWN} more"]
