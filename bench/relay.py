"""The least that a server of our kind can be: uvicorn and aiohttp with nothing between them, which reads no body.
`python -m bench.relay FD ADDRESS` serves on an inherited socket."""

from __future__ import annotations

import socket
import sys
from typing import Any

import aiohttp
import uvicorn


class _Relay:
    def __init__(self, address: str) -> None:
        self._address = address
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = (await receive())["body"]
        headers = {"content-type": "application/json"}
        async with self._session.post(self._address, data=body, headers=headers) as reply:
            told = [(name, reply.headers[name].encode()) for name in ("content-type", "content-length")
                    if name in reply.headers]  # fmt: skip
            start = [(name.encode(), value) for name, value in told]
            await send({"type": "http.response.start", "status": reply.status, "headers": start})
            async for data in reply.content.iter_any():
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
