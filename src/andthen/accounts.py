"""What a request may cost and what it did cost: one hold before its attempts, one settlement after. Knows no HTTP.

The hold reserves the most that the request can come to in every budget of its key, and appends its intent to the
journal. The settlement puts what it did cost in the reservation's place, whatever ended the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from andthen.books.keys import Key
from andthen.books.prices import PriceBook
from andthen.complete import Work
from andthen.contract.errors import (
    AndthenError,
    BudgetExceeded,
    ContextLengthExceeded,
    LedgerUnavailable,
    ModelNotAllowed,
)
from andthen.contract.events import Exchange, Usage, total
from andthen.contract.request import CompletionRequest, Prompt, worst_prompt_tokens
from andthen.descriptors import or_refusal
from andthen.ledger.budgets import Budgets, Hold
from andthen.ledger.journal import JournalUnavailable, PendingWrite
from andthen.ledger.records import Budget, Call, EndedBy, Intent, Origin, Settlement, Shortfall, Tokens
from andthen.ledger.storage import StorageError
from andthen.ledger.worker_ledger import WorkerLedger
from andthen.plan.plan import Plan
from andthen.plan.spread import Part, parts
from andthen.sources import Deployment, Placed

Exchanged = tuple[str, Exchange]
"""The whole name of a deployment, and an exchange with it."""
CountTokens = Callable[[str, str, str, bool], Awaitable[int]]
"""(who asks, whole name of a local model, text, whether special tokens are read in it) → tokens, a document's start
included."""
_RESERVE_WAIT_S = 2.0
"""A request whose cost can't be reserved within this is refused."""
_MARKERS = 8
"""More than any model's marks of a gap to fill."""
_NAME_MAX = 256
_TOKENS_MAX = 2**40
"""More than any call has: a vendor that tells more must not pass what a column of the ledger holds."""


class Outcome(Struct, frozen=True, kw_only=True):
    """How a request ended."""

    status: int
    ended_by: EndedBy
    code: str = ""
    model: str = ""
    """The deployment that answered, or was asked last."""
    plan: str = ""
    origin: Origin = "model"
    retries: int = 0
    queue_ms: int | None = None
    first_ms: int | None = None
    total_ms: int = 0
    exchanges: tuple[Exchanged, ...] = ()


