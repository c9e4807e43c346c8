"""Nothing is sent upstream, and nothing connected, before the request's intent is written."""

from __future__ import annotations

import sqlite3
import threading
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from andthen.ledger.records import Budget
from tests.server.test_ledger import key, rows
from tests.serving import Server, serving

REPLY = (
    b'{"choices": [{"index": 0, "text": " there", "finish_reason": "stop"}], '
    b'"usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}}'
)
WAIT_S = 10


class Upstream(ThreadingHTTPServer):
    """A server that speaks completions, and what has reached it."""

    daemon_threads = True

    def __init__(self) -> None:
        self.connections = self.requests = 0
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[object, object]:  # type: ignore[override]
        self.connections += 1
        return super().get_request()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            self.server.requests += 1
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(REPLY)))
        self.end_headers()
        self.wfile.write(REPLY)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(tmp_path: Path, upstream: Upstream) -> Iterator[Server]:
    settings = f"""
        [models."local/tale"]
        enabled = false

        [models."team/text"]
        address = "http://127.0.0.1:{upstream.server_port}"
        language = "openai_completions"
        context = 2048
    """
    with serving(tmp_path, settings=settings) as running:
        yield running


@contextmanager
def held(server: Server) -> Iterator[None]:
    """Another process writes into the database for as long as this lasts."""
    with closing(sqlite3.connect(server.home / "andthen.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def refused(asked: Server, **fields: Any) -> int:
    """The status that a request is refused with."""
    with pytest.raises(urllib.error.HTTPError) as told:
        asked.complete(model="team/text", prompt="Hello", **fields)
    with told.value as error:
        return error.code


def test_nothing_is_sent_while_the_database_is_slow(server: Server, upstream: Upstream) -> None:
    asked = key(server, "early", budgets=(Budget(window="total", tokens=1000),))
    with ThreadPoolExecutor(1) as pool:
        with held(server):
            asking = pool.submit(asked.complete, model="team/text", prompt="Hello", max_tokens=4)
            time.sleep(0.5)
            assert (upstream.connections, upstream.requests) == (0, 0)
        assert asking.result(WAIT_S)["choices"][0]["text"] == " there"
    assert (upstream.connections, upstream.requests) == (1, 1)
    (row,) = rows(server, "early")
    assert (row["status"], row["prompt_tokens"], row["completion_tokens"]) == (200, 2, 1)


def test_a_request_without_a_budget_waits_for_no_database(server: Server, upstream: Upstream) -> None:
    asked = key(server, "free")
    with held(server):
        assert asked.complete(model="team/text", prompt="Hello", max_tokens=4)["choices"][0]["text"] == " there"
    (row,) = rows(server, "free")
    assert (row["status"], row["completion_tokens"]) == (200, 1)


def test_what_cannot_be_reserved_is_refused_soon_and_never_sent(server: Server, upstream: Upstream) -> None:
    asked = key(server, "unwritten", budgets=(Budget(window="total", tokens=1000),))
    began_s = time.monotonic()
    with held(server):
        assert refused(asked, max_tokens=4) == 503
    assert time.monotonic() - began_s < WAIT_S / 2
    assert upstream.requests == 0
    (row,) = rows(server, "unwritten")
    assert (row["status"], row["code"], row["retries"]) == (503, "ledger_unavailable", 0)


def test_what_no_budget_has_room_for_is_never_sent_and_was_no_exchange(server: Server, upstream: Upstream) -> None:
    asked = key(server, "poor", budgets=(Budget(window="total", tokens=10),))
    assert refused(asked, max_tokens=40, n=3, best_of=3) == 429
    assert upstream.requests == 0
    (row,) = rows(server, "poor")
    assert (row["status"], row["code"], row["retries"]) == (429, "budget_exceeded", 0)
    with closing(sqlite3.connect(server.home / "andthen.db")) as raw:
        assert raw.execute("SELECT count(*) FROM calls").fetchone() == (0,)
