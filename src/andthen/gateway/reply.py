"""The reply to a completion, whole or as a stream: events in, bytes to the client out.

A reply receives the backend's events in the same synchronous call in which they came from the upstream connection or
the engine: no task, queue or timer is involved in a chunk. A client that reads too slowly pauses the backend.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from andthen.contract.events import Event, Text
from andthen.contract.response import COMMENT, DONE, Completion, Head, Stream
from andthen.gateway.backend import Receiver
from andthen.gateway.context import JSON, Headers, RequestContext
from andthen.observability.metric_store import Histogram
from andthen.offload import LARGE_EVENTS, offload

_FAIL_ON_DONE = (b"SGPClient/", b"AsyncSGPClient/")
"""How the User-Agent of clients begins that take `[DONE]` for a broken chunk (run, scale-gp 0.1.0a62 and
scale-gp-beta 0.7.0)."""


class Reply:
    """What both kinds of replies do.

    Args:
        observers: are given all events too: the prompt log, the cache, telemetry.
    """

    def __init__(self, ctx: RequestContext, observers: Sequence[Receiver]) -> None:
        self._ctx = ctx
        self._observers = observers
        self._between: Histogram | None = None
        self._text_at_s = 0.0

    def on_events(self, events: list[Event]) -> None:
        """Takes the next events."""
        raise NotImplementedError

    async def complete(self) -> None:
        """All events have come. Raises InternalError if they make no whole reply."""

    async def finish(self) -> None:
        """Sends what is left to send, after the request was settled."""
        raise NotImplementedError

    def close(self) -> None:
        """The request is over, whatever ended it."""

    def _observe(self, events: list[Event]) -> None:
        for observer in self._observers:
            observer(events)
        for event in events:
            if isinstance(event, Text):
                self._on_text()
                break

    def _on_text(self) -> None:
        """Measures the time to the first generated text, and from one to the next."""
        ctx = self._ctx
        if ctx.origin == "cache":
            return
        before_s, self._text_at_s = self._text_at_s, ctx.events_at_s
        if self._between is not None:
            self._between.observe(self._text_at_s - before_s)
            return
        ctx.first_text_s = self._text_at_s - ctx.started_s
        metrics = ctx.services.metrics.model(ctx.answering.label)
        metrics.first_text_seconds.observe(ctx.first_text_s)
        self._between = metrics.between_texts_seconds

    def _head(self) -> Head:
        """What is the same in the whole reply, once it is settled who answers."""
        ctx = self._ctx
        return Head(ctx.id, int(time.time()), ctx.answering.model, ctx.fingerprint)


class WholeReply(Reply):
    """A reply in one piece."""

    def __init__(self, ctx: RequestContext, observers: Sequence[Receiver]) -> None:
        super().__init__(ctx, observers)
        self._completion = Completion(ctx.asked)
        self._body = b""

    def on_events(self, events: list[Event]) -> None:
        self._completion.feed(events)
        self._observe(events)

    async def complete(self) -> None:
        completion, head = self._completion, self._head()
        large = completion.tokens > LARGE_EVENTS
        self._body = await offload(completion.body, head) if large else completion.body(head)

    async def finish(self) -> None:
        await self._ctx.reply(200, [*JSON, (b"server-timing", server_timing(self._ctx, total=True))], self._body)


class StreamReply(Reply):
    """A reply as server-sent events. It is never silent for longer than `stream_silence_s`: clients give up on silence.

    The status line waits for the first event, so that an early error is an ordinary HTTP error, but at most
    `stream_open_after_s`.
    """

    def __init__(self, ctx: RequestContext, observers: Sequence[Receiver]) -> None:
        super().__init__(ctx, observers)
        self._encoder: Stream | None = None
        settings = ctx.services.settings
        self._silence_s = settings.stream_silence_s
        self._written_at_s = time.monotonic()
        self._deadline = ctx.services.deadlines.deadline(self._on_silence)
        self._deadline.set(settings.stream_open_after_s)
        ctx.http.on_writable = ctx.resume
        ctx.http.on_probe = self._comment

    def on_events(self, events: list[Event]) -> None:
        encoder, ctx = self._encoder, self._ctx
        if encoder is None:
            encoder = self._encoder = Stream(ctx.asked, self._head())
        frames = encoder.feed(events)
        self._observe(events)
        if ctx.status is None:
            self._open()
        if frames:
            self._written_at_s = ctx.events_at_s
            ctx.http.write(frames)
            if ctx.http.write_paused:
                ctx.pause()

    async def complete(self) -> None:
        """Waits until the client has read most of it, so that one that stopped reading is recorded as gone."""
        await self._ctx.drain()

    async def finish(self) -> None:
        if self._ctx.status is None:
            self._open()
        self._ctx.http.end(DONE if self._wants_done() else b"")

    def close(self) -> None:
        self._deadline.drop()

    def _open(self) -> None:
        headers: Headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        if timing := server_timing(self._ctx):
            headers.append((b"server-timing", timing))
        self._ctx.streams = True
        self._ctx.start(200, headers)

    def _on_silence(self) -> None:
        """Sends a comment if nothing was sent for long, and looks again later."""
        ctx, now_s = self._ctx, time.monotonic()
        due_s = self._written_at_s + self._silence_s
        if ctx.status is None or now_s >= due_s:
            if ctx.status is None:
                self._open()
            self._comment()
            self._written_at_s = now_s
            due_s = now_s + self._silence_s
        self._deadline.set(due_s - now_s)

    def _comment(self) -> None:
        if not self._ctx.http.write_paused:  # a client that is behind misses nothing
            self._ctx.http.write(COMMENT)

    def _wants_done(self) -> bool:
        done_frame = self._ctx.services.settings.done_frame
        if done_frame == "auto":
            return not (self._ctx.header(b"user-agent") or b"").startswith(_FAIL_ON_DONE)
        return done_frame == "always"


def server_timing(ctx: RequestContext, *, total: bool = False) -> bytes:
    """The value of `server-timing`, in milliseconds since the request's headers, of what is known."""
    known = [("queue", None if ctx.began_s is None else ctx.began_s - ctx.started_s), ("first", ctx.first_text_s)]
    if total:
        known.append(("total", time.monotonic() - ctx.started_s))
    return ", ".join(f"{name};dur={1000 * after_s:.1f}" for name, after_s in known if after_s is not None).encode()
