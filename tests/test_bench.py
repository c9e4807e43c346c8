"""What `make bench` feeds to the languages is what vendors send, and what it measures the books beside has none."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from andthen.books.store import open_sqlite
from andthen.contract.events import Event, Finished, Text, Usage
from andthen.contract.limits import Limits
from andthen.contract.request import parse
from andthen.vendors.settings import Remote
from bench.replies import CHUNKS, LANGUAGES
from tests.serving import serving

REQUEST = parse(msgspec.json.encode({"model": "bench/draft", "prompt": "Once", "max_tokens": CHUNKS}), Limits())


def read(language: str, pieces: tuple[bytes, ...], *, streams: bool) -> list[Event]:
    remote = Remote(vendor="Vendor", address="https://vendor.test", language=language)
    decoder = remote.resolved().wire().decoder(REQUEST, remote.target("draft-1", at_s=0.0), streams=streams)
    return [*(event for piece in pieces for event in decoder.feed(piece)), *decoder.end()]


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_prepared_stream_brings_a_word_a_chunk_and_the_whole_reply_the_same_text(language: str) -> None:
    prepared = LANGUAGES[language]()
    streamed = read(language, prepared.pieces, streams=True)
    assert sum(isinstance(event, Text) for event in streamed) == CHUNKS
    assert text(streamed) == text(read(language, (prepared.whole,), streams=False)) != ""
    assert [event.reason for event in streamed if isinstance(event, Finished)] == ["length"]
    assert [event.completion_tokens for event in streamed if isinstance(event, Usage)] == [CHUNKS]


def test_the_server_without_books_answers_and_writes_nothing_down(tmp_path: Path) -> None:
    with serving(tmp_path, command=(sys.executable, "-m", "bench.bookless")) as server:
        assert server.complete(max_tokens=2)["usage"]["completion_tokens"] == 2
    with closing(open_sqlite(tmp_path / "andthen.db")) as store:
        assert store.usage(["key"]) == []
