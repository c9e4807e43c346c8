"""Streams on the wire: framing, the first event, silence, the end, and errors after the first byte."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest

from tests.server.running import COMPLETIONS, Running, read_all, read_until

LAST_CHUNK = b"\r\n0\r\n\r\n"


def head_and_body(reply: bytes) -> tuple[bytes, bytes]:
    head, _, body = reply.partition(b"\r\n\r\n")
    return head.lower(), body


def dechunked(body: bytes) -> bytes:
    """The payload as far as it is complete, and its chunks are well-formed."""
    payload = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert body == b"\r\n"
            break
        assert body[length : length + 2] == b"\r\n"
        payload += body[:length]
        body = body[length + 2 :]
    return payload


def frames(payload: bytes) -> list[Any]:
    """The JSON of the data frames."""
    assert payload.endswith(b"\n\n")
    datas = [frame.removeprefix("data: ") for frame in payload.decode().split("\n\n") if frame.startswith("data: ")]
    return [json.loads(data) for data in datas if data != "[DONE]"]


def streamed(server: Running, prompt: str, *headers: str, **fields: Any) -> tuple[bytes, bytes]:
    with server.sent(prompt, "connection: close", *headers, stream=True, **fields) as client:
        return head_and_body(read_all(client))


def test_a_stream_is_a_chunk_for_each_event_and_ends_with_done(scripted: Running) -> None:
    head, body = streamed(scripted, "go", max_tokens=3, stream_options={"include_usage": True})
    assert head.startswith(b"http/1.1 200 ok\r\n")
    assert b"\r\ncontent-type: text/event-stream\r\n" in head
    assert b"\r\nx-andthen-plan: prompt=native" in head
    assert b"\r\nserver-timing: queue;dur=" in head or b"\r\nserver-timing" not in head
    assert body.endswith(b"data: [DONE]\n\n" + LAST_CHUNK)
    *chunks, usage = frames(dechunked(body))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " 1 2 3"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "length"]
    assert {chunk["id"].encode() for chunk in chunks} == {head.split(b"x-request-id: ")[1].split(b"\r\n")[0]}
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 3)


@pytest.mark.parametrize("agent", ["SGPClient/Python 0.1.0a62", "AsyncSGPClient/Python 0.7.0"])
def test_clients_that_fail_on_done_get_none(scripted: Running, agent: str) -> None:
    _, body = streamed(scripted, "go", f"user-agent: {agent}", max_tokens=1)
    assert b"[DONE]" not in body
    assert body.endswith(LAST_CHUNK)


def test_a_connection_serves_again_after_a_stream(scripted: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", scripted.port, timeout=15)
    for _ in range(3):
        body = json.dumps({"model": "local/count", "prompt": "go", "stream": True})
        connection.request("POST", COMPLETIONS, body, {"x-api-key": scripted.key})
        assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
    connection.close()


def test_an_early_error_is_an_ordinary_reply(scripted: Running) -> None:
    answer = scripted.complete("refuse", stream=True)
    assert (answer.status, answer.code) == (503, "no_capacity")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["x-should-retry"] == "true"


def test_a_silent_stream_is_opened_and_kept_open_by_comments(scripted: Running) -> None:
    head, body = streamed(scripted, "late 1.3", max_tokens=1)
    assert head.startswith(b"http/1.1 200 ok")
    payload = dechunked(body)
    assert payload.startswith(b": \n\n: \n\ndata: ")
    assert payload.count(b": \n\n") == 2, "after 0.6 s and 0.4 s; 0.3 s are no silence"


def test_a_stream_with_text_gets_no_comments(scripted: Running) -> None:
    _, body = streamed(scripted, "slow", max_tokens=12)
    assert b"\n: \n" not in body


def test_an_error_after_the_first_byte_is_told_and_the_reply_stays_incomplete(scripted: Running) -> None:
    _, body = streamed(scripted, "break", max_tokens=9)
    assert not body.endswith(LAST_CHUNK)
    payload = dechunked(body)
    assert [chunk["choices"][0]["text"] for chunk in frames(payload)[:2]] == [" 1", " 2"]
    assert b"[DONE]" not in payload
    last = payload.split(b"\n\n")[-2]
    assert last.startswith(b"event: error\ndata: ")
    assert json.loads(last.removeprefix(b"event: error\ndata: ")) == {
        "error": {"message": "the engine broke", "type": "server_error", "param": None, "code": "internal_error"}
    }


def test_a_client_of_the_standard_library_sees_that_a_broken_stream_is_incomplete(scripted: Running) -> None:
    with pytest.raises(http.client.IncompleteRead):
        scripted.complete("break", stream=True, max_tokens=9)


def test_a_broken_reply_that_is_no_stream_is_a_plain_error(scripted: Running) -> None:
    answer = scripted.complete("break", max_tokens=9)
    assert (answer.status, answer.code) == (500, "internal_error")


def test_text_arrives_as_it_is_made(scripted: Running) -> None:
    with scripted.sent("slow", stream=True, max_tokens=50) as client:
        read_until(client, b'" 2"')
        scripted.until_jobs(1)
    scripted.until_jobs(0)
