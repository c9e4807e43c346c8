"""How a step's tokens are laid into batches for llama.cpp.

Pure. There are two layouts of the key-value pool:

    shared    One pool of cells for all sequences. Rows look at the cells of everybody that lie below the highest in
              use, and attend in the order in which they lie: an order that others decide.
    streams   A stretch of cells for each sequence. Nobody's cells lie among another's, so a row's attention depends
              on its own sequence alone, and costs no look at the others.

A step is one batch, unless it is to be exact: with streams a row's logits can be made the same, bit for bit, in any
company. llama.cpp (read in its ggml-cpu/ops.cpp, llama-batch.cpp and llamafile/sgemm.cpp; measured November 2026)
computes a slice of one row by other kernels than one of several, attention from 64 rows on by another again, and the
last layer for the wanted rows only. So slices are kept between 2 and 63 rows and never have exactly one wanted row: a
row that would be alone gets a neighbour, whose logits nobody reads and whose cell is given back. llama.cpp makes a
slice of sequences whose ids follow each other and which have equally many tokens in the batch.
"""

from __future__ import annotations

from itertools import pairwise

from msgspec import Struct

from andthen.engine.scheduler import Read
from andthen.engine.sequence import Sequence

SLICE_TOKENS = 63


class Rewind(Struct, frozen=True):
    """After the batch, the sequence id gives up its cells from `start` on: they held a neighbour."""

    id: int
    start: int


class Layout(Struct):
    """One batch: a row per token. Lists of equal length."""

    tokens: list[int] = []
    positions: list[int] = []
    ids: list[int] = []
    wanted: list[int] = []
    rewinds: list[Rewind] = []
    read: list[int] | None = None
    """Which of the wanted rows somebody reads, in order; None for all."""

    def add(self, token: int, position: int, id: int, wanted: bool) -> None:
        self.tokens.append(token)
        self.positions.append(position)
        self.ids.append(id)
        self.wanted.append(wanted)


def whole(decodes: list[Sequence], reads: list[Read]) -> Layout:
    """One batch for the whole step: decodes first, then reads."""
    layout = Layout(
        [sequence.chosen[sequence.decoded - 1] for sequence in decodes],
        [sequence.position - 1 for sequence in decodes],
        [sequence.id for sequence in decodes],
        [1] * len(decodes),
    )
    for read in reads:
        _lay_read(layout, read)
    return layout


def decoding(decodes: list[Sequence]) -> Layout:
    """Exact: the batch of all decodes, which are in the order of their ids."""
    layout = Layout()
    ids = [sequence.id for sequence in decodes]
    breaks = [True, *(right != left + 1 for left, right in pairwise(ids)), True]
    read: list[int] = []
    for index, sequence in enumerate(decodes):
        token, position = sequence.chosen[sequence.decoded - 1], sequence.position - 1
        read.append(len(layout.ids))
        layout.add(token, position, sequence.id, wanted=True)
        if breaks[index] and breaks[index + 1]:
            layout.add(token, position + 1, sequence.id, wanted=True)
            layout.rewinds.append(Rewind(sequence.id, position + 1))
    if len(read) < len(layout.ids):
        layout.read = read
    return layout


def reading(read: Read, context: int) -> Layout:
    """Exact: the batch of one prompt's tokens, or of those that a preempted sequence had chosen.

    Args:
        read: which tokens.
        context: the longest sequence; at its very end there is no room for a neighbour.
    """
    layout = Layout()
    _lay_read(layout, read)
    real = [index for index, wanted in enumerate(layout.wanted) if wanted]
    end = read.position + read.stop - read.start
    if len(layout.ids) % SLICE_TOKENS == 1 and end < context:
        layout.add(layout.tokens[-1], end, read.id, wanted=False)
        layout.rewinds.append(Rewind(read.id, end))
    for start in range(0, len(layout.ids), SLICE_TOKENS):
        rows = range(start, min(start + SLICE_TOKENS, len(layout.ids)))
        if sum(layout.wanted[row] for row in rows) == 1 and len(rows) > 1:
            layout.wanted[next(row for row in reversed(rows) if not layout.wanted[row])] = 1
    places = {row: place for place, row in enumerate(row for row, wanted in enumerate(layout.wanted) if wanted)}
    if len(places) > len(real):
        layout.read = [places[row] for row in real]
    return layout


def _lay_read(layout: Layout, read: Read) -> None:
    tokens = read.tokens
    layout.tokens += tokens
    layout.positions += range(read.position, read.position + len(tokens))
    layout.ids += [read.id] * len(tokens)
    layout.wanted += [int(read.scored)] * len(tokens)
    if read.last:
        layout.wanted[-1] = 1
