"""What the model is held against: compressors, and a 5-gram model of the same tokens from the same text."""

from __future__ import annotations

import functools
import gzip
import lzma

import numpy as np
from numpy.typing import NDArray

from training.corpus import Text
from training.rows import END_ID, Encode

ORDER = 5
Keys = NDArray[np.int64]
"""N-grams as numbers in base `vocab_size`, the last token in the lowest place."""


def compressors(text: Text) -> dict[str, float]:
    """Bits per byte of the whole text by gzip -9 and xz -9e, which have read nothing else before."""
    plain = text.characters.encode("ascii")
    packed = {"gzip -9": gzip.compress(plain, 9), "xz -9e": lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)}
    return {name: 8 * len(data) / len(plain) for name, data in packed.items()}


def five_grams(trained_on: list[Text], text: Text, encode: Encode, vocab_size: int) -> float:
    """Bits per byte of `text` by a 5-gram model of tokens: interpolated Kneser–Ney with a discount for each order.

    Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling", sections 2.7 and 4.1.1.
    """
    if vocab_size**ORDER >= 2**63:
        raise ValueError(f"five tokens of a vocabulary of {vocab_size:,} do not fit 64 bits")
    grams = _grams(_tokens(trained_on, encode), ORDER, vocab_size)
    counts = np.ones(len(grams), np.int64)
    asked = _tokens([text], encode)
    levels = []
    for order in range(ORDER, 0, -1):
        grams, counts = _counted(grams, counts)
        wanted = _grams(asked, order, vocab_size)[ORDER - order :]
        levels.append(_level(grams, counts, wanted, vocab_size))
        grams, counts = grams % vocab_size ** (order - 1), np.ones(len(grams), np.int64)
    probability = np.full(len(asked) - ORDER + 1, 1 / vocab_size)
    for own, left_over in reversed(levels):
        probability = own + left_over * probability
    letters = sum(map(len, text.books()))
    return float(-np.log2(probability).mean() * len(asked) / letters)


def _level(grams: Keys, counts: Keys, wanted: Keys, base: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each wanted n-gram: its own discounted share of its context, and the share left to shorter n-grams."""
    once, twice = (int((counts == number).sum()) for number in (1, 2))
    discount = once / max(1, once + 2 * twice)
    contexts, first = np.unique(grams // base, return_index=True)
    totals, kinds = np.add.reduceat(counts, first), np.diff(first, append=len(grams))
    seen = _found(grams, counts, wanted)
    total, kind = _found(contexts, totals, wanted // base), _found(contexts, kinds, wanted // base)
    known = total > 0
    own = np.where(known, np.maximum(seen - discount, 0) / np.maximum(total, 1), 0)
    return own, np.where(known, discount * kind / np.maximum(total, 1), 1)


def _found(keys: Keys, values: Keys, wanted: Keys) -> Keys:
    """The values of the wanted keys, 0 where one is missing; `keys` ascend."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def _counted(grams: Keys, counts: Keys) -> tuple[Keys, Keys]:
    order = np.argsort(grams, kind="stable")
    ascending = grams[order]
    first = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))
    return ascending[first], np.add.reduceat(counts[order], first)


def _grams(tokens: Keys, order: int, base: int) -> Keys:
    """Every run of `order` tokens."""
    count = len(tokens) - order + 1
    places = (tokens[place : place + count] * base ** (order - 1 - place) for place in range(order))
    return functools.reduce(np.add, places)


def _tokens(texts: list[Text], encode: Encode) -> Keys:
    books = (book for text in texts for book in text.books())
    return np.concatenate([np.array([END_ID, *encode(book)], np.int64) for book in books])
