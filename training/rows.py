"""Text → documents → rows of tokens: what the model sees. Pure but for the generator passed in; knows no torch.

A document is a passage, or a passage cut for fill-in-the-middle, the suffix first or between:

    BOS text           BOS SUF suffix PRE prefix MID middle END           BOS PRE prefix SUF suffix MID middle END

Suffix first (arXiv:2207.14255 has both orders, as SPM and PSM) the middle goes on from the prefix as any text does,
where behind a suffix a small model takes very long to find the prefix's end; and while a prefix grows, what was read of
the suffix stays read. The other order is what most programs ask by.

It begins with BOS because requests do. What nobody will ask the model for is no target: the inner markers, and
whatever would follow a passage that merely stops. END is a target where a gap is filled or a book ends. At the prefix's
end the target is the middle's first token, and at SUF too where the suffix follows the prefix: so SUF learns to carry
on from the prefix, and MID has one place to look at for where it stopped.

Documents of many lengths are packed into a row, and attention stays inside a document: in rows of one document each,
cut to one length, a model learns to end at the last position instead of where the gap is filled.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.corpus import Text
from training.recipe import Stage
from training.vocabulary import CONTROL, END, FIM_MIDDLE, FIM_PAD, FIM_PREFIX, FIM_SUFFIX

END_ID, PREFIX_ID, SUFFIX_ID, MIDDLE_ID, PAD_ID = map(CONTROL.index, (END, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FIM_PAD))
NO_TARGET = -1

SHORTEST_PASSAGE = 120
SHORTEST_CUT_PASSAGE = 40
"""In characters. Where the passage is short, the middle is a larger share of what is learnt from."""
CHARACTERS_PER_TOKEN = 3.0
"""A little under the real ratio, so that the longest passages still fit a row."""
LONGEST_MIDDLE = 400
MOST_PER_TOKEN = 8.0
"""What a token of a very short middle counts in the loss at most."""
WORD_CUT_SHARE = 0.9
"""With half of the cuts inside words, short gaps come out as fragments of words."""

Encode = Callable[[str], list[int]]
"""Text → token ids, no BOS added."""
Decode = Callable[[list[int]], str]
Ids = NDArray[np.int64]
Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Document:
    """Tokens, and for each the token that should follow or `NO_TARGET`, and what that counts in the loss."""

    tokens: Ids
    targets: Ids
    weights: Weights

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Rows:
    """Documents packed: arrays of (rows, row_tokens). `documents` tells them apart; padding has number -1."""

    tokens: Ids
    targets: Ids
    weights: Weights
    documents: Ids


def passage_document(text: str, ends_book: bool, encode: Encode) -> Document:
    return _document([END_ID, *encode(text)], END_ID if ends_book else NO_TARGET)


def gap_document(
    prefix: str,
    middle: str,
    suffix: str,
    encode: Encode,
    *,
    suffix_first: bool = True,
    middle_weight: float = 1.0,
    middle_tokens: float = 0.0,
) -> Document:
    """Each part is encoded alone, as the parts of a request are."""
    before = gap_prompt(prefix, suffix, encode, suffix_first=suffix_first)
    missing = encode(middle)
    document = _document(before + missing, END_ID)
    weight = max(middle_weight, min(MOST_PER_TOKEN, middle_tokens / (len(missing) + 1)))
    document.weights[len(before) - 1 :] = weight
    if suffix_first:
        document.targets[len(before) - 2] = missing[0]
    else:
        seam = before.index(SUFFIX_ID)
        document.targets[seam - 1 : seam + 1] = missing[0]
        document.weights[seam] = weight
    return document


def gap_prompt(prefix: str, suffix: str, encode: Encode, *, suffix_first: bool = True) -> list[int]:
    """What stands before the middle, BOS included."""
    before, after = [PREFIX_ID, *encode(prefix)], [SUFFIX_ID, *encode(suffix)]
    return [END_ID, *(after + before if suffix_first else before + after), MIDDLE_ID]


def _document(tokens: list[int], last_target: int) -> Document:
    ids = np.array(tokens, np.int64)
    targets = np.append(ids[1:], last_target)
    inner = np.isin(targets, (PREFIX_ID, SUFFIX_ID, MIDDLE_ID))
    return Document(ids, np.where(inner, NO_TARGET, targets), np.ones(len(ids), np.float32))


def cut(text: str, rng: np.random.Generator, word_share: float = WORD_CUT_SHARE) -> tuple[str, str, str]:
    """Cuts a text into prefix, middle and suffix.

    The middle's length is log-uniform from 1 to `LONGEST_MIDDLE` characters (at most half the text), its place uniform.
    `word_share` of the cuts have both ends where a word or a line begins or ends, and a word between them.
    """
    length = min(round(_log_uniform(rng, 1, LONGEST_MIDDLE)), max(1, len(text) // 2))
    start = int(rng.integers(0, len(text) - length + 1))
    end = start + length
    if rng.random() < word_share:
        edges = [0, *(match.start() for match in re.finditer(r"(?<=\S)(?=\s)|(?<=\s)(?=\S)", text)), len(text)]
        first = min(bisect.bisect_left(edges, start), len(edges) - 2)
        last = max(first + 1, bisect.bisect_left(edges, end))
        if text[edges[first] : edges[last]].isspace():  # else the likeliest short middle is a blank
            first, last = (first, last + 1) if last + 1 < len(edges) else (max(0, first - 1), last)
        start, end = edges[first], edges[last]
    return text[:start], text[start:end], text[end:]


def shortened(suffix: str, rng: np.random.Generator) -> str:
    """The suffix's beginning, log-uniform in length, to the end of a word where there is one.

    Behind a long suffix attention hardly ever comes upon the seam, and then never learns to look for it; behind a few
    words it does.
    """
    length = round(_log_uniform(rng, 1, max(1, len(suffix))))
    edge = length if length == len(suffix) else max(suffix.rfind(" ", 0, length + 1), suffix.rfind("\n", 0, length + 1))
    return suffix[: edge if edge > 0 else length]


def draw(text: Text, stage: Stage, encode: Encode, rng: np.random.Generator) -> Document:
    """One random document of at most about a row's tokens.

    Passages are uniform in length; those that are cut and whose suffix is shortened, log-uniform.
    """
    start = int(rng.integers(len(text.paragraphs)))
    longer = rng.random()
    if rng.random() >= stage.fim_share:
        return passage_document(*text.passage(start, _between(SHORTEST_PASSAGE, stage.row_tokens, longer)), encode)
    whole = rng.random() < stage.whole_suffix_share
    if whole:
        length = _between(SHORTEST_PASSAGE, stage.cut_tokens, longer)
    else:
        length = round(_log_uniform(rng, SHORTEST_CUT_PASSAGE, _characters(stage.cut_tokens)))
    passage, _ = text.passage(start, length)
    prefix, middle, suffix = cut(passage, rng)
    return gap_document(
        prefix,
        middle,
        suffix if whole else shortened(suffix, rng),
        encode,
        suffix_first=0 < stage.suffix_first_share > rng.random(),
        middle_weight=stage.middle_weight,
        middle_tokens=stage.middle_tokens,
    )


def pack(documents: Iterator[Document], rows: int, row_tokens: int) -> Rows:
    """Takes documents worth `rows` × `row_tokens` and packs them: the longest first, each whole, into the fullest row
    that has room for it. The few that fit nowhere are left out."""
    tokens = np.full((rows, row_tokens), PAD_ID, np.int64)
    targets = np.full((rows, row_tokens), NO_TARGET, np.int64)
    weights = np.zeros((rows, row_tokens), np.float32)
    numbers = np.full((rows, row_tokens), -1, np.int64)
    room = np.full(rows, row_tokens)
    for number, document in enumerate(sorted(_worth(documents, rows * row_tokens), key=len, reverse=True)):
        fitting = np.flatnonzero(room >= len(document))
        if len(fitting):
            row = fitting[np.argmin(room[fitting])]
            start = row_tokens - room[row]
            place = slice(start, start + len(document))
            tokens[row, place], targets[row, place] = document.tokens, document.targets
            weights[row, place], numbers[row, place] = document.weights, number
            room[row] -= len(document)
    return Rows(tokens, targets, weights, numbers)


def _worth(documents: Iterator[Document], tokens: int) -> Iterator[Document]:
    while tokens > 0:
        document = next(documents)
        tokens -= len(document)
        yield document


def _characters(tokens: int) -> float:
    """Of the longest passage that has about so many tokens."""
    return max(SHORTEST_PASSAGE + 1, tokens * CHARACTERS_PER_TOKEN)


def _between(shortest: int, tokens: int, share: float) -> int:
    return round(shortest + (_characters(tokens) - shortest) * share)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
