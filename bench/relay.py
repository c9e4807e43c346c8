"""The least that a server of our kind can be: our HTTP server and aiohttp with nothing between them, which reads no
body. `python -m bench.relay FD ADDRESS` serves on an inherited socket."""

from __future__ import annotations

import asyncio
import socket
import sys

import aiohttp
import uvloop

from andthen.http.request import ServerRequest
from andthen.http.server import HttpServer
from andthen.server.settings import ServerSettings


async def _serve(listening: socket.socket, address: str) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def relay(request: ServerRequest) -> None:
            body = await request.body(2**20)
            async with session.post(address, data=body, headers={"content-type": "application/json"}) as reply:
                length = reply.headers.get("content-length")
                headers = [(b"content-type", reply.headers["content-type"].encode())]
                request.start(reply.status, headers, length=None if length is None else int(length))
                async for data in reply.content.iter_any():
                    await request.drain()
                    request.write(data)
            request.end()

        HttpServer(relay, ServerSettings()).listen(listening)
        await asyncio.Event().wait()


def main() -> None:
    uvloop.run(_serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2]))


if __name__ == "__main__":
    main()
