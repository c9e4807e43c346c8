"""Server-sent events, as the standard reads them."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.wire import sse
from andthen.wire.sse import EventTooLong, ServerSentEvent, SseParser


def parsed(*pieces: bytes) -> list[ServerSentEvent]:
    parser = SseParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_any_of_the_three_line_ends_is_one(end: bytes) -> None:
    text = b"event: a\ndata: 1\n\ndata: 2\n\n".replace(b"\n", end)
    assert parsed(text) == [ServerSentEvent("a", b"1"), ServerSentEvent("", b"2")]


def test_several_data_lines_are_joined_by_newlines() -> None:
    assert parsed(b"data: 1\ndata:\ndata:  2\n\n") == [ServerSentEvent("", b"1\n\n 2")]


def test_comments_other_fields_and_events_without_data_are_passed_over() -> None:
    assert parsed(b": ping\n\nevent: a\n\nid: 7\nretry: 1\ndata\n\ndata:\n\nnonsense\n\ndata: 1\n\n") == [
        ServerSentEvent("", b"1")
    ]


def test_a_name_holds_for_its_own_event_alone() -> None:
    assert parsed(b"event: error\ndata: 1\n\ndata: 2\n\n") == [
        ServerSentEvent("error", b"1"),
        ServerSentEvent("", b"2"),
    ]


def test_a_byte_order_mark_is_dropped_at_the_beginning_alone() -> None:
    mark = b"\xef\xbb\xbf"
    assert parsed(mark[:1], mark[1:] + b"data: 1\n\n" + mark + b"data: 2\n\n") == [ServerSentEvent("", b"1")]


def test_an_event_that_the_end_cuts_off_is_dropped() -> None:
    assert parsed(b"data: 1\n\ndata: 2\n") == [ServerSentEvent("", b"1")]


def test_an_event_comes_with_the_byte_that_ends_it() -> None:
    assert parsed(b"data: 1\r\n\r") == [ServerSentEvent("", b"1")]


def test_an_lf_after_a_cr_that_stood_alone_in_a_piece_ends_nothing_more() -> None:
    assert parsed(b"data: 1\r", b"\n", b"data: 2\r", b"\n\r", b"\n") == [ServerSentEvent("", b"1\n2")]


def test_a_separator_of_unicode_ends_no_line() -> None:
    data = "a\u2028b\u0085c\x0bd".encode()
    assert parsed(b"data: " + data + b"\n\n") == [ServerSentEvent("", data)]


@given(
    st.lists(
        st.sampled_from([b"data: 1", b"data", b"event: e", b": c", b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b" x"])
    ),
    st.sets(st.integers(0, 80)),
)
def test_any_cut_gives_the_same_events(parts: list[bytes], places: set[int]) -> None:
    text = b"".join(parts)
    edges = [0, *sorted(place for place in places if place < len(text)), len(text)]
    assert parsed(*(text[low:high] for low, high in itertools.pairwise(edges))) == parsed(text)


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that an event may have here."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    return 1000


@pytest.mark.parametrize("line", [b"x", b"data: x\n", b"data:\n"])
def test_an_event_without_an_end_is_given_up(line: bytes, bound: int) -> None:
    parser = SseParser()
    with pytest.raises(EventTooLong):
        for _ in range(bound + 1):
            parser.feed(line)


def test_comments_never_add_up_to_an_event_that_is_too_long(bound: int) -> None:
    parser = SseParser()
    for _ in range(bound):
        assert parser.feed(b": ping\n") == []


def test_a_long_line_in_small_pieces_takes_time_in_proportion() -> None:
    parser = SseParser()
    parser.feed(b"data: ")
    before = time.process_time()
    for _ in range(2 * 2**20 // 64):
        parser.feed(b"x" * 64)
    assert len(parser.feed(b"\n\n")[0].data) == 2 * 2**20
    assert time.process_time() - before < 2
