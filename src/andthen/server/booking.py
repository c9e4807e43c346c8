"""What one request leaves in the books: admitted, held before its work, settled after it whatever ended it."""

from __future__ import annotations

import asyncio
import time

from andthen.accounts import Account, Outcome
from andthen.books.limits import Bounds, Grant
from andthen.books.texts import Draft
from andthen.complete import Work
from andthen.contract.errors import AndthenError, InternalError, ShuttingDown
from andthen.contract.events import Event
from andthen.contract.request import CompletionRequest, worst_prompt_tokens
from andthen.ledger.records import EndedBy, Origin
from andthen.server.http import ClientGone, Exchange
from andthen.server.services import Services

CALLER_LEFT = 499
"""In the books, in logs and in metrics only."""


class Booking:
    """One request's. `settle` once it is over: before its last byte where the reply is whole, else with the error."""

    def __init__(self, services: Services, exchange: Exchange) -> None:
        self._services = services
        self._exchange = exchange
        self._account: Account | None = None
        self._grant: Grant | None = None
        self._work: Work | None = None
        self._draft: Draft | None = None
        self.first_text_s: float | None = None
        """Seconds from the request's headers to its first text."""
        self.origin: Origin = "model"
        self.waits = False
        """A reply without error is not settled yet: it is to be kept first."""
        if exchange.key is not None:
            self._account = services.accounts.open(exchange.key, exchange.id, exchange.account or "")

    def note(self, request: CompletionRequest) -> None:
        """What was asked."""
        if self._account is not None:
            self._account.note(request)

    def name(self, model: str) -> None:
        """The model that was asked for, which there is."""
        if self._account is not None:
            self._account.name(model)

    async def admit(self, request: CompletionRequest) -> None:
        """Counts the request, at the worst that it may need.

        Raises:
            RateLimited, LimitsUnavailable
            BadRequest: it needs more tokens than the key may ever use in a minute.
        """
        key = self._exchange.key
        if key is None or (bounds := Bounds.of(key.policy)).unbounded:
            return
        self._grant = await self._services.limiter.take(key.id, bounds, self._worst_tokens(request))
        headers = self._grant.headers()
        self._exchange.reply_headers += [(name.encode(), value.encode()) for name, value in headers]

    def _worst_tokens(self, request: CompletionRequest) -> int:
        """The most that a request can come to. Upstream a prompt may be sent once for each candidate; the embedded
        engine reads it once."""
        is_local = self._services.catalog.find(request.model).abilities.vocab_size is not None
        prompts = sum(
            worst_prompt_tokens(prompt, len(prompt) if is_local and isinstance(prompt, tuple) else None)
            for prompt in request.prompts
        )
        if request.suffix is not None:
            prompts += len(request.prompts) * worst_prompt_tokens(request.suffix)
        generated = len(request.prompts) * request.best_of * request.max_tokens
        return prompts * (1 if is_local else request.best_of) + generated

    def take_kept(self, work: Work) -> None:
        """Its reply was kept: nothing is reserved and no intent written, for nothing can be spent."""
        self._work, self.origin = work, "cache"

    async def hold(self, request: CompletionRequest, work: Work) -> None:
        """What it may cost is about to be written down; the work waits for that where it has to. Raises:
        ModelNotAllowed."""
        self._work = work
        if self._account is not None:
            work.placed = await self._account.hold(request, work)

    @property
    def has_cost(self) -> bool:
        """Something was processed for it, by what is known so far."""
        usage = None if self._work is None else self._work.usage
        return usage is not None and usage.prompt_tokens + usage.completion_tokens > 0

    def quote(self, request: CompletionRequest) -> None:
        """Its prompts, and what it will hear, are kept where the settings say so."""
        self._draft = self._services.texts.begin(self._exchange.id, request)

    def hear(self, events: list[Event]) -> None:
        """What the reply is made of, as it comes."""
        if self._draft is not None:
            self._draft.add(events)

    async def settle(self, error: BaseException | None = None) -> None:
        """Writes down how it ended. Only the first call counts; one that is cancelled counts too."""
        if self.waits and error is None:
            return
        draft, self._draft = self._draft, None
        if draft is not None and self._work is not None and self._work.may_begin:
            self._services.texts.keep(draft)
        try:
            await self._give_back()
        finally:
            if self._account is not None:
                await self._write(self._account, error)

    async def _give_back(self) -> None:
        """Makes room in the limits again for what was not needed."""
        grant, self._grant = self._grant, None
        if grant is not None:
            usage = None if self._work is None else self._work.usage
            used = 0 if usage is None else usage.prompt_tokens + usage.completion_tokens
            await self._services.limiter.settle(grant, used)

    async def _write(self, account: Account, error: BaseException | None) -> None:
        work, started_s = self._work, self._exchange.started_s
        told = self._exchange.status or 200
        status, ended_by, code = _ending(error, told, stopping=self._services.stopping)
        began_s = None if work is None else work.began_s
        await account.settle(
            Outcome(
                status=status,
                ended_by=ended_by,
                code=code,
                model="" if work is None else work.deployment.model,
                plan="" if work is None else work.plan.header(),
                origin=self.origin,
                retries=0 if work is None else work.retries,
                queue_ms=None if began_s is None else _ms(began_s - started_s),
                first_ms=None if self.first_text_s is None else _ms(self.first_text_s),
                total_ms=_ms(time.monotonic() - started_s),
                exchanges=() if work is None else tuple(work.exchanges),
            )
        )


def _ending(error: BaseException | None, told: int, *, stopping: bool) -> tuple[int, EndedBy, str]:
    """Status, who ended it, and the error's code. Without an error it is as `told`, which may be a kept error."""
    if error is None:
        return told, "reply" if told < 400 else "error", ""
    if isinstance(error, AndthenError):
        return error.status, "error", error.code
    if isinstance(error, ClientGone) or (isinstance(error, asyncio.CancelledError) and not stopping):
        return CALLER_LEFT, "caller", ""
    if isinstance(error, asyncio.CancelledError):
        return ShuttingDown.status, "error", ShuttingDown.code
    return InternalError.status, "error", InternalError.code


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
