"""The backend that is a vendor's API or another server: plan → upstream calls → events, with retries.

A failed call is repeated only if the vendor can't have billed it and none of its events were passed on. When one call
fails for good, or the caller leaves, the others are cancelled and awaited.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

import msgspec
import structlog
from msgspec.structs import asdict

from andthen.contract.errors import AndthenError, RateLimited, UpstreamTimeout
from andthen.contract.events import Event, Exchange, Usage
from andthen.contract.request import CompletionRequest
from andthen.gateway.backend import BackendRequest, Receiver
from andthen.gateway.reply_reader import ReplyReader, Worked
from andthen.http.client import HttpClient, HttpExchange
from andthen.offload import LARGE_BYTES, offload
from andthen.plan.single_call import fan_out
from andthen.plan.spread import Part
from andthen.vendors.settings import Access, Remote, UpstreamSettings
from andthen.wire.base import Call, Decoder, Refusal, Target, Wire
from andthen.wire.failures import shown_fingerprint

_LOG = structlog.get_logger("andthen.remote")

_ERROR_BODY_BYTES = 64 * 2**10
_LONGEST_WAIT_S = 10.0
"""If a vendor asks for a longer pause than this, the error goes to the caller, or a fallback is tried."""
_FIRST_WAIT_S = 0.5
_MAY_BE_BILLED = (0, 200, 408, 504, 524)
"""Statuses after which the vendor may have worked: no reply, a reply, or a gateway that gave up waiting for one."""


class RemoteBackend:
    """One model at a vendor.

    Args:
        remote: the vendor or server.
        model: the vendor's own name of the model.
        wire: its API format, in its dialect.
        secrets: redacted from everything that comes from upstream except the generated text.
    """

    def __init__(
        self,
        remote: Remote,
        model: str,
        wire: Wire,
        *,
        client: HttpClient,
        settings: UpstreamSettings,
        secrets: tuple[str, ...],
    ) -> None:
        self.remote = remote
        self.model = model
        self.wire = wire
        self.client = client
        self.settings = settings
        self.secrets = secrets

    def attempt(self, request: BackendRequest) -> RemoteAttempt:
        return RemoteAttempt(self, request)


class _Complete(Exception):
    """Ends the reading of a reply of which nothing more is needed."""


class RemoteAttempt:
    """One attempt: see `gateway.backend.Attempt`."""

    def __init__(self, backend: RemoteBackend, request: BackendRequest) -> None:
        self._backend = backend
        self._request = request
        self._fanout = fan_out(request.request, request.plan)
        self._receiver: Receiver
        self._replies: list[HttpExchange] = []
        """Those that are being read."""
        self._paused = False
        self.began_s: float | None = None
        self.usage: Usage | None = None
        self.fingerprint: str | None = None
        self._has_fingerprint = False
        """The vendor sent one, whether it may be shown or not."""
        self.exchanges: list[Exchange] = []

    async def run(self, receiver: Receiver) -> None:
        self._receiver = receiver
        calls = self._fanout.parts
        try:
            if len(calls) == 1:
                await self._call(calls[0])
            elif calls:
                await self._call_all(iter(calls), min(len(calls), self._backend.settings.parallel))
            receiver(self._fanout.end())
        finally:
            self.usage = self._fanout.usage()

    def pause(self) -> None:
        self._paused = True
        for reply in self._replies:
            reply.pause_reading()

    def resume(self) -> None:
        self._paused = False
        for reply in self._replies:
            reply.resume_reading()

    async def _call_all(self, calls: Iterator[Part], parallel: int) -> None:
        """Makes all calls, so many at a time."""

        async def work() -> None:
            for call in calls:
                await self._call(call)

        tasks = [asyncio.create_task(work()) for _ in range(parallel)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _call(self, part: Part) -> None:
        """Makes one call, and again where that is free and allowed."""
        backend = self._backend
        tried = 0
        while True:
            target = backend.remote.target(backend.model, at_s=time.time(), secrets=backend.secrets)
            encode = backend.wire.encode
            if _is_large(part.request):
                call = await offload(encode, part.request, target, streams=part.streams)
            else:
                call = encode(part.request, target, streams=part.streams)
            reply = backend.client.perform(call, self._access(), backend.remote.vendor)
            began_s = time.monotonic()
            code = ""
            try:
                await self._exchange(part, call, target, reply)
                return
            except AndthenError as error:
                code = error.code
                wait_s = self._wait_s(part, reply, error, tried)
                if wait_s is None:
                    self._fanout.fail(part, error)
                    raise
            finally:
                usage = Usage(0, 0)
                if _may_be_billed(reply):
                    self._fanout.begin(part)
                    usage = self._fanout.usage_of(part)
                    if usage.source == "bounded":
                        _LOG.warning("upstream_usage_bounded", vendor=backend.remote.vendor, **asdict(usage))
                self.exchanges.append(Exchange(reply.status, usage, time.monotonic() - began_s, began_s, code))
            tried += 1
            await asyncio.sleep(wait_s)

    async def _exchange(self, part: Part, call: Call, target: Target, reply: HttpExchange) -> None:
        backend, fanout = self._backend, self._fanout
        async with reply:
            if reply.status != 200:
                refusal = Refusal(reply.status, reply.headers, await reply.head(_ERROR_BODY_BYTES))
                raise backend.wire.refusal(refusal, part.request, target)
            decoder = backend.wire.decoder(part.request, target, streams=call.streams)
            reader = ReplyReader(decoder, fanout, part, target.vendor, streams=call.streams)

            def on_events(worked: Worked) -> None:
                if worked.shown:
                    self._pass_on(worked.shown, decoder, target)
                if not fanout.wanted(part):
                    raise _Complete
                if worked.had_events:
                    decoder.feed(b"")  # raises the error that came behind them

            if call.streams:
                self._replies.append(reply)
                if self._paused:
                    reply.pause_reading()
                try:
                    await reader.read_stream(reply, on_events, lambda: self._paused)
                except _Complete:
                    return
                finally:
                    self._replies.remove(reply)
                shown = reader.end()
            else:
                shown = await reader.read_whole(reply)
            fanout.close(part)
            self._pass_on(shown, decoder, target)

    def _pass_on(self, events: list[Event], decoder: Decoder, target: Target) -> None:
        if self.began_s is None:
            self.began_s = time.monotonic()
        if not self._has_fingerprint and decoder.fingerprint is not None:
            self._has_fingerprint = True
            self.fingerprint = shown_fingerprint(decoder.fingerprint, target)
        if events:
            self._receiver(events)

    def _access(self) -> Access:
        """How the server is reached in the time that is left."""
        access = self._backend.remote.access
        left_s = self._request.retry_budget.deadline_s - time.monotonic()
        if left_s <= 0:
            raise UpstreamTimeout("The request's time upstream is over (`upstream.deadline_s`): send it again.")
        if left_s < access.timeouts.total_s:
            timeouts = msgspec.structs.replace(access.timeouts, total_s=left_s)
            access = msgspec.structs.replace(access, timeouts=timeouts)
        return access

    def _wait_s(self, part: Part, reply: HttpExchange, error: AndthenError, tried: int) -> float | None:
        """Seconds until the call is repeated; None if it is not."""
        if not error.retryable or _may_be_billed(reply) or not self._fanout.untouched(part):
            return None
        if self._request.has_fallback and self.began_s is None:
            return None  # another deployment answers sooner than the same one after a pause
        # Full jitter: callers that failed together must not come back together.
        wait_s = _FIRST_WAIT_S * 2.0**tried * (0.5 + 0.5 * random.random())  # noqa: S311 - not a secret
        if isinstance(error, RateLimited) or error.retry_after_s:
            wait_s = max(wait_s, float(error.retry_after_s or 0))
        if wait_s > _LONGEST_WAIT_S or not self._request.retry_budget.take(wait_s):
            return None
        return wait_s


def _is_large(request: CompletionRequest) -> bool:
    return len(request.logit_bias) + sum(map(len, request.prompts)) > LARGE_BYTES


def _may_be_billed(reply: HttpExchange) -> bool:
    return reply.reached and reply.status in _MAY_BE_BILLED
