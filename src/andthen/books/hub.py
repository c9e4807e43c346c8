"""Limits for several workers of one machine: the supervising process counts, and the workers ask it over one Unix
socket. Knows no worker but by its link: when that ends, what the worker ran is over.

The supervisor's own death ends the workers, so nothing is kept beyond it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Self, cast

import msgspec
import structlog
from msgspec import Struct

from andthen.books.limits import (
    WINDOW_MS,
    Bounds,
    Counts,
    Grant,
    Refused,
    Standing,
    State,
    check_possible,
    limited,
)
from andthen.books.memory import monotonic_ms
from andthen.contract.errors import LimitsUnavailable
from andthen.descriptors import or_refusal
from andthen.frames import FrameCutter, frame

_WAIT_S = 5.0
"""How long a worker waits for an answer: the hub only counts, so this is a machine that stands still."""

_LOG = structlog.get_logger("andthen.limits")


class Take(Struct, frozen=True, tag=True):
    number: int
    key_id: str
    bounds: Bounds
    tokens: int


class Settle(Struct, frozen=True, tag=True):
    number: int
    tokens: int


class Forget(Struct, frozen=True, tag=True):
    """Nobody waits for this take any more."""

    number: int


class Answer(Struct, frozen=True):
    """To a `Take`; the others have none."""

    number: int
    standing: Standing
    refused: Refused | None = None


_Question = Take | Settle | Forget
_decode_question = msgspec.msgpack.Decoder(_Question).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


class Hub:
    """The end that counts: `async with Hub(path):`.

    Args:
        path: of the Unix socket, which it makes.
    """

    def __init__(self, path: str, *, window_ms: int = WINDOW_MS, now_ms: Callable[[], int] = monotonic_ms) -> None:
        self._path = path
        self._counts = Counts(window_ms)
        self._now_ms = now_ms
        self._links = itertools.count(1)
        self._open: set[_WorkerLink] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _WorkerLink(self, next(self._links)), self._path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for link in list(self._open):
            link.close()
            await link.lost.wait()

    def opened(self, link: _WorkerLink) -> None:
        self._open.add(link)

    def closed(self, link: _WorkerLink) -> None:
        """What it ran is over, and nobody knows what it used."""
        self._open.discard(link)
        for number, key_id in link.running.items():
            if log := self._counts.log(key_id):
                log.release(link.grant_id(number))

    def handle(self, link: _WorkerLink, question: _Question) -> Answer | None:
        if isinstance(question, Take):
            grant_id = link.grant_id(question.number)
            outcome = self._counts.take(self._now_ms(), grant_id, question.key_id, question.bounds, question.tokens)
            if isinstance(outcome, Refused):
                return Answer(question.number, outcome.standing, outcome)
            link.running[question.number] = question.key_id
            return Answer(question.number, outcome)
        key_id = link.running.pop(question.number, None)
        log = self._counts.log(key_id) if key_id is not None else None
        if log is not None:
            if isinstance(question, Settle):
                log.settle(link.grant_id(question.number), question.tokens)
            else:
                log.forget(link.grant_id(question.number))
        return None


class _WorkerLink(asyncio.Protocol):
    def __init__(self, hub: Hub, number: int) -> None:
        self._hub = hub
        self._number = number
        self._cutter = FrameCutter()
        self._transport: asyncio.Transport
        self.running: dict[int, str] = {}
        """A take's number → its key."""
        self.lost = asyncio.Event()

    def grant_id(self, number: int) -> str:
        return f"{self._number}.{number}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._hub.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._cutter.feed(data):
                if answer := self._hub.handle(self, _decode_question(body)):
                    self._transport.write(frame(answer))
        except msgspec.MsgspecError as error:
            _LOG.error("worker_garbled", reason=str(error))
            self._transport.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._hub.closed(self)
        self.lost.set()

    def close(self) -> None:
        self._transport.abort()


class HubLimiter:
    """The `Limiter` of a worker that asks the hub: `async with HubLimiter(path) as limiter`.

    A link that breaks is made again by the next take.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._numbers = itertools.count(1)
        self._link: _HubLink | None = None
        self._linking = asyncio.Lock()

    async def __aenter__(self) -> Self:
        with contextlib.suppress(OSError):
            await self._linked()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._link is not None:
            self._link.close()
            await self._link.lost.wait()

    @property
    def state(self) -> State:
        return "ok" if self._link is not None and self._link.is_open else "refusing"

    async def take(self, key_id: str, bounds: Bounds, tokens: int) -> Grant:
        """As the protocol says."""
        if bounds.unbounded:
            return Grant("", key_id)
        check_possible(bounds, tokens)
        number = next(self._numbers)
        try:
            async with asyncio.timeout(_WAIT_S):
                link = await self._linked()
                answer = await link.ask(Take(number, key_id, bounds, tokens))
        except (OSError, TimeoutError) as error:
            raise or_refusal(
                LimitsUnavailable("This key's limits can't be counted at the moment: send the request again.")
            ) from error
        if answer.refused is not None:
            raise limited(bounds, answer.refused, tokens)
        return Grant(str(number), key_id, bounds, answer.standing)

    async def settle(self, grant: Grant, tokens: int) -> None:
        """As the protocol says. Nothing in it waits: frames arrive in their order."""
        if grant.id and self._link is not None:
            self._link.tell(Settle(int(grant.id), tokens))

    async def _linked(self) -> _HubLink:
        async with self._linking:
            if self._link is None or not self._link.is_open:
                loop = asyncio.get_running_loop()
                _, self._link = await loop.create_unix_connection(_HubLink, self._path)
            return self._link


class _HubLink(asyncio.Protocol):
    def __init__(self) -> None:
        self._cutter = FrameCutter()
        self._transport: asyncio.Transport
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self.is_open = False
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._cutter.feed(data):
                answer = _decode_answer(body)
                if (waiting := self._waiting.get(answer.number)) and not waiting.done():
                    waiting.set_result(answer)
        except msgspec.MsgspecError as error:
            _LOG.error("hub_garbled", reason=str(error))
            self.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.is_open = False
        self.lost.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError())

    async def ask(self, question: Take) -> Answer:
        """Raises OSError. A wait that ends in any other way takes the question back."""
        waiting = self._waiting[question.number] = asyncio.get_running_loop().create_future()
        self.tell(question)
        try:
            answer: Answer = await waiting
        except asyncio.CancelledError:
            self.tell(Forget(question.number))
            raise
        finally:
            del self._waiting[question.number]
        return answer

    def tell(self, question: _Question) -> None:
        if self.is_open:
            self._transport.write(frame(question))

    def close(self) -> None:
        self._transport.abort()
