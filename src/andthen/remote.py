"""The source that is a vendor's API or another server: plan → calls → events, with retries inside the request's bounds.

A call that fails is made again only where nothing of it can have been billed, and nothing of it was passed on. All
calls of a request stand in one scope: when one fails for good, or the caller leaves, all are cancelled and awaited.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import ClassVar, Self

import msgspec
import structlog
from msgspec.structs import asdict

from andthen.contract.body import holds_more
from andthen.contract.errors import AndthenError, RateLimited, ReplyTooLarge, UpstreamTimeout
from andthen.contract.events import Event, Exchange, Usage, size
from andthen.contract.request import CompletionRequest
from andthen.offload import LARGE_BYTES, LARGE_EVENTS, offload
from andthen.plan.bounds import most_reply_bytes, most_reply_values
from andthen.plan.spread import Part, Spread
from andthen.sources import Ask
from andthen.transport import Reply, Transport
from andthen.vendors.settings import Access, Remote, UpstreamSettings
from andthen.wire.base import Call, Decoder, Refusal, Target, Wire
from andthen.wire.failures import shown_fingerprint

_LOG = structlog.get_logger("andthen.remote")

_REFUSAL_BYTES = 64 * 2**10
_LONGEST_WAIT_S = 10.0
"""A vendor that wants a longer pause than this has the caller wait, or a fallback step in."""
_FIRST_WAIT_S = 0.5
_AHEAD = 64
"""Pieces of calls side by side that wait for a caller who reads slowly, before the calls do."""
_MAY_BE_BILLED = (0, 200, 408, 504, 524)
"""Statuses of calls that may have been worked on: no reply began, or it did, or a gateway gave up on whoever works."""


class RemoteSource:
    """One model at a vendor.

    Args:
        remote: whom to call.
        model: the vendor's own name of the model.
        wire: its language, in its dialect.
        secrets: what no text from upstream may tell.
    """

    awaits_hold: ClassVar[bool] = True

    def __init__(
        self,
        remote: Remote,
        model: str,
        wire: Wire,
        *,
        transport: Transport,
        settings: UpstreamSettings,
        secrets: tuple[str, ...],
    ) -> None:
        self.remote = remote
        self.model = model
        self.wire = wire
        self.transport = transport
        self.settings = settings
        self.secrets = secrets

    def open(self, ask: Ask) -> RemoteAttempt:
        return RemoteAttempt(self, ask)


class RemoteAttempt:
    """One try at a request: see `Attempt`."""

    def __init__(self, source: RemoteSource, ask: Ask) -> None:
        self._source = source
        self._ask = ask
        self._spread = Spread(ask.request, ask.plan)
        parts = self._spread.parts
        self._feeding = asyncio.Lock()
        self._events = self._call(parts[0]) if len(parts) == 1 else self._together(parts)
        self.began_s: float | None = None
        self.usage: Usage | None = None
        self.fingerprint: str | None = None
        self._is_told = False
        """A fingerprint was, whether it is shown or not."""
        self.exchanges: list[Exchange] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._events.aclose()
        finally:
            self.usage = self._spread.usage()

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self._events

    async def _together(self, parts: tuple[Part, ...]) -> AsyncGenerator[list[Event]]:
        """All calls, some at a time, their events as they come."""
        waiting: Iterator[Part] = iter(parts)
        queue: asyncio.Queue[list[Event] | BaseException | None] = asyncio.Queue(_AHEAD)
        leaving = False

        async def work() -> None:
            try:
                for part in waiting:
                    async with aclosing(self._call(part)) as calls:
                        async for events in calls:
                            await queue.put(events)
                await queue.put(None)
            except Exception as error:
                if not leaving:  # nobody would take it, and there may be no room
                    await queue.put(error)

        running = min(len(parts), self._source.settings.parallel)
        tasks = [asyncio.create_task(work()) for _ in range(running)]
        try:
            while running:
                taken = await queue.get()
                if taken is None:
                    running -= 1
                elif isinstance(taken, BaseException):
                    raise taken
                else:
                    yield taken
        finally:
            leaving = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        yield self._spread.end()

    async def _call(self, part: Part) -> AsyncGenerator[list[Event]]:
        """One part's call, and again where that is free and allowed; the last event too, where it is all there is."""
        tried = 0
        while True:
            source = self._source
            target = source.remote.target(source.model, at_s=time.time(), secrets=source.secrets)
            encode = source.wire.encode
            if _is_large(part.request):
                call = await offload(encode, part.request, target, streams=part.streams)
            else:
                call = encode(part.request, target, streams=part.streams)
            reply = source.transport.perform(call, self._access(), source.remote.vendor, self._ask.placed)
            began_s = time.monotonic()
            code = ""
            try:
                async with aclosing(self._exchange(part, call, target, reply)) as exchange:
                    async for events in exchange:
                        yield events
                break
            except AndthenError as error:
                code = error.code
                wait_s = self._wait_s(part, reply, error, tried)
                if wait_s is None:
                    self._spread.fail(part, error)
                    raise
            finally:
                usage = Usage(0, 0)
                if _may_be_billed(reply):
                    self._spread.begin(part)
                    usage = self._spread.usage_of(part)
                    if usage.source == "bounded":
                        _LOG.warning("upstream_usage_bounded", vendor=source.remote.vendor, **asdict(usage))
                if not reply.held_back:
                    began_s += reply.held_s
                    self.exchanges.append(Exchange(reply.status, usage, time.monotonic() - began_s, began_s, code))
            tried += 1
            await asyncio.sleep(wait_s)
        if len(self._spread.parts) == 1:
            yield self._spread.end()

    async def _exchange(self, part: Part, call: Call, target: Target, reply: Reply) -> AsyncGenerator[list[Event]]:
        source, spread = self._source, self._spread
        async with reply:
            if reply.status != 200:
                refusal = Refusal(reply.status, reply.headers, await reply.head(_REFUSAL_BYTES))
                raise source.wire.refusal(refusal, part.request, target)
            decoder = source.wire.decoder(part.request, target, streams=call.streams)
            reading = _Reading(decoder, part.request, target, streams=call.streams)
            if call.streams:
                async for data in reply.chunks():
                    told = await reading.feed(data)
                    events = await self._feed_large(part, told) if self._is_large(told) else spread.feed(part, told)
                    if events:
                        self._note(decoder, target)
                        yield events
                    if not spread.wanted(part):
                        return
                    if told:
                        decoder.feed(b"")  # raises what came behind them
                last = decoder.end()
            else:
                last = await reading.whole(await reply.body(reading.most_bytes))
            events = await self._feed_large(part, last) if self._is_large(last) else spread.feed(part, last)
            spread.close(part)
            self._note(decoder, target)
            if events:
                yield events

    def _is_large(self, events: list[Event]) -> bool:
        """Whether it would take long to work on them, or somebody does so: calls side by side share prompts."""
        return size(events) > LARGE_EVENTS or self._feeding.locked()

    async def _feed_large(self, part: Part, events: list[Event]) -> list[Event]:
        async with self._feeding:
            return await offload(self._spread.feed, part, events)

    def _note(self, decoder: Decoder, target: Target) -> None:
        """Events are about to be passed on."""
        if self.began_s is None:
            self.began_s = time.monotonic()
        if not self._is_told and decoder.fingerprint is not None:
            self._is_told = True
            self.fingerprint = shown_fingerprint(decoder.fingerprint, target)

    def _access(self) -> Access:
        """How the server is reached in the time that is left."""
        access = self._source.remote.access
        left_s = self._ask.allowance.due_s - time.monotonic()
        if left_s <= 0:
            raise UpstreamTimeout("The request's time upstream is over (`upstream.deadline_s`): send it again.")
        if left_s < access.timeouts.total_s:
            timeouts = msgspec.structs.replace(access.timeouts, total_s=left_s)
            access = msgspec.structs.replace(access, timeouts=timeouts)
        return access

    def _wait_s(self, part: Part, reply: Reply, error: AndthenError, tried: int) -> float | None:
        """Seconds until the call is made again; None where it is not."""
        if not error.retryable or reply.held_back or _may_be_billed(reply) or not self._spread.untouched(part):
            return None
        if self._ask.has_successor and self.began_s is None:
            return None  # another deployment is sooner there than the same one after a pause
        # Full jitter: many callers who failed together must not come back together.
        wait_s = _FIRST_WAIT_S * 2.0**tried * (0.5 + 0.5 * random.random())  # noqa: S311 - no secret hangs on it
        if isinstance(error, RateLimited) or error.retry_after_s:
            wait_s = max(wait_s, float(error.retry_after_s or 0))
        if wait_s > _LONGEST_WAIT_S or not self._ask.allowance.take(wait_s):
            return None
        return wait_s


