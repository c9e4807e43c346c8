"""The HTTP server alone, in a thread, with an application that does what the path says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import uvloop

from andthen.contract.errors import AndthenError
from andthen.http.deadlines import Deadlines
from andthen.http.request import ClientGone, ServerRequest
from andthen.http.server import HttpServer

WAIT_S = 15
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    header_bytes: int = 8192
    header_timeout_s: float = 10.0
    body_bytes: int = 1_000_000
    body_stall_s: float = 10.0
    write_stall_s: float = 10.0
    keep_alive_s: float = 10.0


class Served:
    """A running server."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listening: socket.socket) -> None:
        self.port: int = listening.getsockname()[1]
        self.loop = loop
        self.began: list[str] = []
        """The paths of the requests that were begun, in order."""
        self.gone: list[str] = []
        """The paths of those whose client went away."""
        self.errors: list[str] = []
        """The codes of the errors that reading a body ended with."""
        self.server: HttpServer
        self.release = asyncio.Event()

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        client = socket.socket()
        client.settimeout(WAIT_S)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            client.connect(("127.0.0.1", self.port))
        except OSError:
            client.close()
            raise
        return client

    def call(self, function: Callable[[], object]) -> None:
        """Runs it in the server's thread."""
        done = threading.Event()

        def run() -> None:
            function()
            done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(WAIT_S)

    def hold(self) -> None:
        """What waits to be released waits from now on; what happened before is forgotten."""
        self.release.clear()
        self.began.clear()
        self.gone.clear()

    async def answer(self, request: ServerRequest) -> None:
        self.began.append(request.path)
        request.on_gone = lambda: self.gone.append(request.path)
        with contextlib.suppress(ClientGone):
            await self._answer(request)

    async def _answer(self, request: ServerRequest) -> None:
        kind = [(b"content-type", b"text/plain")]
        match request.path.split("/")[1:]:
            case ["echo"]:
                try:
                    body = await request.body(1_000_000)
                except AndthenError as error:
                    self.errors.append(error.code)
                    request.start(error.status, kind, length=0)
                    request.end()
                    return
                request.start(200, kind, length=len(body))
                request.end(body)
            case ["chunks", count]:
                request.start(200, kind)
                for number in range(int(count)):
                    request.write(b"%d," % number)
                request.end()
            case ["flood", size]:
                request.start(200, kind)
                for _ in range(int(size)):
                    await request.drain()
                    request.write(b"x" * 1000)
                request.end()
            case ["hold"]:
                await self.release.wait()
                request.start(200, kind, length=2)
                request.end(b"ok")
            case ["begin"]:
                request.start(200, kind)
                await self.release.wait()
                request.end(b"ok")
            case ["cut"]:
                request.start(200, kind)
                request.write(b"half")
                await asyncio.sleep(0)
                request.cut(b", more")
            case ["status", status]:
                request.start(int(status), kind)
                request.end()
            case ["fail"]:
                raise ValueError("on purpose")
            case ["nothing"]:
                pass
            case ["inject"]:
                request.start(200, [(b"a", b"b\r\nc: d")], length=0)
            case ["short"]:
                request.start(200, kind, length=9)
                request.end(b"too short")
                request.end()
            case _:
                request.start(200, kind, length=2)
                request.end(b"ok")


@contextmanager
def serving(loop_kind: str, bounds: Bounds | None = None) -> Iterator[Served]:
    """A server on a port of its own, which drains at the end."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    ready = threading.Event()
    found: list[Served] = []
    stop = asyncio.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        served = Served(loop, listening)
        served.server = HttpServer(served.answer, bounds or Bounds(), Deadlines(loop))
        served.server.listen(listening)
        found.append(served)
        ready.set()
        await stop.wait()
        served.release.set()
        served.server.abort()
        async with asyncio.timeout(WAIT_S):
            await served.server.drain()

    def run() -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop_kind]) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, name="served")
    thread.start()
    assert ready.wait(WAIT_S)
    (served,) = found
    try:
        yield served
    finally:
        served.loop.call_soon_threadsafe(stop.set)
        thread.join(WAIT_S)
        assert not thread.is_alive()
