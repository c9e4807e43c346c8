"""A client that goes away, or reads nothing, costs nothing more: at every stage its work ends."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from tests.server.running import COMPLETIONS, Running, read_all, read_until


def gone(server: Running) -> int:
    """Requests whose client went away."""
    page = server.ask("GET", "/metrics").body.decode()
    counts = re.findall(r'andthen_requests_total\{route="completions",status="499"\} (\S+)', page)
    return int(float(counts[0])) if counts else 0


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [
        pytest.param("hold", {}, id="waiting for its turn"),
        pytest.param("hold", {"stream": True}, id="stream that waits for its turn"),
        pytest.param("hold", {"padding": "x" * 90_000}, id="a large body, waiting for its turn"),
        pytest.param("slow", {"max_tokens": 1000}, id="generating"),
        pytest.param("slow", {"max_tokens": 1000, "stream": True}, id="streaming"),
    ],
)
def test_leaving_ends_the_work(scripted: Running, prompt: str, fields: dict[str, Any]) -> None:
    before = gone(scripted)
    with scripted.sent(prompt, **fields):
        scripted.until_jobs(1)
    scripted.until_jobs(0)
    scripted.until(lambda: gone(scripted) == before + 1, "the request was counted as 499")


def test_leaving_an_opened_but_silent_stream_ends_the_work(scripted: Running) -> None:
    with scripted.sent("hold", stream=True) as client:
        read_until(client, b": \n\n")
        assert scripted.jobs() == 1
    scripted.until_jobs(0)


def test_leaving_by_reset_ends_the_work(scripted: Running) -> None:
    with scripted.sent("slow", max_tokens=1000, stream=True) as client:
        read_until(client, b'" 1"')
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    scripted.until_jobs(0)


def test_leaving_with_a_second_request_sent_ahead_ends_the_first_and_never_begins_the_second(scripted: Running) -> None:
    with scripted.sent("hold") as client:
        scripted.until_jobs(1)
        scripted.send(client, "hold")
    scripted.until_jobs(0)


def test_leaving_while_the_body_is_sent(scripted: Running) -> None:
    before = gone(scripted)
    with scripted.connect() as client:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nx-api-key: {scripted.key}\r\ncontent-length: 99\r\n\r\n"
        client.sendall(head.encode() + b"{")
        scripted.until(lambda: "andthen_open_requests 2" in scripted.ask("GET", "/metrics").body.decode(), "begun")
    scripted.until(lambda: gone(scripted) == before + 1, "the request was counted as 499")
    assert scripted.jobs() == 0


def test_a_reader_that_takes_nothing_is_given_up(scripted: Running) -> None:
    before = gone(scripted)
    with scripted.connect(receive_buffer=4096) as client:
        scripted.send(client, "go", stream=True, n=64, max_tokens=1000)
        scripted.until(lambda: gone(scripted) == before + 1, "the stalled reader was given up")
    scripted.until_jobs(0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_reader_that_takes_nothing_of_a_large_reply_is_given_up(scripted: Running, stream: bool) -> None:
    before = gone(scripted)
    with scripted.connect(receive_buffer=4096) as client:
        scripted.send(client, "flood", stream=stream)
        scripted.until(lambda: gone(scripted) == before + 1, "the stalled reader was given up")
        assert len(read_all(client)) < 8_000_000


def test_a_large_reply_arrives_whole(scripted: Running) -> None:
    assert scripted.complete("flood").json["choices"][0]["text"] == "x" * 8_000_000
