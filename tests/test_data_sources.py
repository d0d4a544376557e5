"""Every source of rows, from tiny files, and what is said when one cannot be read."""

from __future__ import annotations

import csv
import gzip
import json
import os
import struct
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsim.data.sources import Rows, load_rows, missing_files
from fedsim.errors import DataError, FedsimError, PluginError
from fedsim.scenario import DataSection

TABLE = [{"text": f"row {i}", "label": i % 2} for i in range(10)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


def load(**section: Any) -> Rows:
    return load_rows(DataSection.model_validate(section))


def failure(**section: Any) -> FedsimError:
    with pytest.raises((DataError, PluginError)) as caught:
        load(**section)
    return caught.value


def write_csv(path: Path, rows: list[dict[str, Any]], opener: Any = open) -> str:
    with opener(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_json_lines(path: Path, rows: list[dict[str, Any]], opener: Any = open) -> str:
    with opener(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Any]], opener: Any = open) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def write_idx(path: Path, values: np.ndarray[Any, Any], opener: Any = open) -> str:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    with opener(path, "wb") as file:
        file.write(header + values.astype(np.uint8).tobytes())
    return str(path)


def write_mnist(folder: Path, opener: Any = open, suffix: str = "") -> dict[str, list[str]]:
    values = np.arange(6 * 4 * 3).reshape(6, 4, 3)
    names = {"train": ("train-images-idx3", "train-labels-idx1"), "test": ("t10k-images-idx3",)}
    names["test"] += ("t10k-labels-idx1",)
    return {
        split: [
            write_idx(folder / f"{images}-ubyte{suffix}", values, opener),
            write_idx(folder / f"{labels}-ubyte{suffix}", np.array([0, 1, 2, 0, 1, 2]), opener),
        ]
        for split, (images, labels) in names.items()
    }


@pytest.mark.parametrize(
    ("path", "name", "write", "opener"),
    [
        ("csv", "a.csv", write_csv, open),
        ("csv", "a.csv.gz", write_csv, gzip.open),
        ("json", "a.jsonl", write_json_lines, open),
        ("json", "a.jsonl.gz", write_json_lines, gzip.open),
        ("parquet", "a.parquet", write_parquet, open),
    ],
)
def test_tables_are_read_and_leave_nothing_behind(
    tmp_path: Path, path: str, name: str, write: Any, opener: Any
) -> None:
    train = write(tmp_path / name, TABLE, opener)
    test = write(tmp_path / f"test-{name}", TABLE[:3], opener)
    rows = load(path=path, data_files={"train": train, "test": test})
    assert rows.test is not None
    assert rows.train.to_list() == TABLE
    assert rows.test.to_list() == TABLE[:3]
    assert {file.name for file in tmp_path.iterdir()} == {name, f"test-{name}"}


def test_a_json_list_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(TABLE))
    assert load(path="json", data_files=str(file)).train.to_list() == TABLE


@pytest.mark.parametrize("opener", [open, gzip.open])
def test_text_has_one_row_a_line(tmp_path: Path, opener: Any) -> None:
    file = tmp_path / ("a.txt" if opener is open else "a.txt.gz")
    with opener(file, "wt") as stream:
        stream.write("one\ntwo\n")
    rows = load(path="text", data_files=str(file))
    assert rows.train["text"][:] == ["one", "two"]
    assert rows.test is None


def test_several_files_and_patterns_are_one_split(tmp_path: Path) -> None:
    parts = [write_csv(tmp_path / f"part-{i}.csv", TABLE[i : i + 2]) for i in (0, 2)]
    listed = load(path="csv", data_files={"train": parts})
    matched = load(path="csv", data_files=str(tmp_path / "part-*.csv"))
    assert listed.train.to_list() == matched.train.to_list() == TABLE[:4]


