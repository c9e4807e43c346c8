"""Callers who ask for all that they can get, and what another key waits for meanwhile. By hand, over sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.serving import Server

WORD = "once upon a time "
LONG = WORD * 150
"""Of several hundred tokens."""


@dataclass(frozen=True)
class Greedy:
    """A kind of caller.

    Attributes:
        fields: of each request.
        clients: how many of them at once, all with one key.
        piece_bytes: how much each takes at a time; 0: nothing is ever read.
        each_s: how long it waits between two pieces.
        stays_s: how long until it leaves, reply or not, and asks anew; None: it stays.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    clients: int = 1
    piece_bytes: int = 1 << 16
    each_s: float = 0.0
    stays_s: float | None = None


LONGEST: dict[str, Any] = {"max_tokens": 1000, "ignore_eos": True, "stream": True}

KINDS = (
    Greedy("a stream of 128 that nobody reads", {**LONGEST, "n": 128, "logprobs": 5}, piece_bytes=0),
    Greedy("a stream of 128, read at 40 kB/s", {**LONGEST, "n": 128, "logprobs": 5}, piece_bytes=2000, each_s=0.05),
    Greedy("a stream of 64, 20 kB read each 2 s", {**LONGEST, "n": 64, "logprobs": 5}, piece_bytes=20_000, each_s=2),
    Greedy("300 streams that nobody reads", {**LONGEST, "max_tokens": 900}, clients=300, piece_bytes=0),
    Greedy("300 streams, read as they come", {**LONGEST, "max_tokens": 900}, clients=300),
    Greedy("8 streams of 128, read as they come", {**LONGEST, "n": 128}, clients=8),
    Greedy("best of 128, four at once", {"max_tokens": 1000, "best_of": 128, "ignore_eos": True}, clients=4),
    Greedy("1,024 prompts in one request, two at once", {"prompt": [WORD] * 1024, "max_tokens": 16}, clients=2),
    Greedy(
        "long prompts scored, 64 in a request, four at once",
        {"prompt": [LONG] * 64, "max_tokens": 0, "echo": True, "logprobs": 5},
        clients=4,
    ),
    Greedy(
        "1,024 long prompts in one request, six at once",
        {"prompt": [f"{number} {LONG}" for number in range(1024)], "max_tokens": 1},
        clients=6,
    ),
    Greedy("64 that leave after half a second", {**LONGEST, "n": 4}, clients=64, stays_s=0.5),
    Greedy("64 short ones again and again", {"max_tokens": 16}, clients=64),
)


class Waited(list[float]):
    """What each of some requests took, in seconds."""

    def at(self, part: float) -> float:
        """The time that so many of them were answered in."""
        return sorted(self)[min(len(self) - 1, int(part * len(self)))]


@asynccontextmanager
async def connection(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    place = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=4096)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def message(server: Server, key: str, fields: dict[str, Any]) -> bytes:
    body = json.dumps({"model": server.model, "prompt": WORD} | fields).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-type: application/json\r\n"
    return f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def ask(server: Server, key: str, within_s: float) -> tuple[int, float]:
    """The status of a short request's answer, and its time in seconds."""
    began_s = time.monotonic()
    async with asyncio.timeout(within_s), connection(server) as (reader, writer):
        writer.write(message(server, key, {"max_tokens": 4, "ignore_eos": True}))
        reply = await reader.read(-1)
    return int(reply[9:12]), time.monotonic() - began_s


async def waits(server: Server, key: str, count: int, within_s: float) -> Waited:
    """What that many short requests of this key wait, one after another. Raises AssertionError if one is refused."""
    waited = Waited()
    for _ in range(count):
        status, took_s = await ask(server, key, within_s)
        assert status == 200, f"refused with {status}"
        waited.append(took_s)
    return waited


@asynccontextmanager
async def besieged(server: Server, key: str, kind: Greedy) -> AsyncIterator[None]:
    """While callers of this kind are at work with this key."""
    sent = message(server, key, kind.fields)
    begun = asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_be_greedy(server, kind, sent, begun)) for _ in range(kind.clients)]
        for _ in tasks:
            await begun.acquire()
        yield
        for task in tasks:
            task.cancel()


async def _be_greedy(server: Server, kind: Greedy, sent: bytes, begun: asyncio.Semaphore) -> None:
    while True:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(kind.stays_s), connection(server) as (reader, writer):
                writer.write(sent)
                await writer.drain()
                begun.release()
                while kind.piece_bytes == 0:
                    await asyncio.sleep(3600)
                while await reader.read(kind.piece_bytes):
                    if kind.each_s:
                        await asyncio.sleep(kind.each_s)
        await asyncio.sleep(0.05)  # refused with 503, say
