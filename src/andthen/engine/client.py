"""A worker's end of its link to the engine's process, in asyncio. Knows nothing of HTTP.

The link is made again whenever it breaks. Work that was under way when it broke ends with `EngineRestarted`, and so
does work that is asked for until a new engine has answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar, cast

import msgspec
import structlog

from andthen.contract.errors import AndthenError, EngineRestarted, by_code
from andthen.contract.events import Event, Exchange, Finished, Text, Usage
from andthen.contract.request import CompletionRequest
from andthen.descriptors import or_refusal
from andthen.engine.frames import decode_answers
from andthen.engine.messages import (
    CREDIT_TOKENS,
    Answer,
    Cancel,
    Credit,
    Describe,
    Described,
    Detokenize,
    Detokenized,
    Emitted,
    Failed,
    ModelInfo,
    Question,
    Submit,
    Tokenize,
    Tokenized,
)
from andthen.frames import FrameCutter, frame

CANCEL_WAIT_S = 5.0
"""How long a cancelled job's last count is waited for; the engine looks between two steps."""

_RECONNECT_INTERVAL_S = 0.1
_CREDIT_SHARE = 4
"""Credit is sent in quarters, so that a reader who keeps up never makes the engine wait."""

_LOG = structlog.get_logger("andthen.engine")
_Reply = TypeVar("_Reply", Described, Tokenized, Detokenized)


