"""Made-up topics: a text task without files."""

import numpy as np
import pytest

from fedsim.data.sources import load_rows
from fedsim.errors import DataError
from fedsim.scenario import DataSection


def test_made_up_topics_are_balanced_repeat_and_can_be_told_by_their_words() -> None:
    options = {"train_rows": 300, "test_rows": 100, "clarity": 0.5}
    section = DataSection(path="fedsim.data.topics:topics", options=options)
    train, test = load_rows(section).train, load_rows(section).test
    assert test is not None
    assert train["text"][:2] == load_rows(section).train["text"][:2]
    other = section.model_copy(update={"options": {**options, "seed": 1}})
    assert train["text"][:2] != load_rows(other).train["text"][:2]
    assert np.bincount(train["label"]).tolist() == [30] * 10
    seen = [set[str]() for _ in range(10)]
    for text, label in zip(train["text"], train["label"], strict=True):
        seen[label].update(text.split())
    own = [words - set().union(*seen[:i], *seen[i + 1 :]) for i, words in enumerate(seen)]
    said = [np.argmax([len(o & set(text.split())) for o in own]) for text in test["text"]]
    assert np.mean(np.equal(said, test["label"])) > 0.95
    with pytest.raises(DataError, match="words are too many"):
        load_rows(section.model_copy(update={"options": {"words": 30_000}}))
