"""Bounds on what a client may send, on the wire."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest

from tests.server.framing import replies
from tests.server.running import COMPLETIONS, Running, read_all, read_until

GOOD = json.dumps({"model": "local/count", "prompt": "go", "max_tokens": 2}).encode()


def refusal(reply: bytes) -> tuple[int, str]:
    head, _, body = reply.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def post(server: Running, *headers: str) -> bytes:
    lines = [f"POST {COMPLETIONS} HTTP/1.1", "host: x", f"x-api-key: {server.key}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def exchanged(server: Running, data: bytes) -> bytes:
    """What comes until the server ends the connection."""
    with server.connect() as client:
        client.sendall(data)
        return read_all(client)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.1\r\nx: " + b"a" * 9000 + b"\r\n\r\n", id="one large header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"x: aaaaaaaa\r\n" * 900 + b"\r\n", id="many headers"),
        pytest.param(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", id="a large path"),
    ],
)
def test_large_headers(scripted: Running, head: bytes) -> None:
    assert refusal(exchanged(scripted, head)) == (431, "headers_too_large")


def test_a_header_without_end_is_refused_before_it_ends(scripted: Running) -> None:
    with scripted.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nx: a")
        time.sleep(0.05)
        client.sendall(b"a" * 9000)
        began = time.monotonic()
        assert refusal(read_all(client)) == (431, "headers_too_large")
        assert time.monotonic() - began < 5


def test_headers_within_the_bound_are_taken_though_the_body_came_with_them(scripted: Running) -> None:
    body = json.dumps({"model": "local/count", "prompt": "go " + "a" * 50_000}).encode()
    reply = exchanged(scripted, post(scripted, f"content-length: {len(body)}", "connection: close") + body)
    assert reply.startswith(b"HTTP/1.1 200 OK")


def test_headers_that_take_too_long(scripted: Running) -> None:
    assert refusal(exchanged(scripted, b"GET / HTTP/1.1\r\nhost:")) == (408, "request_timeout")
    assert exchanged(scripted, b"") == b"", "nothing was asked, nothing is said"


def test_headers_that_take_too_long_on_a_connection_that_has_served(scripted: Running) -> None:
    with scripted.connect() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        read_until(client, b'{"status":"ok"}')
        client.sendall(b"GET /healthz HTTP/1.1\r\nhos")
        assert refusal(read_all(client)) == (408, "request_timeout")


def test_a_body_that_pauses(scripted: Running) -> None:
    with scripted.connect() as client:
        client.sendall(post(scripted, "content-length: 100") + b'{"model"')
        reply = read_until(client, b"}}")
    assert refusal(reply) == (408, "request_timeout")
    assert b"x-should-retry: true" in reply


def test_a_large_body_is_refused_by_its_length_before_it_is_sent(scripted: Running) -> None:
    with scripted.connect() as client:
        client.sendall(post(scripted, "content-length: 100001", "expect: 100-continue"))
        assert refusal(read_until(client, b"}}")) == (413, "payload_too_large")


def test_a_large_body_of_unknown_length_is_refused_when_it_is_too_much(scripted: Running) -> None:
    chunk = b"2710\r\n" + b" " * 10_000 + b"\r\n"
    with scripted.connect() as client:
        client.sendall(post(scripted, "transfer-encoding: chunked"))
        for _ in range(11):
            client.sendall(chunk)
        assert refusal(read_all(client)) == (413, "payload_too_large")


@pytest.mark.parametrize(
    "begun", [b"0\r\nx: ", b"0\r\n", b"3;", b"3;a="], ids=["value", "name", "extension", "its value"]
)
def test_what_is_endless_beside_a_body_is_refused(scripted: Running, begun: bytes) -> None:
    with scripted.connect() as client:
        client.sendall(post(scripted, "transfer-encoding: chunked") + b"1\r\n{\r\n" + begun)
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - began < 0.5:  # far less than `body_stall_s`
                client.sendall(b"a" * 4000)
                time.sleep(0.01)
        assert refusal(read_all(client)) == (431, "headers_too_large")


def test_an_endless_body_ends_the_connection(scripted: Running) -> None:
    chunk = b"2710\r\n" + b" " * 10_000 + b"\r\n"
    with scripted.connect() as client:
        client.sendall(post(scripted, "transfer-encoding: chunked"))
        deadline = time.monotonic() + 10
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                client.sendall(chunk)


def test_a_body_in_pieces_and_on_demand(scripted: Running) -> None:
    with scripted.connect() as client:
        client.sendall(post(scripted, f"content-length: {len(GOOD)}", "expect: 100-continue"))
        assert read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        for byte in GOOD:
            client.sendall(bytes([byte]))
        assert b'" 1 2"' in read_until(client, b"usage")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ('application/json; charset="utf-8"', 200),
        ("application/vnd.api+json", 200),
        (None, 200),
        ("application/x-www-form-urlencoded", 415),
        ("application/json; charset=latin-1", 415),
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
        ("", 415),
    ],
)
def test_content_types(scripted: Running, kind: str | None, status: int) -> None:
    answer = scripted.ask("POST", COMPLETIONS, GOOD, content_type=kind)
    assert answer.status == status
    if status == 415:
        assert answer.code == "unsupported_media_type"
        assert "content-type: application/json" in answer.json["error"]["message"]


def test_a_packed_body_is_refused(scripted: Running) -> None:
    assert scripted.ask("POST", COMPLETIONS, GOOD, content_encoding="gzip").status == 415
    assert scripted.ask("POST", COMPLETIONS, GOOD, content_encoding="identity").status == 200


def test_requests_sent_ahead_are_answered_in_their_order(scripted: Running) -> None:
    bodies = [GOOD.replace(b"2}", b"%d}" % count) for count in (3, 1, 2)]
    last = "connection: close"
    data = b"".join(
        post(scripted, f"content-length: {len(body)}", *([last] if body is bodies[-1] else [])) + body
        for body in bodies
    )
    reply = exchanged(scripted, data)
    assert [line.split(b'"text":"')[1].split(b'"')[0] for line in reply.split(b"\r\n") if b'"text"' in line] == [
        b" 1 2 3",
        b" 1",
        b" 1 2",
    ]


def test_garbage_behind_a_request_in_work_does_not_spoil_its_reply(scripted: Running) -> None:
    with scripted.sent("slow", stream=True, max_tokens=10) as client:
        received = read_until(client, b'" 1"')
        client.sendall(b"\x00\x01\x02 garbage\r\n\r\n")
        reply, refused = replies(received + read_all(client))
    assert (reply.status, refused.status) == (200, 400)
    assert reply.body.endswith(b"data: [DONE]\n\n")


def test_leaving_behind_garbage_ends_the_work(scripted: Running) -> None:
    with scripted.sent("hold") as client:
        scripted.until_jobs(1)
        client.sendall(b"\x00\x01\x02 garbage\r\n\r\n")
    scripted.until_jobs(0)


def test_the_log_has_no_traceback_and_nothing_of_prompts_and_keys(scripted: Running) -> None:
    done = scripted.complete("unmentionable words", user="unmentionable user", unmentionable_field=1, max_tokens=1)
    scripted.ask("GET", "/unmentionable-path", x_api_key="unmentionable-key")
    refused = scripted.complete("x", model="local/unmentionable")

    def lines() -> dict[str, dict[str, Any]]:
        return {line["request"]: line for line in scripted.events("request")}

    ids = [reply.headers["x-request-id"] for reply in (done, refused)]
    scripted.until(lambda: lines().keys() >= set(ids), "the log has them")  # lines are written after their replies
    log = scripted.log
    assert "unmentionable" not in log
    assert scripted.key not in log
    assert "Traceback" not in log
    line, refusal = (lines()[id] for id in ids)
    assert line["model"] == "local/count"
    assert line["key_id"].startswith("key_")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 1)
    assert "code" not in line
    assert (refusal["status"], refusal["code"]) == (404, "model_not_found")
    assert "unmentionable" not in scripted.ask("GET", "/metrics").body.decode()
