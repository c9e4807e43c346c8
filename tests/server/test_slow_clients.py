"""Many who send slowly, or read nothing: others are served, and what each costs is bounded."""

from __future__ import annotations

import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from tests.server.running import COMPLETIONS, Running, read_all, running
from tests.server.test_hostile_bodies import MIB, memory
from tests.upstream.vendor import STREAM, Playing, Sent, choice, completion, frame

MANY = 300
STALL_S = 2.0
EACH_BYTES = 64 * 1024
"""The most that a connection may cost which sends slowly."""
READER_BYTES = 4 * MIB
"""The most that one may cost whose reader takes nothing: the buffers on both sides of the work."""

SETTINGS = f"""
header_timeout_s = {STALL_S}
body_stall_s = {STALL_S}
write_stall_s = {STALL_S}
keep_alive_s = {round(STALL_S)}
"""


class Endless:
    """A vendor that sends as fast as it is taken."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.playing = Playing(self.play)

    async def play(self, sent: Sent) -> AsyncIterator[bytes]:
        yield STREAM
        piece = frame(completion(choice("x" * 10_000), usage=None))
        while not sent.left.is_set():
            yield piece
            self.sent_bytes += len(piece)

    def is_stuck(self) -> bool:
        """Its bytes have nowhere to go."""
        before = self.sent_bytes
        time.sleep(0.3)
        return self.sent_bytes == before


@pytest.fixture(scope="module")
def vendor() -> Iterator[Endless]:
    vendor = Endless()
    with closing(vendor.playing):
        yield vendor


@pytest.fixture(scope="module")
def server(vendor: Endless, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    address = f"http://127.0.0.1:{vendor.playing.port}/v1"
    model = f'[models."team/m"]\naddress = "{address}"\nlanguage = "openai_completions"'
    with running(tmp_path_factory.mktemp("slow"), SETTINGS + model) as server:
        yield server


def head(server: Running) -> bytes:
    return f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nx-api-key: {server.key}\r\n".encode()


def line(_server: Running) -> tuple[bytes, bytes]:
    return b"POST /v1/comp", b"l"


def headers(server: Running) -> tuple[bytes, bytes]:
    return head(server), b"x"


def body(server: Running) -> tuple[bytes, bytes]:
    return head(server) + b"content-length: 100000\r\n\r\n{", b" "


def chunks(server: Running) -> tuple[bytes, bytes]:
    return head(server) + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"


def unwanted(_server: Running) -> tuple[bytes, bytes]:
    """A body that was refused already."""
    return b"POST /none HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n", b" "


def nothing(_server: Running) -> tuple[bytes, bytes]:
    return b"", b""


@pytest.mark.parametrize("kind", [line, headers, body, chunks, unwanted, nothing])
def test_many_who_send_slowly_keep_nobody_else_waiting(
    server: Running, kind: Callable[[Running], tuple[bytes, bytes]]
) -> None:
    begin, drop = kind(server)
    assert server.complete("go", max_tokens=1).status == 200
    before = memory(server, "VmRSS")
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(MANY)]
        for client in clients:
            client.sendall(begin)
        for _ in range(3):
            for client in clients:
                with suppress(ConnectionError):
                    client.sendall(drop)
            for stream in (False, True):
                assert server.complete("go", max_tokens=1, stream=stream).status == 200
        assert memory(server, "VmRSS") - before < MANY * EACH_BYTES
        for client in clients:
            read_all(client)  # until the server ends it: the socket's own timeout is far longer
    server.until(lambda: "andthen_open_requests 1.0" in server.ask("GET", "/metrics").body.decode(), "all are over")


@pytest.mark.parametrize("model", ["local/count", "team/m"])
def test_many_who_read_nothing_cost_their_buffers(server: Running, vendor: Endless, model: str) -> None:
    readers = 20
    assert server.complete("go", max_tokens=1).status == 200
    vendor.playing.vendor.sent.clear()
    before = memory(server, "VmRSS")
    with ExitStack() as stack:
        for _ in range(readers):
            client = stack.enter_context(server.connect(receive_buffer=4096))
            server.send(client, "go", model=model, stream=True, n=1 if model == "team/m" else 64, max_tokens=1000)
        server.until(vendor.is_stuck, "nobody is sent any more")
        assert memory(server, "VmRSS") - before < readers * READER_BYTES
        assert server.complete("go", max_tokens=1).status == 200
        server.until_jobs(0)
        server.until(lambda: vendor.playing.vendor.running == 0, "the vendor's work is ended")
    assert len(vendor.playing.vendor.sent) == (readers if model == "team/m" else 0)


def test_with_no_file_left_to_open_it_goes_on_when_some_are_free_again(tmp_path: Path) -> None:
    with running(tmp_path / "home", SETTINGS) as server:
        assert server.complete("go", max_tokens=1).status == 200
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        with ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(server.connect())
            time.sleep(0.5)
            assert server.process.poll() is None

        def serves() -> bool:
            try:
                return server.complete("go", max_tokens=1).status == 200
            except ConnectionError:  # it had no file for this one either
                return False

        server.until(serves, "it serves again")
        assert len(server.log) < 64 * 1024, "and was not busy with telling of it"
