"""Connections over real sockets, on uvloop and on asyncio's own loop."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from email.utils import parsedate_to_datetime

import pytest

from tests.http.serving import LOOPS, WAIT_S, Bounds, Served, serving
from tests.server.framing import Reply, replies
from tests.server.running import read_all, read_until

SHORT_S = 0.4


@pytest.fixture(scope="module", params=LOOPS)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with serving(request.param) as running:
        yield running


@pytest.fixture(scope="module", params=LOOPS)
def hasty(request: pytest.FixtureRequest) -> Iterator[Served]:
    """With bounds that a test can wait for."""
    bounds = Bounds(header_timeout_s=SHORT_S, body_stall_s=SHORT_S, write_stall_s=SHORT_S, keep_alive_s=SHORT_S)
    with serving(request.param, bounds) as running:
        yield running


def until(true: Callable[[], bool], why: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline_s, f"not so after {WAIT_S} s: {why}"
        time.sleep(0.01)


def get(path: str, *lines: str, version: str = "1.1", method: str = "GET") -> bytes:
    head = [f"{method} {path} HTTP/{version}", "host: x", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n"


def post(body: bytes, *lines: str, path: str = "/echo") -> bytes:
    return get(path, f"content-length: {len(body)}", *lines, method="POST") + body


LAST = get("/last", "connection: close")


def asked(served: Served, *pieces: bytes, pause_s: float = 0.02) -> bytes:
    """What comes until the server closes."""
    with served.connect() as client:
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(pause_s)
            with suppress(ConnectionError):
                client.sendall(piece)
        return read_all(client)


def test_a_reply_has_its_length_a_date_and_nothing_else(served: Served) -> None:
    with served.connect() as client:
        client.sendall(get("/"))
        ((status, headers, body),) = replies(read_until(client, b"ok"))
    assert (status, body) == (200, b"ok")
    assert set(headers) == {b"date", b"content-type", b"content-length"}
    assert abs(parsedate_to_datetime(headers[b"date"].decode()).timestamp() - time.time()) < 5


def test_a_connection_serves_many_requests(served: Served) -> None:
    with served.connect() as client:
        for number in range(50):
            body = b"%d" % number * number
            client.sendall(post(body) if number % 2 else get("/"))
            received = read_until(client, b"\r\n\r\n")
            wanted = len(body) if number % 2 else 2
            while len(received.partition(b"\r\n\r\n")[2]) < wanted:
                received += client.recv(65536)
            assert replies(received)[0].body == (body if number % 2 else b"ok")


def test_a_reply_of_unknown_length_is_chunked_and_the_connection_goes_on(served: Served) -> None:
    first, last = replies(asked(served, get("/chunks/3"), LAST))
    assert first.headers[b"transfer-encoding"] == b"chunked"
    assert (first.body, last.body) == (b"0,1,2,", b"ok")


def test_http_1_0_gets_no_chunks_and_the_end_of_the_connection(served: Served) -> None:
    head, _, body = asked(served, get("/chunks/3", version="1.0")).partition(b"\r\n\r\n")
    assert body == b"0,1,2,"
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_cut_reply_can_not_be_taken_for_a_whole_one(served: Served, version: str) -> None:
    with served.connect() as client:
        client.sendall(get("/cut", version=version))
        received = b""
        try:
            while data := client.recv(65536):
                received += data
        except ConnectionResetError:
            assert version == "1.0"
        else:
            assert version == "1.1"
            assert received.endswith(b"half\r\n6\r\n, more\r\n"), "without the last chunk"


@pytest.mark.parametrize(("status", "method"), [(204, "GET"), (304, "GET"), (200, "HEAD")])
def test_what_has_no_body_has_none(served: Served, status: int, method: str) -> None:
    received = asked(served, get(f"/status/{status}", method=method), LAST)
    head, _, rest = received.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert rest.startswith(b"HTTP/1.1 200 OK")


def test_head_tells_the_length(served: Served) -> None:
    received = asked(served, get("/", method="HEAD"), LAST)
    head, _, rest = received.partition(b"\r\n\r\n")
    assert b"content-length: 2" in head
    assert rest.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("path", ["/fail", "/nothing", "/inject"])
def test_an_application_that_fails_to_answer_ends_the_connection(served: Served, path: str) -> None:
    assert asked(served, get(path)) == b""
    assert replies(asked(served, LAST))[0].status == 200


def test_a_body_arrives_whole_however_it_is_cut(served: Served) -> None:
    body = bytes(range(256)) * 20
    request = post(body)
    pieces = [request[start : start + 700] for start in range(0, len(request), 700)]
    assert replies(asked(served, *pieces, LAST, pause_s=0.001))[0].body == body


def test_a_large_body_arrives_whole(served: Served) -> None:
    body = b"y" * 900_000
    assert replies(asked(served, post(body), LAST))[0].body == body


def test_a_body_past_the_bound_is_refused_and_what_follows_is_no_request(served: Served) -> None:
    (reply,) = replies(asked(served, post(b"y" * 1_000_001, "connection: keep-alive") + LAST))
    assert (reply.status, reply.headers[b"connection"]) == (413, b"close")


def test_requests_sent_ahead_are_answered_in_order_and_few_are_read(served: Served) -> None:
    served.call(served.hold)
    with served.connect() as client:
        client.sendall(get("/hold") + b"".join(get(f"/{number}") for number in range(3000)) + LAST)
        until(lambda: served.began == ["/hold"], "the first is in work")
        (connection,) = [each for each in served.server.connections if each._requests]
        time.sleep(0.1)
        assert len(connection._requests) <= 9
        served.call(served.release.set)
        got = replies(read_all(client))
    assert len(got) == 3002
    assert served.began[1:-1] == [f"/{number}" for number in range(3000)]


def test_a_body_sent_ahead_is_not_read_before_its_turn(served: Served) -> None:
    served.call(served.hold)
    body = b"z" * 900_000
    with served.connect() as client:
        sent = threading.Thread(target=client.sendall, args=(get("/hold") + post(body) + LAST,))
        sent.start()
        until(lambda: served.began == ["/hold"], "the first is in work")
        (connection,) = [each for each in served.server.connections if each._requests]
        until(lambda: connection._paused, "the connection is not read")
        served.call(served.release.set)
        first, second, _ = replies(read_all(client))
        sent.join()
    assert (first.body, second.body) == (b"ok", body)


def test_a_slow_reader_makes_the_application_wait(served: Served) -> None:
    with served.connect() as client:
        client.sendall(get("/flood/8000", "connection: close"))
        until(lambda: any(each.write_paused for each in served.server.connections), "writing is paused")
        (connection,) = [each for each in served.server.connections if each.write_paused]
        assert connection._transport.get_write_buffer_size() < 200_000
        received = 0
        while data := client.recv(2**20):
            received += data.count(b"x")
    assert received == 8_000_000 + 1  # "text/plain"


def test_a_head_that_is_not_followed_by_a_body_goes_out_at_once(served: Served) -> None:
    served.call(served.hold)
    with served.connect() as client:
        client.sendall(get("/begin"))
        assert b"transfer-encoding: chunked" in read_until(client, b"\r\n\r\n")
        served.call(served.release.set)
        assert read_until(client, b"0\r\n\r\n") == b"2\r\nok\r\n0\r\n\r\n"


@pytest.mark.parametrize("path", ["/hold", "/begin"])
def test_who_resets_the_connection_is_gone(served: Served, path: str) -> None:
    served.call(served.hold)
    with served.connect() as client:
        client.sendall(get(path))
        until(lambda: served.began == [path], "begun")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    until(lambda: served.gone == [path], "gone")
    served.call(served.release.set)


def test_who_closes_is_gone_and_who_half_closes_gets_the_reply(served: Served) -> None:
    served.call(served.hold)
    with served.connect() as leaving, served.connect() as waiting:
        for client in (leaving, waiting):
            client.sendall(get("/hold"))
        until(lambda: served.began == ["/hold"] * 2, "begun")
        waiting.shutdown(socket.SHUT_WR)
        leaving.close()
        until(lambda: served.gone == ["/hold"], "one is gone")
        served.call(served.release.set)
        *interim, reply = replies(read_all(waiting))
    assert {each.status for each in interim} <= {100}
    assert (reply.status, reply.body) == (200, b"ok")
    assert served.gone == ["/hold"]


def took(action: Callable[[], bytes]) -> tuple[bytes, float]:
    began_s = time.monotonic()
    return action(), time.monotonic() - began_s


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"GET / HTTP/1.1\r\nhost:", 408, id="part of a head"),
        pytest.param(get("/") + b"GE", 408, id="part of a second head"),
        pytest.param(get("/"), None, id="nothing after a request"),
        pytest.param(post(b"hello")[:-1], 408, id="part of a body"),
        pytest.param(
            get("/echo", "transfer-encoding: chunked", method="POST") + b"5\r\nhel", 408, id="part of a chunk"
        ),
    ],
)
def test_who_waits_too_long_is_let_go(hasty: Served, sent: bytes, status: int | None) -> None:
    received, took_s = took(lambda: asked(hasty, sent))
    statuses = [reply.status for reply in replies(received) if reply.status != 200]
    assert statuses == ([] if status is None else [status])
    assert took_s > SHORT_S * 0.9


def test_a_body_that_goes_on_slowly_is_not_stalled(hasty: Served) -> None:
    body = b"0123456789"
    pieces = [post(body)[:-10], *[body[at : at + 1] for at in range(10)], LAST]
    received, took_s = took(lambda: asked(hasty, *pieces, pause_s=SHORT_S / 5))
    assert replies(received)[0].body == body
    assert took_s > SHORT_S * 2


def test_a_head_that_goes_on_slowly_is_refused(hasty: Served) -> None:
    pieces = [b"GET / HTTP/1.1\r\n", *[b"a: b\r\n"] * 12]
    received, _ = took(lambda: asked(hasty, *pieces, pause_s=SHORT_S / 5))
    assert [reply.status for reply in replies(received)] == [408]


def test_a_reader_that_takes_nothing_is_given_up(hasty: Served) -> None:
    hasty.gone.clear()
    with hasty.connect(receive_buffer=4096) as client:
        client.sendall(get("/flood/100000"))
        until(lambda: hasty.gone == ["/flood/100000"], "gone")
        assert len(read_all(client)) < 10_000_000


def test_an_unwanted_body_ends_the_connection_after_the_reply(hasty: Served) -> None:
    with hasty.connect() as client:
        client.sendall(get("/", "content-length: 1000000000", method="POST"))
        (reply,) = replies(read_until(client, b"ok"))
        assert reply.headers[b"connection"] == b"close"
        deadline_s = time.monotonic() + WAIT_S
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline_s:
                client.sendall(b"z" * 10_000)


def answered(client: socket.socket) -> list[Reply]:
    client.sendall(get("/"))
    return replies(read_until(client, b"ok"))


@pytest.mark.parametrize("loop_kind", LOOPS)
def test_two_thousand_idle_connections_keep_nobody_waiting(loop_kind: str) -> None:
    count = 2000
    with serving(loop_kind, Bounds(header_timeout_s=60, keep_alive_s=60)) as served, ExitStack() as stack:
        idle = [stack.enter_context(served.connect()) for _ in range(count)]
        for client in idle[::2]:
            assert answered(client)[0].status == 200
        until(lambda: len(served.server.connections) == count, "all are accepted")
        assert len(served.server.deadlines) <= count + 10
        _, took_s = took(lambda: asked(served, LAST))
        assert took_s < 5
        assert all(answered(client)[0].status == 200 for client in idle[::100])


@pytest.mark.parametrize("loop_kind", LOOPS)
def test_draining_answers_what_has_arrived_and_closes_what_is_idle(loop_kind: str) -> None:
    with serving(loop_kind) as served, ExitStack() as stack:
        idle, fresh, partial, busy, ahead, streaming = (stack.enter_context(served.connect()) for _ in range(6))
        answered(idle)
        partial.sendall(b"GET / HTT")
        busy.sendall(get("/hold"))
        streaming.sendall(get("/begin"))
        ahead.sendall(get("/hold") + get("/next"))
        until(lambda: sorted(served.began[-3:]) == ["/begin", "/hold", "/hold"], "begun")
        drained = threading.Event()

        async def drain() -> None:
            await served.server.drain()
            drained.set()

        tasks = []
        served.call(lambda: tasks.append(served.loop.create_task(drain())))
        for client in (idle, fresh, partial):
            assert read_all(client) == b""
        with pytest.raises(ConnectionError):
            served.connect()
        assert not drained.is_set()
        served.call(served.release.set)
        (reply,) = replies(read_all(busy))
        assert reply.headers[b"connection"] == b"close"
        assert [each.body for each in replies(read_all(ahead))] == [b"ok", b"ok"]
        assert replies(read_all(streaming))[0].body == b"ok"
        assert drained.wait(WAIT_S)


@pytest.mark.parametrize("loop_kind", LOOPS)
def test_draining_answers_what_was_sent_before_and_not_yet_read(loop_kind: str) -> None:
    with serving(loop_kind) as served, ExitStack() as stack:
        kept = stack.enter_context(served.connect())
        answered(kept)
        clients: list[socket.socket] = [kept]

        def send_and_drain() -> None:
            """In the server's own thread, so that it reads nothing in between."""
            clients.extend(stack.enter_context(served.connect()) for _ in range(100))
            for client in clients:
                client.sendall(get("/"))
            clients.append(served.loop.create_task(served.server.drain()))  # type: ignore[arg-type]

        served.call(send_and_drain)
        clients.pop()
        for client in clients:
            (reply,) = replies(read_all(client))
            assert (reply.status, reply.headers[b"connection"]) == (200, b"close")


def test_the_status_line_names_the_status(served: Served) -> None:
    for status, phrase in ((200, b"OK"), (404, b"Not Found"), (503, b"Service Unavailable"), (204, b"No Content")):
        line = asked(served, get(f"/status/{status}", "connection: close")).partition(b"\r\n")[0]
        assert re.fullmatch(rb"HTTP/1\.1 %d %b" % (status, phrase), line)
