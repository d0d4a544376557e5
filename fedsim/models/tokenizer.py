"""Tokenizers: from a model's folder, or a byte-level BPE trained on the task's training text.

A trained tokenizer depends on nothing but its text and size, and is kept in the user's cache
directory, so that workers do not train it again. Any text can be written with it, since its
alphabet holds all 256 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim import cache
from fedsim.errors import Key, ModelError
from fedsim.models import load, places
from fedsim.scenario import ModelSection, TokenizerSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>")
"""Special tokens of a trained tokenizer, with the ids 0, 1 and 2."""
SMALLEST = 256 + len(SPECIAL)
FORMAT = 1
"""Part of the cache key; to be raised when the way of training changes."""


def build(section: ModelSection, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a scenario's ``model`` section.

    ``tokenizer.name`` is read from a folder, a package or the Hub. A ``tokenizer`` section without
    it trains one of ``tokenizer.vocab_size`` entries. Without the section, a model with a ``name``
    brings its own, and a ``config`` decides with its ``vocab_size``.

    Args:
        section: The ``model`` section.
        texts: Training text, read only when a tokenizer is trained.

    Returns:
        A tokenizer that has a padding token.

    Raises:
        ModelError: It cannot be found, read, or trained at this size.
    """
    wanted = section.tokenizer
    if wanted is not None and wanted.name is not None:
        return _load(wanted.name, section.how_to_get, ("model", "tokenizer", "name"))
    if wanted is not None:
        return _trained(texts, wanted.vocab_size, ("model", "tokenizer", "vocab_size"))
    if section.name is not None and not load.is_function(section.name):
        return _load(section.name, section.how_to_get, ("model", "name"))
    size = (section.config or {}).get("vocab_size", TokenizerSection().vocab_size)
    return _trained(texts, size, ("model", "config", "vocab_size"))


def _load(name: str, how_to_get: str, key: Key) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    def get(place: str, **where: bool) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place, trust_remote_code=False, **where
        )
        return tokenizer

    tokenizer = places.fetch(name, how_to_get, key, get)
    if tokenizer.pad_token_id is None:  # GPT-2 and Llama; padding is masked, so any token serves
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ModelError(f"the tokenizer of '{name}' has no padding and no end token", key=key)
    return tokenizer


def _trained(texts: Iterable[str], vocab_size: int, key: Key) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if not isinstance(vocab_size, int) or vocab_size < SMALLEST:
        raise ModelError(
            f"a trained tokenizer cannot have {vocab_size!r} entries",
            key=key,
            allowed=f"At least {SMALLEST}: all bytes and {', '.join(SPECIAL)}",
        )
    corpus = list(texts)
    path = cache.cached_file(
        "tokenizers",
        _digest(corpus, vocab_size),
        ".json",
        lambda path: _train(corpus, vocab_size, path),
    )
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_file(str(path)),
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def _digest(texts: list[str], vocab_size: int) -> str:
    import tokenizers

    digest = hashlib.blake2b(
        f"{FORMAT} {tokenizers.__version__} {vocab_size}".encode(), digest_size=16
    )
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8))
        digest.update(data)
    return digest.hexdigest()


def _train(texts: list[str], vocab_size: int, path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    _, bos, eos = SPECIAL
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} $B {eos}",
        special_tokens=[(bos, 1), (eos, 2)],
    )
    tokenizer.save(str(path))