class Accounts:
    """Every request's.

    Args:
        count_tokens: the embedded engine's tokenizer.
    """

    def __init__(
        self, ledger: WorkerLedger, budgets: Budgets, prices: PriceBook, count_tokens: CountTokens
    ) -> None:  # fmt: skip
        self.ledger = ledger
        self.budgets = budgets
        self._prices = prices
        self._count_tokens = count_tokens

    @property
    def ledger_healthy(self) -> bool:
        """Whether the database takes what is written, and soon."""
        return self.ledger.healthy

    def open(self, key: Key, request_id: str, account: str) -> Account:
        """A request that passed the key."""
        return Account(self, Intent(
            id=request_id, key_id=key.id, lease_owner=self.ledger.lease_owner, model="", started_at_ms=_now_ms(),
            account=account, budgets=key.policy.budgets,
        ))  # fmt: skip

    def affordable(
        self, candidates: Sequence[tuple[Deployment, Plan]], budgets: Sequence[Budget], at_ms: int
    ) -> list[tuple[Deployment, Plan]]:
        """Those that a key with these budgets may use.

        Raises:
            ModelNotAllowed: none has a price, and a budget is in money.
        """
        if all(budget.micros is None for budget in budgets):
            return list(candidates)
        found = [one for one in candidates if self._prices.price(one[0].model, at_ms) is not None]
        if not found:
            raise ModelNotAllowed(
                "This key has a budget in money, and nobody has told what this model costs: set its price in "
                "[prices], or use another model.",
                param="model",
            )
        return found

    async def worst(
        self, key_id: str, request: CompletionRequest, candidates: Sequence[tuple[Deployment, Plan]], at_ms: int
    ) -> tuple[int, int]:
        """The most that an answer by the dearest of the candidates can cost: millionths of a dollar, and tokens."""
        micros = tokens = 0
        for deployment, plan in candidates:
            is_local = deployment.abilities.vocab_size is not None
            price = self._prices.price(deployment.model, at_ms)
            own_micros = own_tokens = 0
            for part in parts(request, plan):
                try:
                    prompt = sum([
                        await self._prompt_tokens(key_id, deployment.model if is_local else None, one, part.request)
                        for one in part.request.prompts
                    ])  # fmt: skip
                except ContextLengthExceeded:
                    continue  # the engine will refuse it likewise, before it costs anything
                completion = _completions(part) * part.request.max_tokens
                own_tokens += prompt + completion
                own_micros += 0 if price is None else price.worst_micros(prompt, completion)
            micros, tokens = max(micros, own_micros), max(tokens, own_tokens)
        return micros, tokens

    async def _prompt_tokens(self, key_id: str, model: str | None, prompt: Prompt, request: CompletionRequest) -> int:
        suffix = request.suffix
        special = request.parse_special and suffix is None  # around a gap the engine reads none
        counted: int | None = None
        if isinstance(prompt, tuple):
            counted = len(prompt) if model is not None else None
        elif model is not None:
            counted = await self._count_tokens(key_id, model, prompt, special)
        more = 0
        if suffix is not None:
            own = await self._count_tokens(key_id, model, suffix, special) if model is not None else None
            more = worst_prompt_tokens(suffix, own) + _MARKERS
        return worst_prompt_tokens(prompt, counted) + more

    async def reserve(self, hold: Hold) -> None:
        """Reserves what a request may cost, where that takes others. Raises: BudgetExceeded, LedgerUnavailable,
        NoDescriptors"""
        try:
            async with asyncio.timeout(_RESERVE_WAIT_S):
                shortfall = await self.budgets.reserve(hold)
        except (StorageError, TimeoutError) as error:
            raise _unavailable() from error
        if shortfall is not None:
            raise _exceeded(shortfall)

    async def write_settlement(self, settlement: Settlement, *, opened: bool) -> None:
        pending = self.ledger.append_settlement(settlement, opened=opened)
        if settlement.code != LedgerUnavailable.code:  # nothing was spent, and the refusal is to be sent soon
            with contextlib.suppress(JournalUnavailable):  # it is kept in memory, and written later
                await pending

    def costed(self, exchange: Exchanged, at_ms: int) -> tuple[Call, str]:
        """An exchange as the ledger has it, and the price that was used."""
        model, told = exchange
        usage = told.usage
        tokens = Tokens(
            prompt=_count(usage.prompt_tokens),
            cached=_count(usage.cached_tokens),
            completion=_count(usage.completion_tokens),
            reasoning=_count(usage.reasoning_tokens),
            source=usage.source,
        )
        price = self._prices.price(model, at_ms)
        cost = 0
        if price is not None and tokens.total:
            cost = price.cost_micros(tokens.prompt, tokens.completion, cached=tokens.cached, reasoning=tokens.reasoning)
        call = Call(
            model=_name(model), status=told.status, tokens=tokens, cost_micros=cost, took_ms=round(1000 * told.took_s),
        )  # fmt: skip
        return call, "" if price is None else f"{price.prompt} + {price.completion} USD per million tokens"


