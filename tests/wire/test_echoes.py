"""Where an echoed prompt ends: found wherever it can be told, and never guessed wrong."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.contract.events import Token
from andthen.contract.text import token_text
from andthen.wire.echoes import Echo, NoBorder, parted, parted_tokens

TEXTS = st.text(st.sampled_from("a b\n<s>é🦊\u3042"), max_size=12)
CUTS = st.sets(st.integers(1, 40))


def cut(data: bytes, places: set[int]) -> list[bytes]:
    edges = [0, *sorted(place for place in places if place < len(data)), len(data)]
    return [data[low:high] for low, high in itertools.pairwise(edges) if data[low:high]]


def scored(pieces: list[str]) -> tuple[Token, ...]:
    return tuple(Token(None, piece, -1.0 if number else None, 0) for number, piece in enumerate(pieces))


@given(TEXTS, TEXTS, CUTS, CUTS, st.booleans(), st.booleans())
def test_a_text_ends_where_its_own_tokens_do(
    prompt: str, text: str, cuts: set[int], more_cuts: set[int], begins: bool, is_told: bool
) -> None:
    own = [token_text(piece) for piece in cut(prompt.encode(), cuts)]
    rest = [token_text(piece) for piece in cut(text.encode(), more_cuts)]
    count = len(own) + begins
    tokens = scored(["<s>"] * begins + own + rest)
    if not count:
        tokens = tuple(Token(None, piece, -1.0, 0) for piece in rest)
    try:
        parts = parted(Echo(prompt, prompt + text, tokens, count if is_told else None))
    except NoBorder:
        assert not is_told
        return
    assert [token.text for token in parts.prompt_tokens] == own
    assert parts.tokens == tokens[count:]
    assert parts.read == count
    assert (parts.prompt_text, parts.text) == (prompt, text)
    assert all(token.logprob is None for token in parts.prompt_tokens[:1])


@given(TEXTS, st.integers(0, 40), CUTS, CUTS)
def test_ids_end_after_their_number_and_their_text_before_a_character_they_leave_incomplete(
    whole: str, place: int, cuts: set[int], more_cuts: set[int]
) -> None:
    data = whole.encode()
    own, rest = cut(data[:place], cuts), cut(data[place:], more_cuts)
    if not own:
        return
    ids = tuple(range(100, 100 + len(own)))
    parts = parted(Echo(ids, whole, scored([token_text(piece) for piece in own + rest]), None))
    complete = data[:place].decode(errors="ignore")
    assert parts.prompt_text == (whole if not rest else complete)
    assert parts.prompt_text + parts.text == whole
    assert [token.id for token in parts.prompt_tokens] == list(ids)
    assert len(parts.tokens) == len(rest)


def test_a_token_of_the_servers_own_is_left_out_though_the_text_begins_with_its_like() -> None:
    tokens = scored(["<s>", "<s>", "a", "b"])
    parts = parted(Echo("<s>a", "<s>ab", tokens, 3))
    assert [token.text for token in parts.prompt_tokens] == ["<s>", "a"]
    assert parts.tokens == tokens[3:]


def test_tokens_that_lost_their_blanks_are_told_by_their_number() -> None:
    tokens = scored(["<s>", "Hello", "world", "again"])
    parts = parted(Echo("Hello world", "Hello world again", tokens, 3))
    assert [token.text for token in parts.prompt_tokens] == ["Hello", "world"]
    assert parts.text == " again"


def test_tokens_that_lost_their_bytes_are_told_by_their_number() -> None:
    tokens = scored(["w", "\ufffd", "\ufffd", "rld", "!"])
    assert parted(Echo("wörld", "wörld!", tokens, 4)).tokens == tokens[4:]
    with pytest.raises(NoBorder):
        parted(Echo("wörld", "wörld!", tokens, None))


def test_ids_whose_tokens_lost_their_bytes_end_where_what_follows_begins() -> None:
    parts = parted(Echo((1, 2, 3), "wö !x", scored(["w", "\ufffd", "\ufffd", "!x"]), None))
    assert (parts.prompt_text, parts.text) == ("wö", " !x")


def test_a_text_that_does_not_begin_with_its_prompt_is_no_echo() -> None:
    with pytest.raises(NoBorder):
        parted(Echo("Hello", "Good bye", scored(["Good", " bye"]), 1))


def test_fewer_tokens_than_ids_are_no_echo() -> None:
    with pytest.raises(NoBorder):
        parted(Echo((1, 2, 3), "ab", scored(["a", "b"]), None))


def test_where_a_server_gives_only_tokens_back_the_text_is_what_follows() -> None:
    parts = parted_tokens(Echo("Hello", "Hello", scored(["Hello", "Hello"]), 1), "Hello")
    assert (parts.prompt_text, parts.text, len(parts.tokens)) == ("Hello", "Hello", 1)


def test_ids_may_spell_bytes_that_are_no_characters() -> None:
    pieces = ["bytes:\\xa2", "bytes:\\xa3", "bytes:\\xc3", "!"]
    parts = parted(Echo((1, 2, 3), "\ufffd\ufffd\ufffd!", scored(pieces), None))
    assert (parts.prompt_text, parts.text) == ("\ufffd\ufffd", "\ufffd!")
