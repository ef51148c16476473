"""Files that people bring: each is read as what it says, or refused with its file, line and column."""

import csv
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from relight_trainer.config import BadConfig, parse
from relight_trainer.data.draws import Draw, shard
from relight_trainer.data.errors import BadData
from relight_trainer.data.loading import SampleFailed
from relight_trainer.data.splits import Split, Splits, open_splits, splits_of
from relight_trainer.data.table import read_table
from relight_trainer.settings.loader import Loader

pytestmark = pytest.mark.timeout(60)
ONCE = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def opened(**data: Any) -> Splits:
    return open_splits(parse({"data": data}).data, Loader(), 0, torch.device("cpu"))


def everything(split: Split) -> tuple[np.ndarray, np.ndarray]:
    batches = list(split.batches(shard(split.size, 0, 1, 7)))
    return torch.cat([b[0] for b in batches]).numpy(), torch.cat([b[1] for b in batches]).numpy()


def table(folder: Path, content: str | bytes, name: str = "t.csv") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


ROWS = "".join(f"{170 + i % 3},{i},{i % 2}\n" for i in range(10))


def test_a_name_with_a_comma_in_quotes_is_one_name(tmp_path: Path) -> None:
    path = table(tmp_path, f'"height, cm",weight,label\n{ROWS}')
    splits = opened(type="csv", train=path, test=path, header=True, label="weight", target="number")
    x, y = everything(splits.train)
    assert y.tolist() == list(range(10))
    assert x[:, 0].tolist() == [170 + i % 3 for i in range(10)]
    assert x[:, 1].tolist() == [i % 2 for i in range(10)]
    with pytest.raises(BadData, match=r"has no height; found height, cm, label, weight"):
        opened(type="csv", train=path, header=True, label="height")


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (f"\ufeffa,b,label\n{ROWS}".encode(), ["a", "b", "label"]),
        (f"a,b,label\n{ROWS}".encode("utf-16"), ["a", "b", "label"]),
        (gzip.compress(f"a,b,label\n{ROWS}".encode(), mtime=0), ["a", "b", "label"]),
        (f"größe,b,label\n{ROWS}".encode(), ["größe", "b", "label"]),
        (f"\n\na , b,label\n{ROWS}\n\n".replace("\n", "\r\n").encode(), ["a", "b", "label"]),
        (f"a,b,label\n{ROWS}".replace("\n", "\r").encode(), ["a", "b", "label"]),
        (f"a_1,b,label\n{ROWS}".encode(), ["a_1", "b", "label"]),
        (b'"a\nof two lines","b ""x""",label\n' + ROWS.encode(), ["a\nof two lines", 'b "x"', "label"]),
        (f'"a", "b, c", "label"\n{ROWS}'.encode(), ["a", "b, c", "label"]),
        (f"0,1,2\n{ROWS}".encode(), ["0", "1", "2"]),
    ],
    ids=["byte order mark", "utf-16", "packed", "umlaut", "crlf and blank lines", "cr", "underscore", "quotes", "spaces", "counted"],
)  # fmt: skip
def test_tables_of_every_spelling_are_the_same_numbers(tmp_path: Path, content: bytes, names: list[str]) -> None:
    found = read_table(Path(table(tmp_path, content)), "data.train", header=True)
    assert found.names == names
    assert found.numbers.tolist() == [[170 + i % 3, i, i % 2] for i in range(10)]


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("a,b\n1,2,0\n", {"header": True}, r"t\.csv, line 2: 3 columns; allowed: 2, as the header names: a, b\. If the first column holds row names, .* \(row\.names = FALSE in R"),
        ('"","a","b"\n"1",1,2\n', {"header": True}, r"line 1: column 0 has no name; allowed: a name for each column\..*index=False in pandas"),
        ("a,b,c\n1,2,0\n3,1\n", {"header": True}, r"line 3: 2 columns; allowed: 3, as the header names"),
        ("1,2,0\n3,1\n", {}, r"line 2: 2 columns; allowed: 3, as line 1 has"),
        ("1,2,0\n3,,1\n", {}, r"line 2, column 1: found nothing; allowed: a number"),
        ("1,2,0\n,,\n", {}, r"line 2, column 0: found nothing; allowed: a number"),
        ("a,b,c\n3,x,1\n", {"header": True}, r'line 2, column 1 \("b"\): found "x"; allowed: a number'),
        ("a,b,c\n3,1,1\n", {}, r"line 1, column 0: found \"a\"; allowed: a number\. If the first line names the columns, set data\.header: true"),
        ("5,2.5,0\n3,1,1\n", {"header": True}, r"line 1: data\.header is true, and the line has numbers: 5, 2\.5, 0"),
        ('"1,5",2,0\n', {}, r'line 1, column 0: found "1,5"; allowed: a number'),
        ('1,2,0\n"1,5",2,0\n', {}, r'line 2, column 0: found "1,5"; allowed: a number, with a decimal point'),
        ("1,2,0\n1 000,2,0\n", {}, r'found "1 000"; allowed: a number, without separators between digits'),
        ("1,2,0\n1_000,2,0\n", {}, r'found "1_000"; allowed: a number, without separators between digits'),
        ("1,2,0\n\u0661,2,0\n", {}, 'line 2, column 0: found "\u0661"; allowed: a number'),
        ("1,2,0\n1;2;0,1,2\n", {}, r"allowed: a number\. Fields are separated by commas, and this looks like another separator"),
        ("1,2,0\n1,inf,0\n", {}, r'line 2, column 1: found "inf"; allowed: finite numbers'),
        ("1,2,0\n1,NaN,0\n", {}, r'line 2, column 1: found "NaN"; allowed: finite numbers'),
        ("1,2,0\n1,1e999,0\n", {}, r'line 2, column 1: found "1e999"; allowed: finite numbers'),
        ("1,2,0\n1,NA,0\n", {}, r'found "NA"; allowed: a number, and no missing or infinite values'),
        ("1,2,0\n1,1e39,0\n", {}, r"an input of sample 1 is 1e\+39; allowed: numbers that float32 holds"),
        ("# made by hand\n1,2,0\n", {}, r'line 1, column 0: found "# made by hand"'),
        ("1\n2\n", {}, r"the labels' column is the only one; allowed: one more, for the inputs"),
        ('1,"2,0\n3,1,1\n', {}, r"not a CSV file: unexpected end of data"),
        ('1,"2"x,0\n', {}, r"not a CSV file: ',' expected after '\"'"),
        ("größe,b,c\n1,2,0\n".encode("latin-1"), {"header": True}, r"line 1: found the byte 0xF6; allowed: UTF-8 text"),
        (gzip.compress(b"1,2,0\n" * 99, mtime=0)[:20], {}, r"t\.csv: cannot be read: Compressed file ended"),
        ("a,a,c\n1,2,0\n", {"header": True, "label": "a"}, r"data\.label: data\.train has 2 columns named a; allowed: 0, 1"),
        ("1,2,9007199254740993\n", {}, r"the label of sample 0 is 9007199254740992\.0; allowed: whole numbers up to 9007199254740991"),
        ("1,2,16777217\n", {"target": "number"}, r"the label of sample 0 is 16777217\.0; allowed: .* exact up to 16777216\. Divide the labels"),
        ("1,2,1e39\n", {"target": "number"}, r"the label of sample 0 is 1e\+39; allowed: finite numbers that float32 holds"),
    ],
)  # fmt: skip
def test_a_table_is_refused_with_its_file_line_and_column(
    tmp_path: Path, content: str | bytes, more: Any, message: str
) -> None:
    path = table(tmp_path, content)
    with pytest.raises(BadData, match=message):
        opened(type="csv", train=path, **more)