class Account:
    """One request's."""

    def __init__(self, accounts: Accounts, intent: Intent) -> None:
        self._accounts = accounts
        self._intent = intent
        self._pending: PendingWrite | None = None
        """Of the intent, once it was appended."""
        self._reserving: asyncio.Task[None] | None = None
        self._refusal: AndthenError | None = None
        self._settled = False

    def note(self, request: CompletionRequest) -> None:
        """What was asked, once that is known."""
        self._intent = replace(self._intent, stream=request.stream, user=_name(request.user or ""))

    def name(self, model: str) -> None:
        """The model that was asked for, once that is known to exist: no row bears a name that a caller made up."""
        self._intent = replace(self._intent, model=_name(model))

    async def hold(self, request: CompletionRequest, work: Work) -> Placed:
        """Reserves the most that the work can come to and appends the intent to the journal, as far as nothing has to
        be waited for; what it returns waits for the rest. Where the key has a budget, only those may answer whose price
        is known.

        Raises:
            ModelNotAllowed
        """
        intent = self._intent
        if not intent.budgets:
            self._append()
            return self._placed
        affordable = self._accounts.affordable(work.candidates, intent.budgets, intent.started_at_ms)
        work.bound(affordable)
        micros, tokens = await self._accounts.worst(intent.key_id, request, affordable, intent.started_at_ms)
        self._intent = intent = replace(intent, reserved_micros=micros, reserved_tokens=tokens)
        hold = Hold(
            intent.id, intent.lease_owner, intent.key_id, intent.budgets, intent.started_at_ms, micros, tokens
        )  # fmt: skip
        outcome = self._accounts.budgets.try_reserve(hold)
        if outcome is True:
            self._append()
        elif outcome is False:
            self._reserving = asyncio.create_task(self._reserve(hold))
            self._reserving.add_done_callback(_look_at)
        else:
            self._refusal = _exceeded(outcome)
        return self._placed

    async def _reserve(self, hold: Hold) -> None:
        await self._accounts.reserve(hold)
        self._append()

    def _append(self) -> None:
        if self._intent.budgets:
            self._intent = replace(self._intent, budget_owner=self._accounts.budgets.owner)
        try:
            self._pending = self._accounts.ledger.append_intent(self._intent)
        except JournalUnavailable:
            self._refusal = _unavailable()

    async def _placed(self) -> None:
        """Returns once the cost is reserved and the intent written. Raises: BudgetExceeded, LedgerUnavailable,
        NoDescriptors"""
        if self._reserving is not None:
            await asyncio.wait((self._reserving,))  # one that stops waiting must not end it for the others
            self._reserving.result()
        if self._refusal is not None:
            raise self._refusal
        if self._pending is not None and not self._pending.written:
            try:
                await self._pending
            except JournalUnavailable as error:
                raise _unavailable() from error

    async def settle(self, outcome: Outcome) -> None:
        """Writes down how it ended; only the first counts. A cancellation of who waits here loses nothing."""
        if self._settled:
            return
        self._settled = True
        if self._reserving is not None:
            self._reserving.cancel()
        costed = [self._accounts.costed(exchange, self._intent.started_at_ms) for exchange in outcome.exchanges]
        calls = tuple(call for call, _ in costed)
        cost_micros, tokens = sum(call.cost_micros for call in calls), _sum([call.tokens for call in calls])
        if self._intent.budgets:
            # A budget must not depend on what a vendor reports.
            cost_micros = min(cost_micros, self._intent.reserved_micros)
            tokens = _at_most(tokens, self._intent.reserved_tokens)
        settlement = Settlement(
            intent=self._intent,
            status=outcome.status,
            ended_by=outcome.ended_by,
            settled_at_ms=_now_ms(),
            code=outcome.code,
            model=_name(outcome.model),
            tokens=tokens,
            cost_micros=cost_micros,
            price=next((price for _, price in reversed(costed) if price), ""),
            plan=outcome.plan,
            origin=outcome.origin,
            retries=outcome.retries,
            queue_ms=outcome.queue_ms,
            first_ms=outcome.first_ms,
            total_ms=outcome.total_ms,
            calls=calls,
        )
        if self._intent.budgets:
            self._accounts.budgets.settle(self._intent.id, settlement.cost_micros, settlement.tokens.total)
        await self._accounts.write_settlement(settlement, opened=self._pending is not None)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _name(text: str) -> str:
    """As every database can hold it: PostgreSQL's texts take no NUL."""
    return text.replace("\0", "")[:_NAME_MAX]


def _count(tokens: int | None) -> int:
    return min(max(0, tokens or 0), _TOKENS_MAX)


def _completions(part: Part) -> int:
    """Candidates that a call makes."""
    return max(part.request.n, part.request.best_of) * len(part.request.prompts)


def _sum(tokens: Sequence[Tokens]) -> Tokens:
    return Tokens(
        prompt=sum(one.prompt for one in tokens),
        cached=sum(one.cached for one in tokens),
        completion=sum(one.completion for one in tokens),
        reasoning=sum(one.reasoning for one in tokens),
        source=total([Usage(0, 0, source=one.source) for one in tokens]).source,
    )


def _at_most(tokens: Tokens, most: int) -> Tokens:
    """All in all; what is too much is taken from the prompt's first, where templates stand that nobody can foresee."""
    if tokens.total <= most:
        return tokens
    completion = min(tokens.completion, most)
    prompt = min(tokens.prompt, most - completion)
    return Tokens(
        prompt=prompt,
        cached=min(tokens.cached, prompt),
        completion=completion,
        reasoning=min(tokens.reasoning, completion),
        source="bounded",
    )


def _look_at(task: asyncio.Task[None]) -> None:
    """Who waited for it may have left."""
    if not task.cancelled():
        task.exception()


def _unavailable() -> AndthenError:
    return or_refusal(LedgerUnavailable("The ledger can't be written at the moment: send the request again."))


def _exceeded(shortfall: Shortfall) -> BudgetExceeded:
    def shown(amount: int) -> str:
        return f"{amount / 1_000_000:.6f} USD" if shortfall.kind == "money" else f"{amount} tokens"

    remedy = "Ask for less, or wait for the next period." if shortfall.for_good else "Send it again in a moment."
    return BudgetExceeded(
        f"The key's budget ({shortfall.budget.window}, {shortfall.kind}) has no room: {shown(shortfall.spent)} are "
        f"spent, {shown(shortfall.reserved)} held by requests under way, and this one may come to "
        f"{shown(shortfall.needed)}. {remedy}",
        for_good=shortfall.for_good,
    )
