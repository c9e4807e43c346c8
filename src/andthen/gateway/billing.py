"""What a request may cost and what it did cost: one reservation before its attempts, one settlement after them.

The reservation is the most that the request can come to, in every budget of its key; with it the request's intent is
appended to the journal. The settlement replaces the reservation by what the request did cost, whatever ended it.
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
from andthen.contract.errors import BudgetExceeded, ContextLengthExceeded, LedgerUnavailable, ModelNotAllowed
from andthen.contract.events import Exchange, Usage, total
from andthen.contract.request import CompletionRequest, Prompt, worst_prompt_tokens
from andthen.descriptors import or_refusal
from andthen.gateway.backend import Deployment
from andthen.gateway.execution import Execution
from andthen.ledger.budgets import Budgets, Hold
from andthen.ledger.journal import JournalUnavailable, PendingWrite
from andthen.ledger.records import Budget, Call, EndedBy, Intent, Origin, Settlement, Shortfall, Tokens
from andthen.ledger.storage import StorageError
from andthen.ledger.worker_ledger import WorkerLedger
from andthen.plan.plan import Plan
from andthen.plan.spread import Part, parts

Exchanged = tuple[str, Exchange]
"""The whole name of a deployment, and an exchange with it."""
CountTokens = Callable[[str, str, str, bool], Awaitable[int]]
"""(owner, full name of a local model, text, whether special tokens are read in it) → number of tokens, with the token
that begins a document."""
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
                "This key has a budget in money, and this model has no price: set it in [prices], or use another "
                "model.",
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
        """Reserves the most that a request can cost. Raises: BudgetExceeded, LedgerUnavailable, NoDescriptors"""
        outcome = self.budgets.try_reserve(hold)
        if outcome is True:
            return
        if outcome is not False:
            raise _exceeded(outcome)
        try:
            async with asyncio.timeout(_RESERVE_WAIT_S):
                shortfall = await self.budgets.reserve(hold)
        except (StorageError, TimeoutError) as error:
            raise or_refusal(_unavailable()) from error
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
    """What one request has in the ledger."""

    __slots__ = ("_accounts", "_intent", "_pending", "_settled")

    def __init__(self, accounts: Accounts, intent: Intent) -> None:
        self._accounts = accounts
        self._intent = intent
        self._pending: PendingWrite | None = None
        """Of the intent, once it was appended."""
        self._settled = False

    def describe(self, model: str, request: CompletionRequest | None) -> None:
        """What was asked, as far as it is known.

        Args:
            model: the name that was asked for, empty unless it exists: no row has a name that a caller made up.
        """
        stream, user = (request.stream, _name(request.user or "")) if request is not None else (False, "")
        self._intent = replace(self._intent, model=_name(model), stream=stream, user=user)

    async def reserve(self, execution: Execution) -> None:
        """Reserves the most that the request can cost, and appends its intent to the journal. If the key has a budget,
        only deployments whose price is known may answer.

        Raises:
            ModelNotAllowed, BudgetExceeded, LedgerUnavailable, NoDescriptors
        """
        accounts, intent = self._accounts, self._intent
        if intent.budgets:
            affordable = accounts.affordable(execution.planned, intent.budgets, intent.started_at_ms)
            execution.restrict(affordable)
            execution.spend_within_budget()
            micros, tokens = await accounts.worst(intent.key_id, execution.asked, affordable, intent.started_at_ms)
            self._intent = intent = replace(intent, reserved_micros=micros, reserved_tokens=tokens)
            await accounts.reserve(Hold(
                intent.id, intent.lease_owner, intent.key_id, intent.budgets, intent.started_at_ms, micros, tokens
            ))  # fmt: skip
            self._intent = intent = replace(intent, budget_owner=accounts.budgets.owner)
        try:
            self._pending = accounts.ledger.append_intent(intent)
            if not self._pending.written:
                await self._pending
        except JournalUnavailable as error:
            raise or_refusal(_unavailable()) from error

    async def settle(self, outcome: Outcome) -> None:
        """Writes down how it ended; only the first counts. A cancellation of who waits here loses nothing."""
        if self._settled:
            return
        self._settled = True
        costed = [self._accounts.costed(exchange, self._intent.started_at_ms) for exchange in outcome.exchanges]
        calls = tuple(call for call, _ in costed)
        cost_micros, tokens = sum(call.cost_micros for call in calls), _sum([call.tokens for call in calls])
        if self._intent.budgets:  # a vendor's figures must not empty a budget
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
    """No more than `most` in all. The excess is taken from the prompt's first: a vendor's template is part of them."""
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


def _unavailable() -> LedgerUnavailable:
    return LedgerUnavailable("The ledger can't be written at the moment: send the request again.")


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
