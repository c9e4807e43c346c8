"""The clients of a server: HTTP by hand, so that they take little of the machine."""

from __future__ import annotations

import asyncio
import json
import re
from urllib.parse import urlsplit

import uvloop
from msgspec import Struct

from bench.load import NEW_TOKENS, Load

_USED = re.compile(rb'"completion_tokens": ?(\d+)')
_ROUTE = "/v1/completions"


class Address(Struct, frozen=True):
    """Where a server listens and what it wants to be told."""

    url: str
    model: str
    key: str = ""


class Replies(Struct):
    """What came back."""

    received: int = 0
    chunks: int = 0
    """Frames of streams."""


def ask(address: Address, load: Load, *, stream: bool, max_tokens: int = NEW_TOKENS) -> Replies:
    """All clients' requests, to the end. Raises SystemExit where one was not answered in full."""
    return uvloop.run(_ask(address, load, {"stream": stream, "max_tokens": max_tokens}))


async def _ask(address: Address, load: Load, fields: dict[str, object]) -> Replies:
    replies = Replies()
    async with asyncio.TaskGroup() as group:
        for number in range(load.clients):
            group.create_task(_client(address, load, number, fields, replies))
    return replies


async def _client(address: Address, load: Load, client: int, fields: dict[str, object], replies: Replies) -> None:
    more = {"stream_options": {"include_usage": True}} if fields["stream"] else {}
    for turn in range(load.requests):
        reply = await _post(address, {"model": address.model, **load.body(client, turn), **fields, **more})
        used = _USED.findall(reply)
        if not reply.startswith(b"HTTP/1.1 200 ") or not used or int(used[-1]) != fields["max_tokens"]:
            raise SystemExit(f"{address.url} answered {reply[:2000]!r}")
        replies.received += 1
        replies.chunks += reply.count(b"data: {")


async def _post(address: Address, body: dict[str, object]) -> bytes:
    """The whole reply, on a connection of its own."""
    place = urlsplit(address.url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=2**24)
    sent = json.dumps(body).encode()
    head = f"POST {_ROUTE} HTTP/1.1\r\nhost: {place.netloc}\r\nx-api-key: {address.key}\r\nconnection: close\r\n"
    writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n".encode() + sent)
    reply = await reader.read(-1)
    writer.close()
    return reply
