"""A client that ends its side of the connection behind its request gets its reply; one that closes ends its work."""

from __future__ import annotations

import http.client
import re
import socket
from typing import Any

import pytest

from tests.server.framing import GOOD, LAST, get, post, replies, sized
from tests.server.running import WAIT_S, Running, read_all, read_until


def keyed(server: Running, request: bytes) -> bytes:
    return request.replace(b"KEY", server.key.encode())


def half_closed(server: Running, request: bytes) -> bytes:
    """What comes after the request and the end of the sending side, until the server closes."""
    with server.connect() as client:
        client.sendall(keyed(server, request))
        client.shutdown(socket.SHUT_WR)
        return read_all(client)


def texts(body: bytes) -> str:
    return "".join(re.findall(r'"text":"([^"]*)"', body.decode()))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["go", "slow", "late 1"])
def test_a_half_closed_connection_gets_the_whole_reply(scripted: Running, prompt: str, stream: bool) -> None:
    with scripted.sent(prompt, max_tokens=10, stream=stream) as client:
        client.shutdown(socket.SHUT_WR)
        got = replies(read_all(client))
    assert [reply.status for reply in got if reply.status >= 200] == [200]
    assert {reply.status for reply in got[:-1]} <= {100}, "interim responses, which every client skips"
    assert texts(got[-1].body) == " 1 2 3 4 5 6 7 8 9 10"
    assert stream == (b"data: [DONE]\n\n" in got[-1].body)


def test_interim_responses_are_few(scripted: Running) -> None:
    with scripted.sent("late 3", max_tokens=1) as client:
        client.shutdown(socket.SHUT_WR)
        got = replies(read_all(client))
    assert 1 <= len([reply for reply in got if reply.status == 100]) <= 5


def test_a_stream_that_is_open_when_the_client_half_closes_is_completed(scripted: Running) -> None:
    with scripted.sent("slow", max_tokens=10, stream=True) as client:
        received = read_until(client, b'" 2"')
        client.shutdown(socket.SHUT_WR)
        (reply,) = replies(received + read_all(client))
    assert texts(reply.body) == " 1 2 3 4 5 6 7 8 9 10"


def test_a_client_library_gets_its_reply_through_a_half_closed_connection(scripted: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", scripted.port, timeout=WAIT_S)
    connection.request("POST", "/v1/completions", GOOD.replace(b'"go"', b'"late 1"'), {"x-api-key": scripted.key})
    connection.sock.shutdown(socket.SHUT_WR)
    reply = connection.getresponse()
    assert (reply.status, texts(reply.read())) == (200, " 1 2")
    connection.close()


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(get(b"host: x") + post(sized(GOOD), body=GOOD), [200, 200], id="two requests"),
        pytest.param(get(b"host: x", version=b"1.0"), [200], id="HTTP/1.0"),
        pytest.param(post(sized(GOOD), key=b"", body=GOOD), [401], id="a refused request"),
        pytest.param(get(b"host: x") + b"GET /heal", [200], id="a request and part of a head"),
        pytest.param(get(b"host: x") + post(sized(GOOD), body=GOOD[:9]), [200], id="a request and part of a body"),
        pytest.param(get(b"host: x") + get(), [200, 400], id="a request and a bad one"),
        pytest.param(post(sized(GOOD), key=b"", body=GOOD[:9]), None, id="part of a body that nobody reads"),
        pytest.param(b"GET /heal", [], id="part of a head"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_what_is_complete_when_a_client_half_closes_is_answered(
    scripted: Running, request_: bytes, expected: list[int] | None
) -> None:
    got = [reply.status for reply in replies(half_closed(scripted, request_)) if reply.status >= 200]
    assert got in ([[], [401]] if expected is None else [expected])


def test_half_closing_an_idle_connection_ends_it(scripted: Running) -> None:
    with scripted.connect() as client:
        client.sendall(get(b"host: x"))
        read_until(client, b'{"status":"ok"}')
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_half_closes_and_then_closes_ends_its_work(scripted: Running, stream: bool) -> None:
    with scripted.sent("hold", stream=stream) as client:
        scripted.until_jobs(1)
        client.shutdown(socket.SHUT_WR)
        read_until(client, b"HTTP/1.1 100 Continue\r\n\r\n")
        if stream:
            read_until(client, b": \n\n")
        assert scripted.jobs() == 1
    scripted.until_jobs(0)


def test_a_client_of_http_1_0_that_closes_ends_its_work(scripted: Running) -> None:
    body = GOOD.replace(b'"go"', b'"hold"')
    with scripted.connect() as client:
        client.sendall(keyed(scripted, post(sized(body), body=body).replace(b"HTTP/1.1", b"HTTP/1.0")))
        scripted.until_jobs(1)
    scripted.until_jobs(0)


@pytest.mark.parametrize(("prompt", "fields"), [("hold", {}), ("hold", {"stream": True}), ("slow", {"stream": True})])
def test_leaving_is_noticed_soon(scripted: Running, prompt: str, fields: dict[str, Any]) -> None:
    """Also of a stream whose next event or comment is far away: `slow` makes a token each tenth of a second."""
    import time

    with scripted.sent(prompt, max_tokens=1000, **fields) as client:
        scripted.until_jobs(1)
        client.close()
        began_s = time.monotonic()
        scripted.until_jobs(0)
    assert time.monotonic() - began_s < WAIT_S / 3


def test_a_connection_goes_on_beside_half_closed_ones(scripted: Running) -> None:
    with scripted.sent("late 1", max_tokens=1) as client:
        client.shutdown(socket.SHUT_WR)
        with scripted.connect() as other:
            other.sendall(LAST)
            assert [reply.status for reply in replies(read_all(other))] == [200]
        assert replies(read_all(client))[-1].status == 200
