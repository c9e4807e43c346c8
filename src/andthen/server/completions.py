"""`POST …/completions`: the hot route. Bytes in, the line of `complete`, bytes out.

A stream's status line waits for the first event, so that an early error is an ordinary HTTP error, but not for ever:
clients give up on silence. No log call, no task and no look-up of a metric for a chunk.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from urllib.parse import quote

from prometheus_client import Histogram

from andthen.complete import Work, prepare
from andthen.contract.events import Event, Text, size
from andthen.contract.request import CompletionRequest, parse
from andthen.contract.response import COMMENT, DONE, Completion, Head, Stream
from andthen.offload import LARGE_BYTES, LARGE_EVENTS, offload
from andthen.server.access import allows_model, check_max_tokens, check_model
from andthen.server.booking import Booking
from andthen.server.http import JSON, Exchange, Headers
from andthen.server.idempotency import complete_once, idempotency_key
from andthen.server.noting import note_work
from andthen.server.recall import Recall
from andthen.server.services import Services
from andthen.server.settings import ServerSettings
from andthen.telemetry.notes import Note

_FAIL_ON_DONE = (b"SGPClient/", b"AsyncSGPClient/")
"""How the User-Agent of clients begins that take `[DONE]` for a broken chunk (run, scale-gp 0.1.0a62 and
scale-gp-beta 0.7.0)."""
_PLAN = b"x-andthen-plan"
_IGNORED_NAMES = 16
_IGNORED_BYTES = 1024


async def complete(services: Services, exchange: Exchange) -> None:
    """Answers with a completion, whole or as a stream. Its last byte goes out after it is settled in the books."""
    if (key := idempotency_key(exchange)) is None:
        await _run(services, exchange, Booking(services, exchange))
    else:
        await complete_once(services, exchange, key, _run)


async def _run(services: Services, exchange: Exchange, booking: Booking) -> None:
    try:
        await _complete(services, exchange, booking)
    except BaseException as error:
        await booking.settle(error)
        raise


async def _complete(services: Services, exchange: Exchange, booking: Booking) -> None:
    body = await exchange.body()
    large = len(body) > LARGE_BYTES
    request = await offload(parse, body, services.limits) if large else parse(body, services.limits)
    booking.note(request)
    if ignored := _ignored(request.ignored):
        exchange.reply_headers.append((b"x-andthen-ignored", ignored))
    services.catalog.find(request.model)
    booking.name(request.model)
    if services.telemetry is not None:
        exchange.note = Note(request=request, asked=services.catalog.asked_label(request.model))
    check_model(exchange.key, request.model)
    check_max_tokens(exchange.key, request.max_tokens)
    await booking.admit(request)
    work = prepare(
        exchange.key_id or "", request, services.catalog, allows=lambda model: allows_model(exchange.key, model)
    )
    recall = Recall(services.cache, exchange, request, work)
    if await recall.found():
        booking.take_kept(work)
    else:
        await booking.hold(request, work)
    booking.quote(request)
    _tell(services, exchange, work)
    try:
        send = _stream if request.stream else _whole
        await send(services, exchange, request, work, booking, recall)
    finally:
        if exchange.status is None:
            _tell(services, exchange, work)  # the last that was asked in vain
        _measure(services, exchange, work)


def _measure(services: Services, exchange: Exchange, work: Work) -> None:
    """What is known now that it is over."""
    exchange.source_s = work.waited_s
    if work.usage is not None:
        usage = work.usage
        exchange.usage = (usage.prompt_tokens, usage.cached_tokens or 0, usage.completion_tokens)
    if work.began_s is not None:
        measured = services.metrics.model(services.catalog.label(work.deployment))
        measured.queue_seconds.observe(work.began_s - exchange.started_s)
    if exchange.note is not None:
        note_work(exchange.note, work, services.catalog)


async def _whole(
    services: Services, exchange: Exchange, request: CompletionRequest, work: Work, booking: Booking, recall: Recall
) -> None:
    completion = Completion(request)
    clock = _Clock(services, exchange, work, booking)
    async with aclosing(recall.events()) as batches:
        async for events in batches:
            clock.look(events)
            booking.hear(events)
            for event in events:
                completion.feed(event)
    head = _head(services, exchange, work)
    large = completion.tokens > LARGE_EVENTS
    body = await offload(completion.body, head) if large else completion.body(head)
    await booking.settle()
    await exchange.reply(200, [*JSON, (b"server-timing", clock.header(total=True))], body)


async def _stream(
    services: Services, exchange: Exchange, request: CompletionRequest, work: Work, booking: Booking, recall: Recall
) -> None:
    stream: Stream | None = None
    clock = _Clock(services, exchange, work, booking)
    reply = _EventStream(exchange, services.settings, clock)
    try:
        async with aclosing(recall.events()) as batches:
            async for events in batches:
                clock.look(events)
                booking.hear(events)
                if stream is None:
                    stream = Stream(request, _head(services, exchange, work))
                large = size(events) > LARGE_EVENTS
                await reply.write(await offload(stream.frames, events) if large else stream.frames(events))
        await booking.settle()
        await reply.end(DONE if _wants_done(exchange, services.settings) else b"")
    finally:
        reply.close()


def _head(services: Services, exchange: Exchange, work: Work) -> Head:
    """Who answers is settled: what is the same in all of the reply."""
    _tell(services, exchange, work)
    return Head(exchange.id, int(time.time()), work.deployment.model, work.fingerprint)


def _tell(services: Services, exchange: Exchange, work: Work) -> None:
    """Who is about to answer, and how."""
    exchange.model = services.catalog.label(work.deployment)
    told = [header for header in exchange.reply_headers if header[0] != _PLAN]
    exchange.reply_headers[:] = [*told, (_PLAN, work.plan.header().encode())]


class _Clock:
    """When its turn, its first text and each further one came."""

    __slots__ = ("_between", "_booking", "_exchange", "_services", "_text_s", "_work", "first_text_s")

    def __init__(self, services: Services, exchange: Exchange, work: Work, booking: Booking) -> None:
        self._booking = booking
        self._services = services
        self._exchange = exchange
        self._work = work
        self.first_text_s: float | None = None
        """Seconds since the request's headers."""
        self._between: Histogram | None = None
        self._text_s = 0.0

    def look(self, events: list[Event]) -> None:
        """To be called with all events as they come. A kept reply's tell nothing of the model's pace."""
        if (note := self._exchange.note) is not None:
            note.look(events)
        if self._booking.origin == "cache" or not any(isinstance(event, Text) for event in events):
            return
        before_s, self._text_s = self._text_s, self._work.came_s
        if self._between is not None:
            self._between.observe(self._text_s - before_s)
            return
        self.first_text_s = self._booking.first_text_s = self._text_s - self._exchange.started_s
        if note is not None:
            note.first_text_s = self.first_text_s
        measured = self._services.metrics.model(self._services.catalog.label(self._work.deployment))
        measured.first_text_seconds.observe(self.first_text_s)
        self._between = measured.between_texts_seconds

    def header(self, *, total: bool = False) -> bytes:
        """The value of `server-timing`, in milliseconds, of what is known."""
        started_s, began_s = self._exchange.started_s, self._work.began_s
        known = [("queue", began_s - started_s if began_s is not None else None), ("first", self.first_text_s)]
        if total:
            known.append(("total", time.monotonic() - started_s))
        return ", ".join(f"{name};dur={1000 * after_s:.1f}" for name, after_s in known if after_s is not None).encode()