def test_options_reach_the_parser(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("a;b\n1;2\n")
    rows = load(path="csv", data_files=str(file), options={"delimiter": ";"})
    assert rows.train.to_list() == [{"a": 1, "b": 2}]
    assert "colour" in str(failure(path="csv", data_files=str(file), options={"colour": 1}))


@pytest.mark.parametrize("packed", [False, True])
def test_idx_folder_and_files(tmp_path: Path, packed: bool) -> None:
    opener, suffix = (gzip.open, ".gz") if packed else (open, "")
    files = write_mnist(tmp_path, opener, suffix)
    for section in ({"data_dir": str(tmp_path)}, {"data_files": files}):
        rows = load(path="idx", **section)
        assert rows.test is not None
        assert rows.train.features["image"] == datasets.Array2D(shape=(4, 3), dtype="uint8")
        assert rows.train.features["label"].names == ["0", "1", "2"]
        batch = rows.train.with_format("numpy")[:]
        np.testing.assert_array_equal(batch["image"], np.arange(72).reshape(6, 4, 3))
        np.testing.assert_array_equal(batch["label"], [0, 1, 2, 0, 1, 2])
        assert len(rows.test) == 6


def test_idx_without_test_pair_has_no_test(tmp_path: Path) -> None:
    files = write_mnist(tmp_path)
    for file in files["test"]:
        Path(file).unlink()
    assert load(path="idx", data_dir=str(tmp_path)).test is None


@pytest.mark.parametrize(
    ("name", "column", "shape", "rows", "classes"),
    [
        ("digits", "image", (8, 8), 1797, 10),
        ("iris", "features", (4,), 150, 3),
        ("wine", "features", (13,), 178, 3),
        ("breast_cancer", "features", (30,), 569, 2),
    ],
)
def test_sklearn_sets(
    name: str, column: str, shape: tuple[int, ...], rows: int, classes: int
) -> None:
    loaded = load(path=f"sklearn:{name}")
    values = loaded.train.with_format("numpy")[:][column]
    assert loaded.test is None
    assert values.shape == (rows, *shape)
    assert values.dtype == np.float32
    assert len(loaded.train.features["label"].names) == classes
    if name == "digits":
        assert values.min() == 0.0
        assert values.max() == 1.0


USER_MODULE = """
import datasets
def table(n=4): return datasets.Dataset.from_dict({"x": list(range(n))})
def both(n: int = 4): return datasets.DatasetDict(train=table(n), test=table(1))
def formatted(): return table().with_format("numpy")
def broken(): raise RuntimeError("no such luck")
def number(): return 3
"""


@pytest.fixture
def _user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_rows.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_user_module")
def test_user_functions() -> None:
    assert load(path="user_rows:table").test is None
    assert load(path="user_rows:formatted").train.format["type"] is None
    both = load(path="user_rows:both", options={"n": 6})
    assert both.test is not None
    assert (len(both.train), len(both.test)) == (6, 1)


@pytest.mark.usefixtures("_user_module")
@pytest.mark.parametrize(
    ("section", "key", "text"),
    [
        ({"path": "user_rows:tabel"}, ("data", "path"), "Did you mean 'table'?"),
        ({"path": "user_rowz:table"}, ("data", "path"), "cannot import 'user_rowz'"),
        ({"path": "user_rows:broken"}, ("data", "path"), "RuntimeError: no such luck"),
        ({"path": "user_rows:number"}, ("data", "path"), "gave int"),
        (
            {"path": "user_rows:both", "options": {"m": 1}},
            ("data", "options", "m"),
            "unknown option 'm'",
        ),
        (
            {"path": "user_rows:both", "options": {"n": "x"}},
            ("data", "options", "n"),
            "valid integer",
        ),
    ],
)
def test_faults_of_user_functions(section: Any, key: tuple[str, ...], text: str) -> None:
    error = failure(**section)
    assert error.key == key
    assert text in str(error)


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ("train[:4]", "test", (4, 3)),
        ("train[:2000]", "test", (10, 3)),
        ("train[:50%]", "train[50%:]", (5, 5)),
        ("train[-2:]+test[:1]", "test[1:]", (3, 2)),
    ],
)
def test_split_language(tmp_path: Path, train: str, test: str, expected: tuple[int, int]) -> None:
    files = {
        "train": write_csv(tmp_path / "a.csv", TABLE),
        "test": write_csv(tmp_path / "b.csv", TABLE[:3]),
    }
    rows = load(path="csv", data_files=files, train_split=train, test_split=test)
    assert rows.test is not None
    assert (len(rows.train), len(rows.test)) == expected


def test_splits_of_embedded_sets() -> None:
    rows = load(path="sklearn:iris", train_split="train[10:30]")
    whole = load(path="sklearn:iris").train
    assert rows.train.to_list() == whole.select(range(10, 30)).to_list()


@pytest.mark.parametrize(
    ("section", "key", "text"),
    [
        ({"train_split": "trian"}, "train_split", "Did you mean 'train'?"),
        ({"test_split": "validation"}, "test_split", "no split 'validation'"),
        ({"train_split": "train[:"}, "train_split", "written as in datasets"),
        ({"train_split": "train[2000:]"}, "train_split", "has no rows"),
        ({"train_split": "train[5:5]"}, "train_split", "has no rows"),
        ({"test_split": "train[:10%]"}, "test_split", "share rows"),
    ],
)
@pytest.mark.parametrize("embedded", [False, True])
def test_wrong_splits(tmp_path: Path, section: Any, key: str, text: str, embedded: bool) -> None:
    source = {"path": "csv", "data_files": write_csv(tmp_path / "a.csv", TABLE)}
    error = failure(**({"path": "sklearn:wine"} if embedded else source), **section)
    assert error.key == ("data", key)
    assert text in str(error)


