"""Limits and budgets for several workers of one machine: the supervising process counts, and the workers ask it over a
Unix socket.

Of limits a link's end says that what the worker ran is over. What budgets hold for a worker outlives its link: it may
be made again, and of a worker that is dead the journal says what its requests came to.

The supervisor's own death ends the workers, so nothing is kept beyond it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar, cast

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

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
from andthen.ledger.budgets import Budgets, Hold
from andthen.ledger.records import Shortfall
from andthen.ledger.storage import StorageError, StorageUnavailable

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


class Reserve(Struct, frozen=True, tag=True):
    """A budget is to hold what a request may cost."""

    number: int
    hold: Hold


class Release(Struct, frozen=True, tag=True):
    """A request has ended, and came to this."""

    request_id: str
    micros: int
    tokens: int


class Answer(Struct, frozen=True, tag=True):
    """To a `Take`."""

    number: int
    standing: Standing
    refused: Refused | None = None


class Reserved(Struct, frozen=True, tag=True):
    """To a `Reserve`. The others have no answer."""

    number: int
    owner: str
    shortfall: Shortfall | None = None
    failure: str = ""
    """Why nobody knows whether there is room."""


_Question = Take | Settle | Forget | Reserve | Release
_Answer = Answer | Reserved
_decode_question = msgspec.msgpack.Decoder(_Question).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode
_A = TypeVar("_A", Answer, Reserved)


class Hub:
    """The end that counts: `async with Hub(path):`.

    Args:
        path: of the Unix socket, which it makes.
        budgets: whom workers ask to reserve; None: nobody, and they will not ask.
    """

    def __init__(
        self,
        path: str,
        budgets: Budgets | None = None,
        *,
        window_ms: int = WINDOW_MS,
        now_ms: Callable[[], int] = monotonic_ms,
    ) -> None:
        self._path = path
        self._budgets = budgets
        self._reserving: set[asyncio.Task[None]] = set()
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
        for task in self._reserving:
            task.cancel()
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

    def handle(self, link: _WorkerLink, question: _Question) -> _Answer | None:
        if isinstance(question, Reserve):
            return self._reserve(link, question)
        if isinstance(question, Release):
            if self._budgets is not None:
                self._budgets.settle(question.request_id, question.micros, question.tokens)
            return None
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

    def _reserve(self, link: _WorkerLink, question: Reserve) -> Reserved | None:
        """The answer, or None where it is sent later."""
        budgets = self._budgets
        if budgets is None:
            return Reserved(question.number, "", failure="nobody holds budgets here")
        outcome = budgets.try_reserve(question.hold)
        if outcome is not False:
            return Reserved(question.number, budgets.owner, None if outcome is True else outcome)

        async def reserve() -> None:
            try:
                answer = Reserved(question.number, "", await budgets.reserve(question.hold))
                answer = replace(answer, owner=budgets.owner)
            except StorageError as error:
                answer = Reserved(question.number, "", failure=str(error))
            link.send(answer)

        task = asyncio.get_running_loop().create_task(reserve())
        self._reserving.add(task)
        task.add_done_callback(self._reserving.discard)
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
                    self.send(answer)
        except msgspec.MsgspecError as error:
            _LOG.error("worker_garbled", reason=str(error))
            self._transport.abort()

    def send(self, answer: _Answer) -> None:
        if not self._transport.is_closing():
            self._transport.write(frame(answer))

    def connection_lost(self, _exc: Exception | None) -> None:
        self._hub.closed(self)
        self.lost.set()

    def close(self) -> None:
        self._transport.abort()


class _Linked:
    """A worker's link to the hub, made again where it broke."""

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
    def is_linked(self) -> bool:
        return self._link is not None and self._link.is_open

    async def _linked(self) -> _HubLink:
        async with self._linking:
            if self._link is None or not self._link.is_open:
                loop = asyncio.get_running_loop()
                _, self._link = await loop.create_unix_connection(_HubLink, self._path)
            return self._link


class HubLimiter(_Linked):
    """The `Limiter` of a worker that asks the hub: `async with HubLimiter(path) as limiter`."""

    @property
    def state(self) -> State:
        return "ok" if self.is_linked else "refusing"

    async def take(self, key_id: str, bounds: Bounds, tokens: int) -> Grant:
        """As the protocol says."""
        if bounds.unbounded:
            return Grant("", key_id)
        check_possible(bounds, tokens)
        number = next(self._numbers)
        try:
            async with asyncio.timeout(_WAIT_S):
                link = await self._linked()
                answer = await link.ask(Take(number, key_id, bounds, tokens), Answer)
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


class HubBudgets(_Linked):
    """The `Budgets` of a worker that asks the hub: `async with HubBudgets(path) as budgets`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.owner = ""
        self._held: set[str] = set()
        """Requests that the hub holds something for, or may."""
        self._owed: dict[str, Release] = {}
        """Releases that could not be sent to the hub yet."""

    def try_reserve(self, hold: Hold) -> Shortfall | bool:  # noqa: ARG002 - only the hub can
        """As the protocol says: only the hub can."""
        return False

    async def reserve(self, hold: Hold) -> Shortfall | None:
        """As the protocol says."""
        self._held.add(hold.request_id)
        try:
            async with asyncio.timeout(_WAIT_S):
                link = await self._linked()
                answer = await link.ask(Reserve(next(self._numbers), hold), Reserved)
        except (OSError, TimeoutError) as error:
            raise StorageUnavailable("the process that holds the budgets does not answer") from error
        if answer.failure:
            raise StorageUnavailable(answer.failure)
        if answer.shortfall is not None:
            self._held.discard(hold.request_id)
            return answer.shortfall
        self.owner = answer.owner
        return None

    def settle(self, request_id: str, micros: int, tokens: int) -> None:
        """As the protocol says."""
        if request_id not in self._held:
            return
        self._held.discard(request_id)
        release = Release(request_id, micros, tokens)
        if self._link is not None and self._link.is_open:
            self._link.tell(release)
        else:
            self._owed[request_id] = release

    async def _linked(self) -> _HubLink:
        link = await super()._linked()
        while self._owed:
            link.tell(self._owed.popitem()[1])
        return link


class _HubLink(asyncio.Protocol):
    def __init__(self) -> None:
        self._cutter = FrameCutter()
        self._transport: asyncio.Transport
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
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

    async def ask(self, question: Take | Reserve, kind: type[_A]) -> _A:
        """Raises OSError. A wait for a `Take` that ends in any other way takes it back."""
        waiting = self._waiting[question.number] = asyncio.get_running_loop().create_future()
        self.tell(question)
        try:
            answer = await waiting
        except asyncio.CancelledError:
            if isinstance(question, Take):
                self.tell(Forget(question.number))
            raise
        finally:
            del self._waiting[question.number]
        if not isinstance(answer, kind):
            raise ConnectionResetError
        return answer

    def tell(self, question: _Question) -> None:
        if self.is_open:
            self._transport.write(frame(question))

    def close(self) -> None:
        self._transport.abort()
