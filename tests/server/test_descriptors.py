"""A server that runs out of file descriptors: what it answers, and that it goes on once there are some again."""

from __future__ import annotations

import http.client
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from andthen.ledger.records import Budget
from tests.books.own_postgres import OwnPostgres, postgres_of_its_own
from tests.books.sites import Books
from tests.server.running import COMPLETIONS, WAIT_S, Running, read_until, running

HELD = 200
"""Connections, many more than there is room for."""
ROOM = 40
BUSY_SHARE = 0.5
"""Of a processor, which a server that waits must not use."""
COMPLETION = {
    "id": "x", "object": "text_completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "text": " a", "finish_reason": "length"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip


class Vendor(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(COMPLETION).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def vendor() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Vendor) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        serving.join()


@pytest.fixture
def postgres() -> Iterator[OwnPostgres]:
    with postgres_of_its_own() as server:
        yield server


def descriptors(server: Running) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{server.process.pid}/fd")}  # noqa: PTH208 - names alone


def lasting_descriptors(server: Running) -> set[int]:
    """Those that stay for half a second: the thread that posts the journal opens files for moments."""
    found = descriptors(server)
    for _ in range(20):
        time.sleep(0.5)
        before, found = found, descriptors(server)
        if found == before:
            break
    return found


@contextmanager
def bounded(server: Running, room: int) -> Iterator[None]:
    """It may open so many files more."""
    pid = server.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    opened = lasting_descriptors(server)
    free = [number for number in range(len(opened) + room + 1) if number not in opened]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[room], hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


class Kept:
    """A connection that was made while there was room."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
        assert self.complete("local/count")[0] == 200

    def complete(self, model: str) -> tuple[int, str]:
        """The status, and the error's code and message."""
        body = json.dumps({"model": model, "prompt": "go", "max_tokens": 1})
        headers = {"content-type": "application/json", "x-api-key": self._server.key}
        self.connection.request("POST", COMPLETIONS, body, headers)
        reply = self.connection.getresponse()
        error = json.loads(reply.read()).get("error", {"code": "", "message": ""})
        return reply.status, f"{error['code']}: {error['message']}"


NO_CAPACITY = (503, "no_capacity: The server is out of file descriptors: send the request again.")


def check_log(server: Running) -> None:
    (line,) = server.events("out_of_file_descriptors")
    assert "ulimit -n" in line["remedy"]


def processor_s(pid: int) -> float:
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def test_connections_beyond_the_bound_are_refused_and_no_others(tmp_path: Path) -> None:
    with running(tmp_path / "home") as server, ExitStack() as opened:
        kept = Kept(server)
        opened.callback(kept.connection.close)
        with bounded(server, ROOM):
            answers: list[bytes] = []
            for _ in range(HELD):
                client = opened.enter_context(server.connect())
                try:
                    server.send(client, "go", max_tokens=1)
                    answers.append(read_until(client, b"}"))
                except (AssertionError, OSError):  # closed without an answer: the last are kept for others
                    answers.append(b"")
            served = [answer for answer in answers if answer.startswith(b"HTTP/1.1 200")]
            refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503")]
            assert 0 < len(served) < ROOM
            assert refused
            assert all(b"out of file descriptors" in one and b'"code":"no_capacity"' in one for one in refused)
            assert all(b"\r\nretry-after: 1\r\n" in one and b"\r\nx-should-retry: true\r\n" in one for one in refused)
            assert kept.complete("local/count")[0] == 200
            began_s = processor_s(server.process.pid)
            time.sleep(1)
            assert processor_s(server.process.pid) - began_s < BUSY_SHARE
            check_log(server)
            opened.close()
            server.until(lambda: len(descriptors(server)) < ROOM, "the connections are closed")
            assert server.complete("go").status == 200
        assert not server.events("request_failed")


def lose_database(server: Running, books: Books) -> None:
    books.do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'andthen'")


def lose_engine(server: Running, _books: Books) -> None:
    os.kill(server.pid("engine"), signal.SIGKILL)
    server.until(lambda: bool(server.events("engine_link_lost")), "the link is lost")


def lose_nothing(_server: Running, _books: Books) -> None:
    """Connections to vendors are made when they are needed."""


NEEDS: dict[str, tuple[str, Callable[[Running, Books], None]]] = {
    "the database": ("local/count", lose_database),
    "the engine": ("local/count", lose_engine),
    "a vendor": ("team/text", lose_nothing),
}


@pytest.mark.parametrize(("model", "lose"), NEEDS.values(), ids=NEEDS)
def test_what_needs_a_descriptor_says_that_there_is_none(
    tmp_path: Path, postgres: OwnPostgres, vendor: str, model: str, lose: Callable[[Running, Books], None]
) -> None:
    settings = f'[models."team/text"]\naddress = "{vendor}"\nlanguage = "openai_completions"\nprivate = true\n'
    with running(tmp_path / "home", settings, database=postgres.url) as server, closing(Books(postgres.url)) as books:
        # What its budget holds is in the database, so that the database is needed.
        server.key, _ = books.issue("bounded", budgets=(Budget(window="total", tokens=10_000),))
        kept = Kept(server)
        server.key, _ = books.issue("unheard", budgets=(Budget(window="total", tokens=10_000),))
        server.until(lambda: server.ask("GET", "/v4/beta/usage").status == 200, "the key is known")
        with closing(kept.connection):
            with bounded(server, 0):
                lose(server, books)
                with bounded(server, 0):  # what was lost had descriptors of its own
                    assert kept.complete(model) == NO_CAPACITY
                check_log(server)
            server.until(lambda: kept.complete(model)[0] == 200, "it answers again")
