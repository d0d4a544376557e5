"""Made-up sentences about made-up topics: a text task that needs no file and no download.

    word = one of its topic's words with probability ``clarity``, else one that all topics use
    words of either kind are as frequent as 1 / rank (G. K. Zipf)

It is easy on purpose: what is left to see is how a method trains, not how good a model is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from fedsim.errors import DataError
from fedsim.seeds import Seeds

if TYPE_CHECKING:
    from datasets import Dataset

SYLLABLES = tuple(a + b for a in "bdfgklmnprst" for b in "aeiou")


def topics(
    *,
    num_topics: PositiveInt = 10,
    train_rows: PositiveInt = 2000,
    test_rows: PositiveInt = 1000,
    length: PositiveInt = 12,
    words: PositiveInt = 40,
    common_words: PositiveInt = 400,
    clarity: Annotated[float, Field(ge=0, le=1)] = 0.3,
    seed: NonNegativeInt = 0,
) -> dict[str, Dataset]:
    """Sentences in the column ``text``, their topic in ``label``; as many of each topic.

    Args:
        num_topics: Classes.
        train_rows: Sentences to train on.
        test_rows: Sentences to test on.
        length: Words in a sentence.
        words: Words of each topic.
        common_words: Words that belong to no topic.
        clarity: Share of words that belong to the sentence's topic.
        seed: Other sentences; the words stay.
    """
    import datasets

    vocabulary = _vocabulary(num_topics * words + common_words)
    features = datasets.Features(
        text=datasets.Value("string"),
        label=datasets.ClassLabel(names=[f"topic {i}" for i in range(num_topics)]),
    )

    def rows(split: str, count: int) -> Dataset:
        rng = Seeds(seed).numpy("topics", split)
        labels = np.arange(count) % num_topics
        own = labels[:, None] * words + _ranks(rng, words, (count, length))
        common = num_topics * words + _ranks(rng, common_words, (count, length))
        chosen = np.where(rng.random((count, length)) < clarity, own, common)
        text = [" ".join(vocabulary[i] for i in row) for row in chosen.tolist()]
        return datasets.Dataset.from_dict({"text": text, "label": labels}, features=features)

    return {"train": rows("train", train_rows), "test": rows("test", test_rows)}


def _vocabulary(size: int) -> list[str]:
    """Distinct words of three syllables."""
    base = len(SYLLABLES)
    if size > base**3:
        raise DataError(f"{size} words are too many", allowed=f"At most {base**3} in all")
    order = np.random.default_rng(0).permutation(base**3)[:size].tolist()
    digits = [(i // base**2, i // base % base, i % base) for i in order]
    return ["".join(SYLLABLES[digit] for digit in word) for word in digits]


def _ranks(rng: np.random.Generator, size: int, shape: tuple[int, int]) -> NDArray[Any]:
    weights = 1 / np.arange(1, size + 1)
    return rng.choice(size, shape, p=weights / weights.sum())
