"""Reads one upstream reply within the bounds of what was asked for: bytes → events → the fan-out.

What is small is handled in the synchronous call in which it arrived. What is large is worked on in a thread, with
reading paused meanwhile, so that it does not stop the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from andthen.contract.body import holds_more
from andthen.contract.errors import ReplyTooLarge
from andthen.contract.events import Event
from andthen.http.client import HttpExchange
from andthen.offload import LARGE_BYTES, offload
from andthen.plan.bounds import most_reply_bytes, most_reply_values
from andthen.plan.single_call import SingleCall
from andthen.plan.spread import Part, Spread
from andthen.wire.base import Decoder


class Worked(NamedTuple):
    """What some bytes of a reply brought."""

    shown: list[Event]
    """The caller's events."""
    had_events: bool
    """The decoder had events, shown or not."""


class ReplyReader:
    """Reads the reply to one call.

    Raises what the decoder and the fan-out raise, and:
        ReplyTooLarge: the reply is far larger than what was asked for.
    """

    def __init__(
        self, decoder: Decoder, fanout: Spread | SingleCall, part: Part, vendor: str, *, streams: bool
    ) -> None:
        self._decoder = decoder
        self._fanout = fanout
        self._part = part
        self._vendor = vendor
        self._most_bytes = most_reply_bytes(part.request, streams=streams)
        self._most_values = most_reply_values(part.request)
        self._bytes = 0
        self._silent_bytes = self._silent_values = 0
        """Since the last event: of an event that is made of many pieces, or of what means nothing."""
        self._offloaded: asyncio.Task[None] | None = None
        self._waiting: list[bytes] = []
        """What arrived while something large is worked on."""

    async def read_stream(
        self, reply: HttpExchange, on_events: Callable[[Worked], None], is_paused: Callable[[], bool]
    ) -> None:
        """Reads a stream to its end.

        Args:
            on_events: what it raises ends the reading and is raised here.
            is_paused: whether the caller wants nothing more for now.
        """

        def on_data(data: bytes) -> None:
            self._count(data)
            if self._offloaded is not None:
                self._waiting.append(data)
            elif self._silent_bytes > LARGE_BYTES:
                reply.pause_reading()
                self._waiting.append(data)
                self._offloaded = asyncio.create_task(self._work_off(reply, on_events, is_paused))
            else:
                events = self._decoder.feed(data)
                if events:
                    self._silent_bytes = self._silent_values = 0
                on_events(Worked(self._fanout.feed(self._part, events), bool(events)))

        try:
            await reply.receive(on_data)
            if self._offloaded is not None:
                await self._offloaded
        finally:
            if self._offloaded is not None and not self._offloaded.done():
                self._offloaded.cancel()
                await asyncio.wait([self._offloaded])

    async def _work_off(
        self, reply: HttpExchange, on_events: Callable[[Worked], None], is_paused: Callable[[], bool]
    ) -> None:
        """Works on what waits, in a thread; then reading goes on."""
        try:
            while self._waiting:
                data = b"".join(self._waiting)
                self._waiting.clear()
                worked = await offload(self._work, data)
                if worked.had_events:
                    self._silent_bytes = self._silent_values = 0
                on_events(worked)
        except Exception as error:
            reply.fail(error)
        else:
            self._offloaded = None
            if not is_paused():
                reply.resume_reading()

    def end(self) -> list[Event]:
        """The last events of a stream that was read."""
        return self._fanout.feed(self._part, self._decoder.end())

    async def read_whole(self, reply: HttpExchange) -> list[Event]:
        """Reads a reply that comes whole; all its events."""
        body = await reply.body(self._most_bytes)
        if len(body) <= LARGE_BYTES:
            return self._fanout.feed(self._part, [*self._decoder.feed(body), *self._decoder.end()])
        return await offload(self._work_whole, body)

    def _work(self, data: bytes) -> Worked:
        events = self._decoder.feed(data)
        return Worked(self._fanout.feed(self._part, events), bool(events))

    def _work_whole(self, body: bytes) -> list[Event]:
        if holds_more(body, self._most_values):
            raise self._too_large()
        return self._fanout.feed(self._part, [*self._decoder.feed(body), *self._decoder.end()])

    def _count(self, data: bytes) -> None:
        self._bytes += len(data)
        self._silent_bytes += len(data)
        if self._bytes > self._most_bytes:
            raise self._too_large()
        if self._silent_bytes > LARGE_BYTES:
            self._silent_values += data.count(b",") + data.count(b"[") + data.count(b"{")
            if self._silent_values > self._most_values:
                raise self._too_large()

    def _too_large(self) -> ReplyTooLarge:
        return ReplyTooLarge(f"{self._vendor}'s reply is far larger than what was asked for.")