class EngineClient:
    """`async with EngineClient(path) as engine:` keeps a link to whichever engine accepts at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._replies: dict[int, asyncio.Future[Described | Tokenized | Detokenized]] = {}
        self._link: _EngineLink | None = None
        self._ready = asyncio.Event()
        self._keeping: asyncio.Task[None]
        self.models: dict[str, ModelInfo] = {}
        """What the last engine that answered can run, by whole name; the first is the default."""

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keep_linked(), name="andthen-engine-link")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ready.clear()
        self._keeping.cancel()
        await asyncio.wait([self._keeping])

    @property
    def ready(self) -> bool:
        """An engine is there and has answered."""
        return self._ready.is_set()

    async def wait_ready(self) -> None:
        await self._ready.wait()

    def submit(self, owner: str, model: str, request: CompletionRequest) -> Job:
        """Asks for a completion.

        Args:
            owner: whose turn it is: jobs of different owners are served fairly.
            model: the whole name, `local/NAME`.

        Raises:
            EngineRestarted, NoDescriptors: there is no engine at the moment, or no link to it.
        """
        link = self._linked()
        known = self.models.get(model)
        job = Job(next(self._numbers), link, self._jobs, known.fingerprint if known else None)
        link.ask(Submit(job.number, owner, model, request))
        return job

    async def describe(self) -> list[ModelInfo]:
        """All models. Raises `EngineRestarted`."""
        return (await self._ask(Describe, Described)).models

    async def tokenize(
        self, model: str, text: str, *, owner: str = "", add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """The ids of a text. Raises the engine's `AndthenError`."""

        def question(number: int) -> Question:
            return Tokenize(number, model, text, add_special, parse_special, owner)

        return (await self._ask(question, Tokenized)).tokens

    async def detokenize(self, model: str, tokens: tuple[int, ...], *, owner: str = "") -> str:
        """The text of ids. Raises the engine's `AndthenError`."""
        return (await self._ask(lambda number: Detokenize(number, model, tokens, owner), Detokenized)).text

    async def _ask(self, question: Callable[[int], Question], kind: type[_Reply]) -> _Reply:
        return await self._ask_over(self._linked(), question, kind)

    async def _ask_over(self, link: _EngineLink, question: Callable[[int], Question], kind: type[_Reply]) -> _Reply:
        number = next(self._numbers)
        self._replies[number] = waiting = asyncio.get_running_loop().create_future()
        try:
            link.ask(question(number))
            reply = await waiting
        except asyncio.CancelledError:
            link.ask(Cancel(number))
            raise
        finally:
            del self._replies[number]
        if not isinstance(reply, kind):
            raise TypeError(f"the engine answered {type(reply).__name__} where {kind.__name__} was asked for")
        return reply

    def _linked(self) -> _EngineLink:
        if self._link is None or not self.ready:
            raise or_refusal(_restarted())
        return self._link

    async def _keep_linked(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(OSError, EngineRestarted):
                _, link = await loop.create_unix_connection(lambda: _EngineLink(self._answered, self._lose), self._path)
                try:
                    await self._use(link)
                finally:
                    link.close()
            await asyncio.sleep(_RECONNECT_INTERVAL_S)

    async def _use(self, link: _EngineLink) -> None:
        """Until the link breaks. The socket accepts also while no engine runs: only an answer tells of one."""
        models = (await self._ask_over(link, Describe, Described)).models
        self.models = {model.name: model for model in models}
        self._link = link
        self._ready.set()
        await link.lost.wait()

    def _lose(self) -> None:
        if self.ready:
            _LOG.warning("engine_link_lost", jobs=len(self._jobs))
        self._link = None
        self._ready.clear()
        for job in list(self._jobs.values()):
            job.fail(_restarted())
        for waiting in self._replies.values():
            if not waiting.done():
                waiting.set_exception(_restarted())

    def _answered(self, answers: list[Answer]) -> None:
        for answer in answers:
            if job := self._jobs.get(answer.job):
                if isinstance(answer, Emitted):
                    job.receive(answer.events)
                elif isinstance(answer, Failed):
                    job.fail(_told(answer))
            elif (waiting := self._replies.get(answer.job)) and not waiting.done():
                if isinstance(answer, Failed):
                    waiting.set_exception(_told(answer))
                elif not isinstance(answer, Emitted):
                    waiting.set_result(answer)


class Job:
    """One completion under way: an async iterator of lists of events, each list all that has come since the last.

    `async with job:` ends it when the block is left, whatever the reason; `usage` then tells what was processed, as
    far as the engine lived to say it.
    """

    __slots__ = (
        "_error", "_events", "_jobs", "_link", "_over", "_taken", "_waiter", "began_s", "fingerprint", "number",
        "usage",
    )  # fmt: skip

    def __init__(self, number: int, link: _EngineLink, jobs: dict[int, Job], fingerprint: str | None) -> None:
        self.number = number
        self.fingerprint = fingerprint
        self.usage: Usage | None = None
        self.began_s: float | None = None
        """When its turn had come, by `time.monotonic`."""
        self._link = link
        self._jobs = jobs
        self._events: list[Event] = []
        self._error: AndthenError | None = None
        self._over = False
        self._taken = 0
        self._waiter: asyncio.Future[None] | None = None
        jobs[number] = self

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """The job itself, once its usage is known."""
        if self.usage is None:
            return ()
        now_s = time.monotonic()
        began_s = now_s if self.began_s is None else self.began_s
        status, code = (200, "") if self._error is None else (self._error.status, self._error.code)
        return (Exchange(status, self.usage, now_s - began_s, began_s, code),)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Event]:
        """Cancelling the wait loses nothing. Raises the engine's `AndthenError`, `EngineRestarted` among them."""
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            await self._wait()
        events, self._events = self._events, []
        if not self._over:
            self._give_credit(events)
        return events

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cancel()

    async def cancel(self) -> Usage | None:
        """Ends the job where it has not ended, and waits for its last count: at most `CANCEL_WAIT_S`."""
        if not self._over:
            self._link.ask(Cancel(self.number))
            try:
                async with asyncio.timeout(CANCEL_WAIT_S):
                    while not self._over:
                        self._events.clear()
                        await self._wait()
            except TimeoutError:
                _LOG.error("engine_left_cancel_unanswered", job=self.number)
            finally:
                self._jobs.pop(self.number, None)
        return self.usage

    def receive(self, events: list[Event]) -> None:
        if self.began_s is None:
            self.began_s = time.monotonic()
        self._events += events
        if events and isinstance(last := events[-1], Usage):
            self.usage = last
            self._end()
        self._wake()

    def fail(self, error: AndthenError) -> None:
        self._error = error
        self._end()
        self._wake()

    def _end(self) -> None:
        self._over = True
        self._jobs.pop(self.number, None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _give_credit(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Text | Finished):
                self._taken += event.generated
        if self._taken >= CREDIT_TOKENS // _CREDIT_SHARE:
            self._link.ask(Credit(self.number, self._taken))
            self._taken = 0


class _EngineLink(asyncio.Protocol):
    """One connection to one engine."""

    def __init__(self, answered: Callable[[list[Answer]], None], told_lost: Callable[[], None]) -> None:
        self._answered = answered
        self._told_lost = told_lost
        self._cutter = FrameCutter()
        self._transport: asyncio.Transport
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._cutter.feed(data):
                self._answered(decode_answers(body))
        except msgspec.MsgspecError as error:
            _LOG.error("engine_garbled", reason=str(error))
            self.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.lost.set()
        self._told_lost()

    def ask(self, question: Question) -> None:
        """Sends; what a lost link can't carry is dropped, and its loss is told to everyone who waits."""
        if not self._transport.is_closing():
            self._transport.write(frame(question))

    def close(self) -> None:
        self._transport.abort()


def _restarted() -> EngineRestarted:
    return EngineRestarted("The engine was restarted: send the request again.")


def _told(failed: Failed) -> AndthenError:
    return by_code(failed.code)(failed.message, param=failed.param, retry_after_s=failed.retry_after_s)
