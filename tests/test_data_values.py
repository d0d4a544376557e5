"""Values that a task cannot take are refused with their column, before anything trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import Command

ROWS = [f"{i / 10},{1 - i / 20},{i % 2}.0" for i in range(40)]
TABLE = """\
name: table
num_rounds: 1
num_clients: 4
task: {name: module, feature_columns: [a, b]}
model: {name: "fedsim.models.mlp:mlp", options: {num_features: 2, hidden: [4], num_classes: 2}}
data: {path: csv, data_files: {train: train.csv, test: test.csv}}
engine: {backend: inline}
"""


@pytest.fixture
def fedsim(tmp_path, monkeypatch, capfd):
    return Command(tmp_path, monkeypatch, capfd)


def table(name: str, *rows: str) -> None:
    Path(f"{name}.csv").write_text("\n".join(["a,b,label", *rows, *ROWS]) + "\n")


def scenario(text: str = TABLE) -> str:
    Path("table.yaml").write_text(text)
    return "table.yaml"


def test_a_table_of_numbers_is_good(fedsim):
    table("train")
    table("test")
    assert fedsim("validate", scenario())[0] == 0


@pytest.mark.parametrize("place", ["train", "test"])
@pytest.mark.parametrize(
    ("row", "says"),
    {
        "nothing": (",0.1,0", ("'a' holds nan in row 1", "Finite numbers")),
        "infinity": ("inf,0.1,0", ("'a' holds inf in row 1",)),
        "a fraction": ("0,0,1.5", ("'label' holds 1.5 in row 1", "whole numbers")),
        "no label": ("0,0,", ("'label' holds nan in row 1",)),
        "a negative label": ("0,0,-1", ("'label' holds -1.0 in row 1", "from 0")),
    }.values(),
)
def test_a_value_that_a_module_cannot_take(fedsim, place, row, says):
    table("train", "0.5,0.5,1")
    table("test", "0.5,0.5,1")
    table(place, row)
    paragraph = fedsim.refuses("validate", scenario())
    for words in says:
        assert words in paragraph


def test_more_classes_than_the_model_has(fedsim):
    table("train")
    table("test", "0,0,2")
    paragraph = fedsim.refuses("validate", scenario())
    assert "label 2 is none of the 2 classes that the model tells apart" in paragraph


def test_words_in_a_column(fedsim):
    for name in ("train", "test"):
        Path(f"{name}.csv").write_text("a,b,label\n" + "x,0.5,yes\ny,0.1,no\n" * 20)
    assert "the column 'a' holds 'x'. Finite" in fedsim.refuses("validate", scenario())
    words = fedsim.refuses("validate", scenario(TABLE.replace("[a, b]", "[b]")))
    assert "the column 'label' holds yes in row 1. Labels are whole numbers from 0" in words
    assert "Number the classes 0, 1, 2" in words
    paragraph = fedsim.refuses("validate", scenario(TABLE.replace("[a, b]", "[]")))
    assert "option 'feature_columns' of task 'module'" in paragraph


def test_a_column_without_images(fedsim):
    table("train")
    table("test")
    text = TABLE.replace("module, feature_columns: [a, b]", "image_classification, image_column: a")
    paragraph = fedsim.refuses("validate", scenario(text))
    assert "the column 'a' holds no images of one size" in paragraph
    assert "PIL images, or arrays HxW" in paragraph


def test_a_mean_for_other_channels(fedsim):
    text = TABLE.replace("module, feature_columns: [a, b]", "image_classification, mean: [0, 0]")
    data = "data: {path: csv, data_files: {train: train.csv, test: test.csv}}"
    text = text.replace(data, "data: {path: 'sklearn:digits'}")
    paragraph = fedsim.refuses("validate", scenario(text))
    assert "'mean' has 2 numbers, and the images 1 channels" in paragraph
