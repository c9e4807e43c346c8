"""The least that a server of our kind can be: uvicorn and our HTTP client with nothing between them, which reads no
body. `python -m bench.relay FD ADDRESS` serves on an inherited socket."""

from __future__ import annotations

import socket
import sys
from typing import Any

import uvicorn

from andthen.http.client import HttpClient
from andthen.vendors.settings import Access
from andthen.wire.base import Call

_ACCESS = Access(private=True)


class _Relay:
    def __init__(self, address: str) -> None:
        self._address = address
        self._client = HttpClient()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        headers = (("content-type", "application/json"),)
        call = Call(url=self._address, headers=headers, body=body, streams=True)
        async with self._client.perform(call, _ACCESS, "upstream") as reply:
            told = [(name.encode(), value.encode()) for name, value in reply.headers
                    if name in ("content-type", "content-length")]  # fmt: skip
            await send({"type": "http.response.start", "status": reply.status, "headers": told})
            async for data in reply.chunks():
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def main() -> None:
    listening = socket.socket(fileno=int(sys.argv[1]))
    config = uvicorn.Config(
        _Relay(sys.argv[2]), loop="uvloop", http="httptools", lifespan="off", log_level="error", access_log=False
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
