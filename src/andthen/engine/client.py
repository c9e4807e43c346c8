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

    def job(self, owner: str, model: str, request: CompletionRequest) -> Job:
        """A completion that is submitted when the job runs.

        Args:
            owner: whose turn it is: jobs of different owners are served fairly.
            model: the full name, `local/NAME`.
        """
        known = self.models.get(model)
        return Job(self, owner, model, request, known.fingerprint if known else None)

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
    """One completion: see `gateway.backend.Attempt`. `run` may be called once."""

    __slots__ = (
        "_ended", "_engine", "_error", "_link", "_model", "_over", "_owner", "_paused", "_receiver", "_request",
        "_taken", "began_s", "fingerprint", "number", "usage",
    )  # fmt: skip

    def __init__(
        self, engine: EngineClient, owner: str, model: str, request: CompletionRequest, fingerprint: str | None
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._model = model
        self._request = request
        self._link: _EngineLink
        self._receiver: Callable[[list[Event]], None] | None = None
        self._ended: asyncio.Future[None]
        self._error: Exception | None = None
        self._over = False
        self._paused = False
        self._taken = 0
        """Generated tokens that were passed on since credit was last given."""
        self.number = 0
        self.fingerprint = fingerprint
        self.usage: Usage | None = None
        self.began_s: float | None = None

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """The job itself, once its usage is known."""
        if self.usage is None:
            return ()
        now_s = time.monotonic()
        began_s = now_s if self.began_s is None else self.began_s
        error = self._error
        status, code = (error.status, error.code) if isinstance(error, AndthenError) else (200, "")
        return (Exchange(status, self.usage, now_s - began_s, began_s, code),)

    async def run(self, receiver: Callable[[list[Event]], None]) -> None:
        """Submits the job and gives its events to `receiver` until it has ended; cancels it if it is left before.

        Raises:
            EngineRestarted: there is no engine at the moment, or it was lost.
            AndthenError: any other error of the engine's; and what `receiver` raises.
        """
        engine = self._engine
        self._link = engine._linked()
        self.number = next(engine._numbers)
        self._receiver = receiver
        self._ended = asyncio.get_running_loop().create_future()
        engine._jobs[self.number] = self
        self._link.ask(Submit(self.number, self._owner, self._model, self._request))
        try:
            await self._ended
        finally:
            self._receiver = None
            if not self._over:
                await self._cancel()
        if self._error is not None:
            raise self._error

    def pause(self) -> None:
        """Gives the engine no credit, so that it sets the job aside once it is ahead of its reader."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._give_credit()

    def receive(self, events: list[Event]) -> None:
        if self.began_s is None:
            self.began_s = time.monotonic()
        if events and isinstance(last := events[-1], Usage):
            self.usage = last
            self._over = True
            self._engine._jobs.pop(self.number, None)
        if self._receiver is not None:
            try:
                self._receiver(events)
            except Exception as error:
                self._error, self._receiver = error, None
                self._wake()
                return
            if not self._over:
                for event in events:
                    if isinstance(event, Text | Finished):
                        self._taken += event.generated
                self._give_credit()
        if self._over:
            self._wake()

    def fail(self, error: AndthenError) -> None:
        self._over = True
        self._engine._jobs.pop(self.number, None)
        if self._error is None:
            self._error = error
        self._wake()

    async def _cancel(self) -> None:
        """Ends the job, and waits for its last count: at most `CANCEL_WAIT_S`."""
        self._ended = asyncio.get_running_loop().create_future()
        self._link.ask(Cancel(self.number))
        try:
            async with asyncio.timeout(CANCEL_WAIT_S):
                await self._ended
        except TimeoutError:
            _LOG.error("engine_left_cancel_unanswered", job=self.number)
        finally:
            self._engine._jobs.pop(self.number, None)

    def _wake(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _give_credit(self) -> None:
        if self._taken >= CREDIT_TOKENS // _CREDIT_SHARE and not (self._paused or self._over):
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