def test_a_label_by_name_needs_a_header() -> None:
    with pytest.raises(BadConfig, match=r'config\.data\.label: .*found "kind"; allowed: .*data\.header: true'):
        parse({"data": {"type": "csv", "train": "t.csv", "label": "kind"}})


def test_a_test_table_has_the_columns_of_the_training_in_any_order(tmp_path: Path) -> None:
    train = table(tmp_path, f"a,b,label\n{ROWS}")
    test = table(tmp_path, "label,b,a\n1,20,30\n", "other.csv")
    splits = opened(type="csv", train=train, test=test, header=True)
    x, y = everything(splits.test)
    assert (x.tolist(), y.tolist()) == ([[30, 20]], [1])
    for content, message in (
        ("a,c,label\n1,2,0\n", r"data\.test: found the columns c; allowed: those of data\.train: a, b, label"),
        ("a,b,c,label\n1,2,3,0\n", r"data\.test: found the columns c; allowed"),
    ):
        with pytest.raises(BadData, match=message):
            opened(type="csv", train=train, test=table(tmp_path, content, "other.csv"), header=True)
    with pytest.raises(BadData, match=r"data\.test: found 2 columns; allowed: those of data\.train: 3 columns"):
        opened(type="csv", train=table(tmp_path, "1,2,0\n"), test=table(tmp_path, "1,0\n", "other.csv"))