class _EventStream:
    """A reply of server-sent events that is never silent for long."""

    def __init__(self, exchange: Exchange, settings: ServerSettings, clock: _Clock) -> None:
        self._exchange = exchange
        self._silence_s = settings.stream_silence_s
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._written_at_s = self._loop.time()
        self._timer = self._loop.call_later(settings.stream_open_after_s, self._tick)
        self._commenting: asyncio.Task[None] | None = None
        exchange.link.probe = self._send_comment

    async def write(self, frames: bytes) -> None:
        """Sends what an event shows. The first event opens the stream, also if it shows nothing."""
        if self._exchange.status is None:
            await self._open()
        if frames:
            self._written_at_s = self._loop.time()
            await self._exchange.write(frames)

    async def end(self, last: bytes) -> None:
        if self._exchange.status is None:
            await self._open()
        await self._exchange.write(last, more=False)

    def close(self) -> None:
        """No comment any more."""
        self._timer.cancel()
        self._exchange.link.probe = None

    async def _open(self) -> None:
        headers: Headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        if timing := self._clock.header():
            headers.append((b"server-timing", timing))
        self._exchange.streams = True
        await self._exchange.start(200, headers)

    def _tick(self) -> None:
        silent_s = self._loop.time() - self._written_at_s
        left_s = self._silence_s - silent_s
        if self._exchange.status is None or left_s <= 0:
            left_s = self._silence_s
            self._send_comment()
        self._timer = self._loop.call_later(left_s, self._tick)

    def _send_comment(self) -> None:
        self._commenting = self._loop.create_task(self._comment())

    async def _comment(self) -> None:
        # While a write waits for the client, nothing is missed and nothing may come in between.
        if not self._exchange.link.write_paused:
            await self.write(COMMENT)


def _wants_done(exchange: Exchange, settings: ServerSettings) -> bool:
    if settings.done_frame == "auto":
        return not (exchange.header(b"user-agent") or b"").startswith(_FAIL_ON_DONE)
    return settings.done_frame == "always"


def _ignored(names: tuple[str, ...]) -> bytes:
    """The names that there is room for, percent-encoded, so that no header can be made of them."""
    kept: list[str] = []
    size = 0
    for name in names[:_IGNORED_NAMES]:
        encoded = quote(name, safe="", errors="replace")
        if size + len(encoded) + 2 <= _IGNORED_BYTES:
            size += len(encoded) + 2
            kept.append(encoded)
    return ", ".join(kept).encode()
