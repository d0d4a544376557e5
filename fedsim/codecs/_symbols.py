"""Small integers (quantised values) in the shorter of two codes.

fixed    as many bits each as the largest possible symbol needs
entropy  asymmetric numeral systems (constriction) with the symbols' histogram as the model,
         which travels; J. Duda, "Asymmetric numeral systems", https://arxiv.org/abs/1311.2540

The coder takes a step for several symbols of a small alphabet at once, five ternary ones for
example: a word of them is as likely as the product of its symbols, so nothing is longer for it.
"""

from __future__ import annotations

import functools
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from fedsim import bitstrings
from fedsim.codec import Reader, Writer
from fedsim.errors import PayloadError

FIXED, ENTROPY, CONSTANT = range(3)
MOST_SYMBOLS = 2**12
"""Larger alphabets are written in fixed width: their histogram would cost more than it saves."""
MOST_WORDS = 2**8
"""Words of several symbols that are told apart: more are slower to decode, not faster."""
Symbols = NDArray[Any]


def entropy_bits(counts: NDArray[Any]) -> float:
    """Bits of the best code for symbols that occur so many times."""
    occurring = counts[counts > 0].astype(np.float64)
    total = occurring.sum()
    return float((occurring * np.log2(total / occurring)).sum())


def write_symbols(out: Writer, symbols: Symbols, alphabet: int, part: str = "values") -> None:
    """Write integers from 0 to ``alphabet - 1``; their number is the reader's to know."""
    if not symbols.size:
        return
    width = bitstrings.width_of(alphabet - 1)
    counts = np.bincount(symbols, minlength=alphabet) if alphabet <= MOST_SYMBOLS else None
    if counts is not None and counts.max() == len(symbols):
        out.number(CONSTANT)
        out.number(int(symbols[0]), part)
        return
    if counts is not None and _coded_bits(counts) < width * len(symbols):
        out.number(ENTROPY)
        for count in counts[:-1].tolist():
            out.number(count)
        _encode(out, symbols, counts, part)
        return
    out.number(FIXED)
    out.put(bitstrings.pack_bits(symbols, width), part)


def read_symbols(body: Reader, count: int, alphabet: int) -> Symbols:
    """The ``count`` integers that ``write_symbols`` wrote.

    Raises:
        PayloadError: They are no integers below ``alphabet``.
    """
    if not count:
        return np.zeros(0, np.uint8)
    code = body.number(CONSTANT)
    if code == CONSTANT:
        return np.full(count, body.number(alphabet - 1), np.uint16)
    if code == ENTROPY:
        return _decode(body, _read_counts(body, count, alphabet), count)
    width = bitstrings.width_of(alphabet - 1)
    data = body.array(np.uint8, bitstrings.num_packed(count, width))
    symbols = bitstrings.unpack_bits(data, count, width)
    if alphabet & (alphabet - 1) and int(symbols.max()) >= alphabet:
        raise PayloadError(f"payload body holds a symbol that is not below {alphabet}")
    return symbols


def write_binary(out: Writer, symbols: Symbols, ones: int, part: str) -> None:
    """Write zeros and ones with a coder whose model both sides know from the number of ones."""
    _encode(out, symbols, np.array([len(symbols) - ones, ones]), part)


def read_binary(body: Reader, ones: int, count: int) -> Symbols:
    """What ``write_binary`` wrote."""
    return _decode(body, np.array([count - ones, ones]), count)


def _coded_bits(counts: NDArray[Any]) -> float:
    """Estimate for the entropy code, its histogram included."""
    histogram = sum(8 * max(1, -(-int(c).bit_length() // 7)) for c in counts[:-1])
    return entropy_bits(counts) + histogram + 64


def _read_counts(body: Reader, total: int, alphabet: int) -> NDArray[Any]:
    if alphabet > MOST_SYMBOLS:
        raise PayloadError("payload body has a histogram of too many symbols")
    counts = np.array([*(body.number(total) for _ in range(alphabet - 1)), 0])
    counts[-1] = total - counts.sum()
    if counts[-1] < 0:
        raise PayloadError("payload body has a histogram of more symbols than there are")
    return counts


def _word_length(alphabet: int) -> int:
    """Symbols that the coder takes at once.

    >>> [_word_length(n) for n in (2, 3, 15, 17, 4096)]
    [8, 5, 2, 1, 1]
    """
    length = 1
    while alphabet ** (length + 1) <= MOST_WORDS:
        length += 1
    return length


def _model(counts: NDArray[Any]) -> Any:
    """Words of symbols that occur so many times, each as likely as its symbols together."""
    if counts.max() == counts.sum():  # a certain symbol has no model of its own
        counts = counts + 1
    shares = counts / counts.sum()
    words = functools.reduce(np.multiply.outer, [shares] * _word_length(len(counts)))
    return constriction.stream.model.Categorical(
        words.reshape(-1).astype(np.float32), perfect=False
    )


def _encode(out: Writer, symbols: Symbols, counts: NDArray[Any], part: str) -> None:
    """Write words of symbols; the last one is filled up with what occurs most."""
    length = _word_length(len(counts))
    words = np.zeros(-(-len(symbols) // length), np.int32)
    for i in range(length):
        nth = symbols[i::length]
        words *= len(counts)
        words[: len(nth)] += nth
        words[len(nth) :] += counts.argmax()
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(words, _model(counts))
    coded = coder.get_compressed()
    out.number(len(coded))
    out.put(coded.astype("<u4", copy=False), part)


def _decode(body: Reader, counts: NDArray[Any], count: int) -> Symbols:
    coded = body.array("<u4", body.number(2**40))
    if not len(coded) or not coded[-1]:
        raise PayloadError("payload body holds no entropy-coded symbols")
    coder = constriction.stream.stack.AnsCoder(coded.astype(np.uint32))
    length = _word_length(len(counts))
    words = coder.decode(_model(counts), -(-count // length))
    if not coder.is_empty():
        raise PayloadError("payload body holds more entropy-coded symbols than announced")
    symbols: Symbols = np.take(_spelt(len(counts), length), words, axis=0).reshape(-1)
    return symbols[:count]


@functools.lru_cache(maxsize=64)
def _spelt(alphabet: int, length: int) -> Symbols:
    """The symbols of each word; (words, length)."""
    kind = np.uint8 if alphabet <= 2**8 else np.uint16
    digits = np.unravel_index(np.arange(alphabet**length), (alphabet,) * length)
    return np.stack(digits, axis=1).astype(kind)