def test_missing_files_are_named_with_the_way_to_get_them(tmp_path: Path) -> None:
    there = write_csv(tmp_path / "a.csv", TABLE)
    gone = str(tmp_path / "gone.csv")
    section = {
        "path": "csv",
        "data_files": {"train": [there, gone], "test": str(tmp_path / "*.tsv")},
        "how_to_get": "Download it from the shop.",
    }
    assert missing_files(DataSection.model_validate(section)) == [gone, str(tmp_path / "*.tsv")]
    error = failure(**section)
    assert error.key == ("data", "data_files", "train", 1)
    assert gone in str(error)
    assert "(and 1 more)" in str(error)
    assert str(error).endswith("Download it from the shop.")


def test_missing_files_of_an_idx_folder(tmp_path: Path) -> None:
    section = DataSection(path="idx", data_dir=str(tmp_path))
    assert [Path(file).name for file in missing_files(section)] == [
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
    ]
    assert failure(path="idx", data_dir=str(tmp_path)).key == ("data", "data_dir")


def test_no_files_are_missing_where_none_are_named() -> None:
    assert missing_files(DataSection(path="sklearn:iris")) == []
    assert missing_files(DataSection(path="csv", data_files="https://x.invalid/a.csv")) == []


@pytest.mark.parametrize("path", ["csv", "json", "parquet", "text", "idx"])
def test_sources_that_need_files_say_so(path: str) -> None:
    assert "needs data_files" in str(failure(path=path))


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    error = failure(path="csv", data_files={"train": str(tmp_path / "a.csv")})
    assert error.key == ("data", "data_files", "train")
    assert "is empty" in str(error)


@pytest.mark.parametrize(
    ("path", "name", "content"),
    [
        ("csv", "a.csv", b"a,b\n1,2\n3,4,5,6\n"),
        ("csv", "a.csv", b"a,b\n"),
        ("csv", "a.csv", b"\xff\xfe\x00\x9d" * 20),
        ("csv", "a.csv.gz", b"not gzip at all"),
        ("csv", "a.csv.gz", gzip.compress(b"a,b\n1,2\n" * 50, mtime=0)[:-12]),
        ("json", "a.jsonl", b'{"a": 1}{{{'),
        ("parquet", "a.parquet", b"PAR1 and no more"),
        ("text", "a.txt", b"\x90\xff\xfe" * 9),
    ],
)
def test_garbled_files_are_named(tmp_path: Path, path: str, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    error = failure(path=path, data_files=str(file))
    assert isinstance(error, DataError)
    assert str(file) in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"hello world, this is no IDX", "is not an IDX file"),
        (b"\0\0\x08\x03\0\0\0\x05\0\0\0\x05\0\0\0\x05abc", "3 values instead of 125"),
        (b"\0\0\x08\x01\0\0\0\x02ab", "in the order"),
        (b"\x1f\x8bnonsense", "cannot be read"),
    ],
)
def test_garbled_idx(tmp_path: Path, content: bytes, text: str) -> None:
    images = Path(write_mnist(tmp_path)["train"][0])
    images.write_bytes(content)
    error = failure(path="idx", data_dir=str(tmp_path))
    assert str(images) in str(error)
    assert text in str(error)


def test_idx_counts_must_agree(tmp_path: Path) -> None:
    labels = write_mnist(tmp_path)["train"][1]
    write_idx(Path(labels), np.array([0, 1]))
    assert "6 images" in str(failure(path="idx", data_dir=str(tmp_path)))


def test_idx_needs_pairs(tmp_path: Path) -> None:
    images = write_mnist(tmp_path)["train"][0]
    assert "[images, labels]" in str(failure(path="idx", data_files={"train": images}))


def test_unknown_embedded_set() -> None:
    error = failure(path="sklearn:digit")
    assert error.key == ("data", "path")
    assert "Did you mean 'digits'?" in str(error)


def test_options_where_none_are_taken() -> None:
    assert failure(path="sklearn:iris", options={"a": 1}).key == ("data", "options")


def test_the_hub_offline_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    error = failure(path="nobody-here/no-such-set")
    assert error.key == ("data", "path")
    assert "HF_HUB_OFFLINE is set" in str(error)


@pytest.mark.skipif(not os.environ.get("FEDSIM_TEST_DATA"), reason="FEDSIM_TEST_DATA is not set")
def test_real_mnist() -> None:
    folder = Path(os.environ["FEDSIM_TEST_DATA"]) / "mnist"
    rows = load(path="idx", data_dir=str(folder))
    assert rows.test is not None
    assert (len(rows.train), len(rows.test)) == (60_000, 10_000)
    assert rows.train.features["label"].num_classes == 10
    assert np.bincount(np.asarray(rows.test["label"][:])).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
