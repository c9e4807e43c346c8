"""A vendor on loopback that records what it is sent and plays what a test says; and the line of a request up to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from msgspec import Struct

from andthen.contract.events import Event
from andthen.contract.limits import Limits
from andthen.contract.request import CompletionRequest, parse
from andthen.contract.response import Completion, Head
from andthen.gateway.catalog import Catalog
from andthen.gateway.execution import Execution
from andthen.http.client import HttpClient
from andthen.vendors.settings import Access, Remote, Share, Timeouts, Upstream, UpstreamSettings

LIMITS = Limits(max_stops=16)
LIMIT_S = 5.0


class Sent(Struct):
    """A request that the vendor got."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    left: asyncio.Event
    """The caller closed the connection before the reply was complete."""


Play = Callable[[Sent], AsyncIterator[bytes]]
"""Yields the bytes of a whole HTTP reply; None of them after a cut."""


class Vendor:
    def __init__(self, play: Play) -> None:
        self.sent: list[Sent] = []
        self.play = play
        self.port = 0
        self.running = 0
        self.most_running = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [one.body for one in self.sent]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await self._answer(await self._read(reader), reader, writer)
        self._writers.discard(writer)
        writer.close()

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> Sent:
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))))
        self.sent.append(Sent(line.split(" ")[1], headers, body, asyncio.Event()))
        return self.sent[-1]

    async def _answer(self, sent: Sent, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        watching = asyncio.create_task(self._watch(reader, sent))
        try:
            async with aclosing(self.play(sent)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
        except CutOff:
            writer.transport.abort()
            raise ConnectionResetError from None
        finally:
            self.running -= 1
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    @staticmethod
    async def _watch(reader: asyncio.StreamReader, sent: Sent) -> None:
        while not reader.at_eof() and reader.exception() is None:
            await asyncio.sleep(0.005)
        sent.left.set()


class CutOff(Exception):
    """Raised in a play: the connection breaks here."""


@asynccontextmanager
async def vendor(play: Play) -> AsyncIterator[Vendor]:
    made = Vendor(play)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.close()


class Playing:
    """A vendor in a thread of this process, for servers in processes of their own."""

    def __init__(self, play: Play) -> None:
        self.loop = asyncio.new_event_loop()
        self.vendor = Vendor(play)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        listening = asyncio.start_server(self.vendor.serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(listening, self.loop).result(LIMIT_S)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        async def close() -> None:
            self._server.close()
            self.vendor.close()

        asyncio.run_coroutine_threadsafe(close(), self.loop).result(LIMIT_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LIMIT_S)
        self.loop.close()


def json_reply(body: object, status: int = 200, **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (
        f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{lines}content-length: {len(data)}\r\n\r\n".encode()
        + data
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
DONE = chunk(b"data: [DONE]\n\n")


def frame(data: object) -> bytes:
    return chunk(b"data: " + json.dumps(data).encode() + b"\n\n")


def choice(text: str, index: int = 0, reason: str | None = None, logprobs: object = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def completion(*choices: dict[str, Any], usage: tuple[int, int] | None = (3, 2)) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": "x",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": list(choices),
    }
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return body


def scored(*tokens: tuple[str, float]) -> dict[str, Any]:
    offsets = [sum(len(text) for text, _ in tokens[:i]) for i in range(len(tokens))]
    return {
        "tokens": [text for text, _ in tokens],
        "token_logprobs": [value for _, value in tokens],
        "top_logprobs": None,
        "text_offset": offsets,
    }


def remote(port: int, language: str = "openai_completions", **fields: Any) -> Remote:
    fields.setdefault("access", Access(private=True, timeouts=Timeouts(total_s=LIMIT_S)))
    fields |= {"model": "m", "key": "KEY-OF-OURS", "language": language}
    return Remote(vendor="Vendor", address=f"http://127.0.0.1:{port}/v1", **fields)


@asynccontextmanager
async def catalog(
    models: dict[str, Remote], routes: dict[str, tuple[Share, ...]] | None = None, **settings: Any
) -> AsyncIterator[Catalog]:
    upstream = Upstream(settings=UpstreamSettings(**settings), models=models, routes=routes or {})
    async with HttpClient() as client:
        yield Catalog(dict, upstream, client, LIMITS)


def asked(model: str = "team/m", **fields: object) -> CompletionRequest:
    return parse(json.dumps({"model": model, "prompt": "Hello", **fields}).encode(), LIMITS)


def begun(models: Catalog, model: str = "team/m", **fields: object) -> Execution:
    execution = Execution()
    execution.route("somebody", asked(model, **fields), models)
    return execution


async def events_of(execution: Execution) -> list[Event]:
    events: list[Event] = []
    await execution.execute(events.extend)
    return events


async def answer(models: Catalog, model: str = "team/m", **fields: object) -> dict[str, Any]:
    """The reply as a caller gets it."""
    execution = begun(models, model, **fields)
    folded = Completion(execution.asked)
    folded.feed(await events_of(execution))
    head = Head("cmpl-1", 1, execution.answering.model, execution.fingerprint)
    return dict(json.loads(folded.body(head)))
