"""The least that a server of our kind can be: our HTTP server and client with nothing between them. It reads no body.
`python -m bench.relay FD ADDRESS` serves on an inherited socket."""

from __future__ import annotations

import asyncio
import socket
import sys

import uvloop

from andthen.gateway.settings import ServerSettings
from andthen.http.client import HttpClient
from andthen.http.deadlines import Deadlines
from andthen.http.request import ServerRequest
from andthen.http.server import HttpServer
from andthen.vendors.settings import Access
from andthen.wire.base import Call

_ACCESS = Access(private=True)
_HEADERS = (("content-type", "application/json"),)


async def _serve(listening: socket.socket, address: str) -> None:
    async with HttpClient() as client:

        async def relay(request: ServerRequest) -> None:
            call = Call(url=address, headers=_HEADERS, body=await request.body(2**20), streams=True)
            async with client.perform(call, _ACCESS, "upstream") as reply:
                headers = dict(reply.headers)
                length = headers.get("content-length")
                kind = [(b"content-type", headers["content-type"].encode())]
                request.start(reply.status, kind, length=None if length is None else int(length))
                await reply.receive(request.write)
            request.end()

        HttpServer(relay, ServerSettings(), Deadlines(asyncio.get_running_loop())).listen(listening)
        await asyncio.Event().wait()


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2]))


if __name__ == "__main__":
    main()