def _is_large(request: CompletionRequest) -> bool:
    return len(request.logit_bias) + sum(map(len, request.prompts)) > LARGE_BYTES


class _Reading:
    """Reads a reply within the bounds of what was asked, and in a thread what is large.

    `feed` and `whole` raise what the decoder does, and:
        ReplyTooLarge
    """

    def __init__(self, decoder: Decoder, request: CompletionRequest, target: Target, *, streams: bool) -> None:
        self._decoder = decoder
        self._vendor = target.vendor
        self._most_values = most_reply_values(request)
        self.most_bytes = most_reply_bytes(request, streams=streams)
        self._bytes = 0
        self._silent_bytes = self._silent_values = 0
        """Since the last event: of one that is gathered from many pieces, or of what tells nothing."""

    async def feed(self, data: bytes) -> list[Event]:
        """The events of the next bytes of a stream."""
        self._bytes += len(data)
        self._silent_bytes += len(data)
        if self._bytes > self.most_bytes:
            raise self._too_large()
        if self._silent_bytes <= LARGE_BYTES:
            events = self._decoder.feed(data)
        else:
            self._silent_values += data.count(b",") + data.count(b"[") + data.count(b"{")
            if self._silent_values > self._most_values:
                raise self._too_large()
            events = await offload(self._decoder.feed, data)
        if events:
            self._silent_bytes = self._silent_values = 0
        return events

    async def whole(self, body: bytes) -> list[Event]:
        """The events of a reply that came whole."""
        return self._read(body) if len(body) <= LARGE_BYTES else await offload(self._read, body)

    def _read(self, body: bytes) -> list[Event]:
        if len(body) > LARGE_BYTES and holds_more(body, self._most_values):
            raise self._too_large()
        return [*self._decoder.feed(body), *self._decoder.end()]

    def _too_large(self) -> ReplyTooLarge:
        return ReplyTooLarge(f"{self._vendor}'s reply is far larger than what was asked for.")


def _may_be_billed(reply: Reply) -> bool:
    return reply.reached and reply.status in _MAY_BE_BILLED