def test_a_table_of_thousands_of_columns_is_read(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).random((5, 5000))
    file = io.StringIO()
    csv.writer(file).writerows(numbers.tolist())
    assert np.array_equal(read_table(Path(table(tmp_path, file.getvalue())), "", header=False).numbers, numbers)


NUMBERS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**53), 2**53))
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda name: name == name.strip() and not name.startswith("\ufeff") and any(c.isalpha() for c in name)
)


@ONCE
@given(data=st.data())
def test_what_pythons_csv_writer_writes_reads_back_equal(tmp_path: Path, data: st.DataObject) -> None:
    width = data.draw(st.integers(2, 6))
    rows = data.draw(st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1, max_size=8))
    names = data.draw(st.lists(NAMES, min_size=width, max_size=width) | st.just([]))
    quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    end = data.draw(st.sampled_from(["\r\n", "\n"]))
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=quoting, lineterminator=end)
    writer.writerows([names, *rows] if names else rows)
    found = read_table(Path(table(tmp_path, file.getvalue())), "", header=bool(names))
    assert found.names == names
    assert np.array_equal(found.numbers, np.array([[float(value) for value in row] for row in rows]))


DTYPES: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
    "integers": lambda: hnp.integer_dtypes(endianness="?", sizes=(8, 16, 32, 64)),
    "unsigned": lambda: hnp.unsigned_integer_dtypes(endianness="?", sizes=(8, 16, 32, 64)),
    "floats": lambda: hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    "booleans": hnp.boolean_dtypes,
}


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("how", ["npz", "compressed", "folder"])
@ONCE
@given(data=st.data())
def test_arrays_of_every_type_and_byte_order_are_their_numbers(
    tmp_path: Path, kind: str, how: str, data: st.DataObject
) -> None:
    dtype = data.draw(DTYPES[kind]())
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    elements = (
        None
        if dtype.kind != "f"
        else {"allow_nan": False, "allow_infinity": False, "max_value": 1e4, "min_value": -1e4}
    )
    inputs = data.draw(hnp.arrays(dtype, shape, elements=elements))
    if data.draw(st.booleans()):
        inputs = np.asfortranarray(inputs)
    label_type = data.draw(hnp.integer_dtypes(endianness="?") | hnp.unsigned_integer_dtypes(endianness="?"))
    labels = (np.arange(len(inputs)) % 3).astype(label_type)
    folder = tmp_path / how
    folder.mkdir(exist_ok=True)
    path = folder
    if how == "folder":
        np.save(folder / "inputs.npy", inputs)
        np.save(folder / "labels.npy", labels)
    else:
        path = folder / "d.npz"
        (np.savez if how == "npz" else np.savez_compressed)(path, inputs=inputs, labels=labels)
    x, y = everything(opened(type="arrays", train=str(path), test=str(path)).train)
    assert np.array_equal(x, inputs.astype(np.float32))
    assert y.tolist() == labels.tolist()


