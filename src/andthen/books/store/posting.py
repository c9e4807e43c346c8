"""Entries, posted to the ledger: the settlements first, since they make room for intents; each statement once for all
entries that need it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import sqlalchemy as sa

from andthen.books.ledger import Bounded, Intent, Settlement, Tokens
from andthen.books.policy import Budget
from andthen.books.store.driver import Driver, Values
from andthen.books.store.postgres import KEYS_LOCK
from andthen.books.store.schema import CALLS, REQUESTS
from andthen.books.store.spending import Changes, Spent, Standing

Entry = Intent | Settlement


def post(driver: Driver, entries: Sequence[Entry]) -> list[Bounded | None]:
    """Applies entries, none of which settles an intent that is among them too. A settlement that is already there is
    passed over.

    Returns:
        For each entry None, or for an intent that was not taken the budget that has no room.
    """
    intents = [entry for entry in entries if isinstance(entry, Intent)]
    settlements = [entry for entry in entries if isinstance(entry, Settlement)]
    if driver.database == "postgresql":  # in SQLite nobody else writes
        keys = {intent.key_id for intent in (*intents, *(settlement.intent for settlement in settlements))}
        driver.write(_LOCK, [{"keys": sorted(keys)}])
    if settlements:
        _settle(driver, settlements)
    told = iter(_intend(driver, intents) if intents else ())
    return [next(told) if isinstance(entry, Intent) else None for entry in entries]


def _intend(driver: Driver, intents: list[Intent]) -> list[Bounded | None]:
    standing, changes = Standing(driver, intents), Changes()
    told: list[Bounded | None] = []
    rows: list[Values] = []
    for intent in intents:
        full = (_bounded(budget, standing.of(intent, budget.window), intent) for budget in intent.budgets)
        bounded = next(filter(None, full), None)
        told.append(bounded)
        if bounded is None:
            by = Spent(reserved_micros=intent.reserved_micros, reserved_tokens=intent.reserved_tokens)
            standing.add(intent, by)
            changes.add(intent, by)
            rows.append(_opened(intent))
    driver.write(_OPEN, rows)
    changes.write(driver)
    return told


def _bounded(budget: Budget, spent: Spent, intent: Intent) -> Bounded | None:
    """The bound that has no room for an intent."""
    kinds: tuple[tuple[Literal["money", "tokens"], int | None, int, int, int], ...] = (
        ("money", budget.micros, spent.micros, spent.reserved_micros, intent.reserved_micros),
        ("tokens", budget.tokens, spent.tokens, spent.reserved_tokens, intent.reserved_tokens),
    )
    for kind, bound, used, reserved, needed in kinds:
        if bound is not None and used + reserved + needed > bound:
            return Bounded(budget, kind, used, reserved, needed)
    return None


def _settle(driver: Driver, settlements: list[Settlement]) -> None:
    changes = Changes()
    closed = driver.change(_CLOSE, [_closed(settlement) for settlement in settlements])
    in_time = [settlement for settlement, count in zip(settlements, closed, strict=True) if count]
    for intent in (settlement.intent for settlement in in_time):
        changes.add(intent, Spent(reserved_micros=-intent.reserved_micros, reserved_tokens=-intent.reserved_tokens))
    late = _settle_late(driver, [one for one, count in zip(settlements, closed, strict=True) if not count])
    for settlement in (*in_time, *late):
        changes.add(settlement.intent, Spent(micros=settlement.cost_micros, tokens=settlement.tokens.total))
    driver.write(_CALL, [call for settlement in (*in_time, *late) for call in _calls(settlement)])
    changes.write(driver)


def _settle_late(driver: Driver, settlements: list[Settlement]) -> list[Settlement]:
    """Settles what is not open: a request whose intent was not taken, or one that was taken for dead, because the
    database was gone while its lease ran out. Returns those that were either; the others were settled before."""
    if not settlements:
        return []
    first: dict[str, Settlement] = {}
    for settlement in settlements:
        first.setdefault(settlement.intent.id, settlement)
    late = list(first.values())
    ended_by = driver.read(_ENDED_BY, [{"id": settlement.intent.id} for settlement in late])
    unopened = [settlement for settlement, rows in zip(late, ended_by, strict=True) if not rows]
    lost = [
        settlement
        for settlement, rows in zip(late, ended_by, strict=True)
        if rows == [("lost",)] and settlement.ended_by != "lost"
    ]
    driver.write(_OPEN, [_opened(settlement.intent) for settlement in unopened])
    driver.write(_CORRECT, [_closed(settlement) for settlement in (*unopened, *lost)])
    return [*unopened, *lost]


def _opened(intent: Intent) -> Values:
    return {
        "id": intent.id, "key_id": intent.key_id, "holder": intent.holder, "model_asked": intent.model,
        "started_at_ms": intent.started_at_ms, "stream": intent.stream, "account": intent.account,
        "user": intent.user, "reserved_micros": intent.reserved_micros, "reserved_tokens": intent.reserved_tokens,
    }  # fmt: skip


def _closed(settlement: Settlement) -> Values:
    return {
        "of": settlement.intent.id, "settled_at_ms": settlement.settled_at_ms, "status": settlement.status,
        "ended_by": settlement.ended_by, "code": settlement.code, "model_answered": settlement.model,
        "cost_micros": settlement.cost_micros, "price": settlement.price, "plan": settlement.plan,
        "origin": settlement.origin, "retries": settlement.retries, "queue_ms": settlement.queue_ms,
        "first_ms": settlement.first_ms, "total_ms": settlement.total_ms, **_tokens(settlement.tokens),
    }  # fmt: skip


def _calls(settlement: Settlement) -> list[Values]:
    return [
        {
            "request_id": settlement.intent.id, "number": number, "model": call.model, "status": call.status,
            "cost_micros": call.cost_micros, "took_ms": call.took_ms, **_tokens(call.tokens),
        }
        for number, call in enumerate(settlement.calls)
    ]  # fmt: skip


def _tokens(tokens: Tokens) -> Values:
    return {
        "prompt_tokens": tokens.prompt, "cached_tokens": tokens.cached, "completion_tokens": tokens.completion,
        "reasoning_tokens": tokens.reasoning, "source": tokens.source,
    }  # fmt: skip


def _given(columns: Iterable[str]) -> dict[str, sa.BindParameter[Any]]:
    return {name: sa.bindparam(name) for name in columns}


_LOCK = sa.text(KEYS_LOCK)
_OPEN = REQUESTS.insert().values(_given((
    "id", "key_id", "holder", "model_asked", "started_at_ms", "stream", "account", "user", "reserved_micros",
    "reserved_tokens",
)))  # fmt: skip
_CORRECT = REQUESTS.update().where(REQUESTS.c.id == sa.bindparam("of")).values(_given((
    "settled_at_ms", "status", "ended_by", "code", "model_answered", "cost_micros", "price", "plan", "origin",
    "retries", "queue_ms", "first_ms", "total_ms", "prompt_tokens", "cached_tokens", "completion_tokens",
    "reasoning_tokens", "source",
)))  # fmt: skip
_CLOSE = _CORRECT.where(REQUESTS.c.settled_at_ms.is_(None))
_ENDED_BY = sa.select(REQUESTS.c.ended_by).where(REQUESTS.c.id == sa.bindparam("id"))
_CALL = CALLS.insert().values(_given(CALLS.c.keys()))
