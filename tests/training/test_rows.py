"""Documents are cut and packed so that the model learns what requests will ask of it."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import recipe, rows
from training.corpus import Text
from training.recipe import Stage
from training.rows import END_ID, MIDDLE_ID, NO_TARGET, PREFIX_ID, SUFFIX_ID

FIRST_BYTE = 5
RECIPE = recipe.read(Path(__file__).parents[2] / "training/recipes/tale.toml")
STAGE = Stage(
    steps=1,
    rows=1,
    row_tokens=64,
    fim_share=0.5,
    cut_tokens=64,
    whole_suffix_share=0.5,
    suffix_first_share=0.0,
    middle_weight=2.0,
    middle_tokens=40.0,
)
BOOKS = "Once a cat sat.\nIt slept.\n\nThe dog ran off into the wood, and the wood was dark.\nHe came home.\n"


def encode(text: str) -> list[int]:
    """One token a byte: enough to see what becomes of a text."""
    return [FIRST_BYTE + byte for byte in text.encode()]


def document_of(length: int) -> rows.Document:
    return rows.passage_document("x" * (length - 1), False, encode)


def test_a_text_knows_its_paragraphs_and_books() -> None:
    text = Text.of(BOOKS)
    assert [BOOKS[start:].split("\n")[0] for start in text.paragraphs] == [line for line in BOOKS.split("\n") if line]
    assert text.books() == [book.strip() for book in BOOKS.split("\n\n")]


def test_a_passage_ends_with_its_book_or_before_a_word() -> None:
    text = Text.of(BOOKS)
    assert text.passage(0, 1000) == ("Once a cat sat.\nIt slept.", True)
    assert text.passage(1, 1000) == ("It slept.", True)
    assert text.passage(2, 12) == ("The dog ran", False)
    assert text.passage(2, 11) == ("The dog ran", False)
    assert text.passage(3, 1000) == ("He came home.", True)


def test_a_corpus_that_is_not_ascii_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        Text.of("naïve")


def test_a_passage_stops_without_an_end_unless_its_book_does() -> None:
    stopped, ended = (rows.passage_document("ab", ends_book, encode) for ends_book in (False, True))
    a, b = encode("ab")
    assert stopped.tokens.tolist() == ended.tokens.tolist() == [END_ID, a, b]
    assert stopped.targets.tolist() == [a, b, NO_TARGET]
    assert ended.targets.tolist() == [a, b, END_ID]


def test_a_gap_reads_as_a_request_does_and_ends_where_it_is_filled() -> None:
    document = rows.gap_document("a", "b", "c", encode)
    a, b, c = encode("abc")
    assert document.tokens.tolist() == [END_ID, SUFFIX_ID, c, PREFIX_ID, a, MIDDLE_ID, b]
    assert document.targets.tolist() == [NO_TARGET, c, NO_TARGET, a, b, b, END_ID]
    behind = rows.gap_document("a", "b", "c", encode, suffix_first=False)
    assert behind.tokens.tolist() == [END_ID, PREFIX_ID, a, SUFFIX_ID, c, MIDDLE_ID, b]
    assert behind.targets.tolist() == [NO_TARGET, a, b, b, NO_TARGET, b, END_ID]


def test_a_middle_and_its_end_count_as_much_as_the_recipe_says() -> None:
    first, behind = (
        rows.gap_document("ab", "cd", "ef", encode, suffix_first=suffix_first, middle_weight=3.0)
        for suffix_first in (True, False)
    )
    c, d = encode("cd")
    assert first.targets[first.weights == 3.0].tolist() == [c, d, END_ID]
    assert behind.targets[behind.weights == 3.0].tolist() == [c, c, d, END_ID]
    assert (first.weights[:7] == 1.0).all()
    assert (behind.weights[:4] == 1.0).all()


@pytest.mark.parametrize(("length", "each"), [(1, rows.MOST_PER_TOKEN), (7, 5.0), (19, 2.0), (300, 2.0)])
def test_a_short_middle_counts_in_all_as_much_as_a_longer_one(length: int, each: float) -> None:
    document = rows.gap_document("ab", "x" * length, "ef", encode, middle_weight=2.0, middle_tokens=40.0)
    assert document.weights[-length - 1 :].tolist() == pytest.approx([each] * (length + 1))


@given(st.text(st.sampled_from("ab \n"), min_size=2), st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_cut_loses_nothing_and_leaves_a_middle(text: str, seed: int, word_share: float) -> None:
    prefix, middle, suffix = rows.cut(text, np.random.default_rng(seed), word_share)
    assert prefix + middle + suffix == text
    assert middle


@given(st.lists(st.text("abc", min_size=1), min_size=2), st.integers(0, 2**32))
def test_cuts_on_words_begin_and_end_where_a_word_does_and_hold_one(words: list[str], seed: int) -> None:
    prefix, middle, suffix = rows.cut(" ".join(words), np.random.default_rng(seed), word_share=1.0)
    assert middle.strip()
    for left, right in ((prefix, middle), (middle, suffix)):
        assert not left or not right or left[-1].isspace() != right[0].isspace()


def test_middles_are_short_and_long() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([len(rows.cut("x" * 2000, rng, word_share=0.0)[1]) for _ in range(2000)])
    assert lengths.min() == 1
    assert rows.LONGEST_MIDDLE * 0.95 < lengths.max() <= rows.LONGEST_MIDDLE
    assert 0.45 < (lengths < rows.LONGEST_MIDDLE**0.5).mean() < 0.55


def test_suffixes_are_short_and_long_and_end_with_a_word() -> None:
    rng = np.random.default_rng(0)
    suffix = " and the dog ran off" * 40
    drawn = [rows.shortened(suffix, rng) for _ in range(1000)]
    assert all(suffix.startswith(one) and one for one in drawn)
    assert 0.4 < np.mean([len(one) < len(suffix) ** 0.5 for one in drawn]) < 0.7
    assert all(suffix[len(one) :][:1] in (" ", "") for one in drawn if len(one) > 4)
    assert rows.shortened("", rng) == ""


def test_the_recipe_says_how_many_documents_are_gaps_and_every_one_begins_as_requests_do() -> None:
    rng = np.random.default_rng(0)
    stage = dataclasses.replace(STAGE, fim_share=0.7, suffix_first_share=0.8)
    drawn = [rows.draw(Text.of(BOOKS), stage, encode, rng) for _ in range(400)]
    assert all(document.tokens[0] == END_ID for document in drawn)
    first, behind = (np.mean([document.tokens[1] == mark for document in drawn]) for mark in (SUFFIX_ID, PREFIX_ID))
    assert first + behind == pytest.approx(stage.fim_share, abs=0.1)
    assert first / (first + behind) == pytest.approx(stage.suffix_first_share, abs=0.1)


def test_a_stage_says_how_many_suffixes_are_whole() -> None:
    text = Text.of("word " * 400)

    def mean_suffix_tokens(share: float) -> float:
        rng = np.random.default_rng(0)
        stage = dataclasses.replace(STAGE, row_tokens=256, cut_tokens=256, fim_share=1.0, whole_suffix_share=share)
        drawn = [rows.draw(text, stage, encode, rng).tokens.tolist() for _ in range(300)]
        return float(np.mean([ids.index(MIDDLE_ID) - ids.index(SUFFIX_ID) for ids in drawn]))

    assert mean_suffix_tokens(1.0) > 4 * mean_suffix_tokens(0.0)


@given(st.lists(st.integers(2, 32), min_size=1), st.integers(1, 5))
def test_packing_keeps_documents_whole_and_apart(lengths: list[int], count: int) -> None:
    documents = [document_of(length) for length in lengths]
    packed = rows.pack(itertools.cycle(documents), count, 32)
    assert packed.tokens.shape == packed.targets.shape == packed.documents.shape == (count, 32)
    whole = {(tuple(document.tokens), tuple(document.targets)) for document in documents}
    for number in np.unique(packed.documents[packed.documents >= 0]):
        places = np.argwhere(packed.documents == number)
        assert len(np.unique(places[:, 0])) == 1
        assert (np.diff(places[:, 1]) == 1).all()
        inside = packed.documents == number
        assert (tuple(packed.tokens[inside]), tuple(packed.targets[inside])) in whole
    assert (packed.targets[packed.documents < 0] == NO_TARGET).all()


def test_rows_are_nearly_full() -> None:
    rng = np.random.default_rng(0)
    documents = (document_of(int(length)) for length in np.exp(rng.uniform(np.log(20), np.log(250), 10_000)))
    packed = rows.pack(documents, 16, 256)
    assert (packed.documents >= 0).mean() > 0.95
    assert (packed.documents[:, 0] >= 0).all()