@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_to_predict_of_every_type_are_exact_or_refused(tmp_path: Path, order: str) -> None:
    for dtype in ("f2", "f4", "f8", "f16" if hasattr(np, "float128") else "f8"):
        labels = np.array([0.5, -2.25, 1024.0]).astype(order + dtype if dtype != "f16" else np.longdouble)
        np.savez(tmp_path / "d.npz", inputs=np.ones((3, 2), order + "f4"), labels=labels)
        _, y = everything(opened(type="arrays", train=str(tmp_path / "d.npz"), test=str(tmp_path / "d.npz")).train)
        assert (y.dtype, y.tolist()) == (np.float32, [0.5, -2.25, 1024.0])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.ones((2, 2), complex)}, r"data\.train: .*d\.npz: inputs holds complex128; allowed: real numbers"),
        ({"labels": np.ones(2, ">c8")}, r"labels holds >c8; allowed: real numbers"),
        ({"inputs": np.zeros((2, 1), "M8[s]")}, r"inputs holds datetime64\[s\]; allowed: real numbers"),
        ({"labels": np.zeros(2, "m8[s]")}, r"labels holds timedelta64\[s\]; allowed: real numbers"),
        ({"inputs": np.zeros(2, [("a", "<i4")])}, r"inputs holds \[\('a', '<i4'\)\]; allowed: real numbers"),
        ({"inputs": np.array([["a"], ["b"]])}, r"inputs holds <U1; allowed: real numbers"),
        ({"inputs": np.float32(3)}, r"inputs of the shape \(\) and labels of \(2,\)"),
        ({"inputs": np.ones((2, 0))}, r"inputs of the shape \(2, 0\); allowed: at least one number in each row"),
        ({"labels": np.array([0, 2**63], np.uint64)}, r"labels: the label of sample 1 is 9223372036854775808; allowed: whole numbers up to 9223372036854775807"),
        ({"labels": np.array([0.5, np.nan])}, r"labels: the label of sample 1 is nan; allowed: finite numbers that float32 holds"),
        ({"labels": np.array([0.5, 16777217.0])}, r"labels: the label of sample 1 is 16777217\.0; allowed: .*exact up to 16777216"),
    ],
)  # fmt: skip
def test_arrays_that_hold_no_real_numbers_are_refused_with_their_name(
    tmp_path: Path, arrays: Any, message: str
) -> None:
    np.savez(tmp_path / "d.npz", **{"inputs": np.ones((2, 2)), "labels": np.arange(2), **arrays})
    with pytest.raises(BadData, match=message):
        opened(type="arrays", train=str(tmp_path / "d.npz"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_an_input_that_is_not_finite_is_refused_with_its_place(tmp_path: Path, value: float) -> None:
    inputs = np.ones((4, 2, 3))
    inputs[2, 1, 0] = value
    np.savez(tmp_path / "d.npz", inputs=inputs, labels=np.arange(4))
    splits = opened(type="arrays", train=str(tmp_path / "d.npz"), test=str(tmp_path / "d.npz"))
    with pytest.raises(
        SampleFailed, match=r"d\.npz:inputs\[2\]\[1\]\[0\]: found (nan|inf|1e\+39); allowed: finite numbers"
    ):
        list(splits.train.batches([Draw(0, np.array([3, 2]))]))


class Uneven(torch.utils.data.Dataset[Any]):
    """Sample 5 is of another shape than the others, or none of them can be made a batch."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Any:
        if self._kind == "object":
            return object()
        return {"x": np.ones((3, 5 if index == 5 else 4), np.float32), "label": index}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"^data\.train\[5\]: \{x: \(3, 5\) float32, label: int\}, and \[7\] is \{x: \(3, 4\) float32, label: int\}: "),
        ("object", r"^data\.train\[7, 5, 2\]: .*<class 'object'>"),
    ],
)  # fmt: skip
def test_samples_that_make_no_batch_are_told_by_the_one_that_differs(kind: str, message: str) -> None:
    splits = splits_of((Uneven(kind), None), Loader(workers=0), 0, torch.device("cpu"))
    with pytest.raises(SampleFailed, match=message):
        list(splits.train.batches([Draw(0, np.array([7, 5, 2]))]))
