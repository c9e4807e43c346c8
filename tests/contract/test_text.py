import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from andthen.contract.text import Offsets, StopScanner, Utf8Decoder, rank, token_text

# Bytes that begin, continue, break and forbid characters of every length, so that short inputs meet every edge.
EDGES = [b"a", b"\x80", b"\xbf", b"\xc2", b"\xc3\xa9", b"\xe2\x82\xac", b"\xe2\x82", b"\xed\xa0", b"\xf0\x9f\x98\x80"]
EDGES += [b"\xf0\x9f", b"\xf4\x90", b"\xff", b"\xc0", b"\xe0\x80", b""]
pieces = st.lists(st.sampled_from(EDGES) | st.binary(max_size=5), max_size=12)


def cut(whole: str, places: list[int]) -> list[str]:
    """`whole` in pieces, some of them empty."""
    edges = sorted({0, len(whole), *(place % (len(whole) + 1) for place in places)})
    return [whole[start:end] for start, end in itertools.pairwise(edges)] or [whole]


@given(pieces)
@example([b"\xe2\x82", b"\xac", b"\xf0", b"\x9f\x98"])
@example([b"\xed\xa0"])
@example([b"\xed", b"\xa0", b"\x80"])
def test_pieces_decode_as_the_whole_does(parts: list[bytes]) -> None:
    decoder = Utf8Decoder()
    text = "".join(decoder.feed(part) for part in parts)
    assert not decoder.pending or decoder.copy().flush() == "\ufffd"
    text += decoder.flush()
    assert text == b"".join(parts).decode("utf-8", errors="replace")
    assert decoder.length == len(text)
    assert decoder.pending == 0


def test_only_the_begun_character_is_pending() -> None:
    decoder = Utf8Decoder()
    assert decoder.feed("a😀".encode()[:-1]) == "a"
    assert decoder.pending == 3
    fork = decoder.copy()
    assert decoder.feed("😀".encode()[-1:]) == "😀"
    assert fork.feed(b"b") == "\ufffdb"


def offsets_by_hand(parts: list[bytes]) -> list[int]:
    """The character that each part's first byte is in, found by decoding every beginning of the whole anew."""
    whole = b"".join(parts)
    character: list[int] = []
    for end in range(1, len(whole) + 1):
        # A beginning that ends inside a character decodes to one U+FFFD in its place.
        character.append(len(whole[:end].decode("utf-8", errors="replace")) - 1)
    found, at = [], 0
    for part in parts:
        decoder = Utf8Decoder()
        decoder.feed(whole[:at])
        found.append(character[at] if part else decoder.length)
        at += len(part)
    return found


@given(pieces)
@example([b"\xe2", b"\x82", b"\xac", b"a"])
@example([b"\xe2\x82", b"a"])
@example([b"\xe2\x82", b"\xc3", b"\xa9"])
def test_offsets_are_those_of_the_characters(parts: list[bytes]) -> None:
    offsets = Offsets()
    found = [offsets.feed(part) for part in parts]
    assert found == offsets_by_hand(parts)
    assert found == sorted(found)


def test_tokens_of_one_character_share_its_offset() -> None:
    offsets = Offsets()
    assert [offsets.feed(part) for part in (b"ab", b"\xf0", b"\x9f\x98", b"\x80", b"", b"c")] == [0, 2, 2, 2, 3, 3]
    fork = offsets.copy()
    assert (fork.feed(b"dd"), fork.feed(b"e"), offsets.feed(b"e")) == (4, 6, 4)


@pytest.mark.parametrize(
    ("piece", "text"),
    [
        (b" once", " once"),
        (b"", ""),
        ("é".encode(), "é"),
        (b"\xe2\x82", "bytes:\\xe2\\x82"),
        (b"a\x80", "bytes:\\x61\\x80"),
        (b"\x0a", "\n"),
    ],
)
def test_a_token_is_written_as_its_text_or_its_bytes(piece: bytes, text: str) -> None:
    assert token_text(piece) == text


def cut_by_hand(text: str, stops: list[str], passed: int = 0) -> tuple[str, bool]:
    """Character by character: where a stop first ends, cut at the longest one that ends there; not in what is passed
    over."""
    for end in range(passed + 1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


few_letters = st.text(alphabet="ab", max_size=14)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4)


@given(few_letters, stop_lists, st.lists(st.integers(0, 99)))
@example("abcd", ["abcd", "bc"], [])
@example("aab", ["ab"], [1, 2])
def test_any_cut_stops_at_the_same_place(text: str, stops: list[str], places: list[int]) -> None:
    scanner = StopScanner(stops)
    released, fed = "", ""
    expected, matches = cut_by_hand(text, stops)
    for part in cut(text, places):
        out, matched = scanner.feed(part)
        fed += part
        released += out
        assert matched == cut_by_hand(fed, stops)[1]
        if not matched:
            # All is released but the longest end that may begin a stop.
            undecided = max((n for stop in stops for n in range(len(stop)) if n and fed.endswith(stop[:n])), default=0)
            assert released == fed[: len(fed) - undecided]
        assert scanner.released == len(released)
    assert (released + scanner.flush(), scanner.matched) == (expected, matches)
    assert scanner.released == len(expected)
    if matches:
        assert scanner.end is not None
        assert any(text[: scanner.end] == expected + stop for stop in stops)


@given(few_letters, few_letters, stop_lists, st.integers(0, 99))
@example("xab", "yz", ["ab", "xabyz"], 0)
@example("ab", "b", ["ab", "bb"], 1)
def test_no_stop_is_complete_in_what_is_passed_over(early: str, text: str, stops: list[str], place: int) -> None:
    scanner = StopScanner(stops)
    released = "".join(scanner.pass_over(part) for part in cut(early, [place]))
    released += "".join(scanner.feed(part)[0] for part in cut(text, [place]))
    released += scanner.flush()
    assert (released, scanner.matched) == cut_by_hand(early + text, stops, passed=len(early))
    assert scanner.released == len(released)


def test_nothing_comes_after_a_stop() -> None:
    scanner = StopScanner(["."])
    assert scanner.feed("One. Two") == ("One", True)
    assert scanner.feed("Three") == ("", True)
    assert scanner.flush() == ""


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopScanner(["a", ""])


@given(st.lists(st.floats(max_value=0) | st.just(math.nan), max_size=9))
@example([-1.0, -0.5, -1.0, -0.5])
def test_candidates_rank_by_mean_and_then_by_number(means: list[float]) -> None:
    order = rank(means)
    assert sorted(order) == list(range(len(means)))
    values = [-math.inf if math.isnan(means[i]) else means[i] for i in order]
    assert values == sorted(values, reverse=True)
    for first, second in itertools.pairwise(order):
        assert means[first] != means[second] or first < second
    assert not any(
        math.isnan(means[first]) and not math.isnan(means[second]) for first, second in itertools.pairwise(order)
    )
