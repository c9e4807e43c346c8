"""Batches laid out for streams: no slice of one row, none with one wanted row, whatever the step holds."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from andthen.engine.batches import SLICE_TOKENS, Layout, decoding, reading, whole
from andthen.engine.scheduler import Read
from andthen.engine.sequence import Group, Sequence

CONTEXT = 1024


def slices(layout: Layout) -> list[list[int]]:
    """The rows of each slice, as llama.cpp's `split_equal` with consecutive ids makes them."""
    left: dict[int, list[int]] = {}
    for row, id in enumerate(layout.ids):
        left.setdefault(id, []).append(row)
    made = []
    while left:
        run: list[int] = []
        for id in left:
            if not run or id == run[-1] + 1:
                run.append(id)
        count = min(*(len(left[id]) for id in run), max(1, SLICE_TOKENS // len(run)))
        made.append([row for id in run for row in left[id][:count]])
        left = {id: rows[count:] if id in run else rows for id, rows in left.items()}
        left = {id: rows for id, rows in left.items() if rows}
    return made


def check(layout: Layout) -> None:
    for rows in slices(layout):
        assert 2 <= len(rows) <= SLICE_TOKENS
        assert sum(layout.wanted[row] for row in rows) != 1
    assert len(layout.tokens) == len(layout.positions) == len(layout.ids) == len(layout.wanted)


def sequence(id: int, prompt: int, decoded: int) -> Sequence:
    group = Group("a", np.arange(prompt, dtype=np.int32), max_tokens=100, candidates=1)
    (made,) = group.sequences
    made.id, made.decoded, made.chosen = id, decoded, [7] * decoded
    return made


@given(st.sets(st.integers(0, 47), min_size=1), st.integers(1, 50))
def test_decodes_are_never_alone(ids: set[int], decoded: int) -> None:
    decodes = [sequence(id, 10 + id, decoded) for id in sorted(ids)]
    layout = decoding(decodes)
    check(layout)
    read = layout.read if layout.read is not None else range(len(layout.ids))
    assert [(layout.ids[row], layout.positions[row]) for row in read] == [
        (one.id, len(one.group.tokens) + decoded - 1) for one in decodes
    ]
    extra = {(layout.ids[row], layout.positions[row]) for row in range(len(layout.ids))} - {
        (layout.ids[row], layout.positions[row]) for row in read
    }
    assert {(rewind.id, rewind.start) for rewind in layout.rewinds} == extra


@given(st.integers(1, 1000), st.integers(0, 999), st.booleans())
def test_reads_are_never_alone(stop: int, start: int, scored: bool) -> None:
    start = min(start, stop - 1)
    group = Group("a", np.arange(1000, dtype=np.int32), max_tokens=20, candidates=1, scored=scored)
    group.trunk = 5
    read = Read(group, start, stop)
    layout = reading(read, CONTEXT)
    check(layout)
    wanted = [row for row, flag in enumerate(layout.wanted) if flag]
    real = [wanted[place] for place in layout.read] if layout.read is not None else wanted
    positions = [layout.positions[row] for row in real]
    assert positions == (list(range(start, stop)) if scored else [999] if stop == 1000 else [])


def test_a_step_that_need_not_be_exact_is_one_batch() -> None:
    group = Group("a", np.arange(70, dtype=np.int32), max_tokens=20, candidates=1)
    group.trunk = 9
    layout = whole([sequence(3, 4, 2)], [Read(group, 60, 70)])
    assert layout.ids == [3] + [9] * 10
    assert layout.positions == [5, *range(60, 70)]
    assert layout.wanted == [1] + [0] * 9 + [1]
