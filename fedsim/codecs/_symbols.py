"""Small integers (quantised values) in the shorter of two codes.

fixed    as many bits each as the largest possible symbol needs
entropy  asymmetric numeral systems (constriction) with the symbols' histogram as the model,
         which travels; J. Duda, "Asymmetric numeral systems", https://arxiv.org/abs/1311.2540
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from fedsim.codec import Reader, Writer
from fedsim.codecs import _bits
from fedsim.errors import PayloadError

FIXED, ENTROPY, CONSTANT = range(3)
MOST_SYMBOLS = 2**12
"""Larger alphabets are written in fixed width: their histogram would cost more than it saves."""
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
    width = _bits.width_of(alphabet - 1)
    counts = np.bincount(symbols, minlength=alphabet) if alphabet <= MOST_SYMBOLS else None
    if counts is not None and counts.max() == len(symbols):
        out.number(CONSTANT)
        out.number(int(symbols[0]), part)
        return
    if counts is not None and _coded_bits(counts) < width * len(symbols):
        out.number(ENTROPY)
        for count in counts[:-1].tolist():
            out.number(count)
        _encode(out, symbols, _model(counts), part)
        return
    out.number(FIXED)
    out.put(_bits.pack_bits(symbols, width), part)


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
        return _decode(body, _model(_read_counts(body, count, alphabet)), count)
    width = _bits.width_of(alphabet - 1)
    data = body.array(np.uint8, _bits.num_packed(count, width))
    symbols = _bits.unpack_bits(data, count, width)
    if alphabet & (alphabet - 1) and int(symbols.max()) >= alphabet:
        raise PayloadError(f"payload body holds a symbol that is not below {alphabet}")
    return symbols


def write_binary(out: Writer, symbols: Symbols, ones: int, part: str) -> None:
    """Write zeros and ones with a coder whose model both sides know from the number of ones."""
    _encode(out, symbols, _model(np.array([len(symbols) - ones, ones])), part)


def read_binary(body: Reader, ones: int, count: int) -> Symbols:
    """What ``write_binary`` wrote."""
    return _decode(body, _model(np.array([count - ones, ones])), count)


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


def _model(counts: NDArray[Any]) -> Any:
    if counts.max() == counts.sum():  # a certain symbol has no model of its own
        counts = counts + 1
    probabilities = (counts / counts.sum()).astype(np.float32)
    return constriction.stream.model.Categorical(probabilities, perfect=False)


def _encode(out: Writer, symbols: Symbols, model: Any, part: str) -> None:
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols.astype(np.int32, copy=False), model)
    words = coder.get_compressed()
    out.number(len(words))
    out.put(words.astype("<u4", copy=False), part)


def _decode(body: Reader, model: Any, count: int) -> Symbols:
    words = body.array("<u4", body.number(2**40))
    if not len(words) or not words[-1]:
        raise PayloadError("payload body holds no entropy-coded symbols")
    coder = constriction.stream.stack.AnsCoder(words.astype(np.uint32))
    symbols = coder.decode(model, count)
    if not coder.is_empty():
        raise PayloadError("payload body holds more entropy-coded symbols than announced")
    return symbols  # type: ignore[no-any-return]
