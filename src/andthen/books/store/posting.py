"""Posts records of the ledger, each statement once for all that need it. To post a record again changes nothing."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from andthen.books.store.driver import Driver, Row
from andthen.books.store.postgres import KEYS_LOCK
from andthen.books.store.schema import CALLS, REQUESTS
from andthen.books.store.spending import Changes
from andthen.ledger.records import Intent, Settlement

_LOST = "lost"


def post(driver: Driver, intents: Sequence[Intent], settlements: Sequence[Settlement]) -> None:
    """As `JournalStorage.post` says. No two records of one kind are of the same request."""
    if driver.database == "postgresql":  # in SQLite nobody else writes
        keys = {intent.key_id for intent in intents} | {settlement.intent.key_id for settlement in settlements}
        driver.write(_LOCK, [{"keys": sorted(keys)}])
    ids = [intent.id for intent in intents]
    ids += [settlement.intent.id for settlement in settlements]
    there = ended_by(driver, ids)
    changes = Changes()
    _settle(driver, settlements, there, changes)
    opened = [intent for intent in intents if intent.id not in there]
    driver.insert(_OPEN, [_opened(intent) for intent in opened])
    for intent in opened:
        changes.open(intent)
    changes.write(driver)


def ended_by(driver: Driver, ids: Collection[str]) -> dict[str, str]:
    """By what those of the requests ended that are there; empty for one that is open."""
    if driver.database == "postgresql":
        [rows] = driver.read(_THERE_POSTGRES, [{"ids": list(ids)}])
    else:
        [rows] = driver.read(_THERE_SQLITE, [{"ids": json.dumps(list(ids))}])
    return {row[0]: row[1] if row[2] is not None else "" for row in rows}


def _settle(driver: Driver, settlements: Sequence[Settlement], there: dict[str, str], changes: Changes) -> None:
    rows: list[Row] = []
    calls: list[Row] = []
    corrected: list[dict[str, Any]] = []
    for settlement in settlements:
        request_id = settlement.intent.id
        before = there.get(request_id)
        if before is None:
            rows.append(_whole(settlement))
        elif not before or (before == _LOST and settlement.ended_by != _LOST):
            # Open, or taken for dead because the database was gone while its lease ran out.
            corrected.append({"of": request_id} | dict(zip(_SETTLED, _closed(settlement), strict=True)))
        else:
            continue
        there[request_id] = settlement.ended_by
        changes.settle(settlement, was_open=before == "")
        for number, call in enumerate(settlement.calls):
            tokens = call.tokens
            calls.append((
                request_id, number, call.model, call.status, tokens.prompt, tokens.cached, tokens.completion,
                tokens.reasoning, tokens.source, call.cost_micros, call.took_ms,
            ))  # fmt: skip
    driver.insert(_INSERT, rows)
    driver.write(_CORRECT, corrected)
    driver.insert(_CALL, calls)


def _opened(intent: Intent) -> Row:
    return (
        intent.id, intent.key_id, intent.lease_owner, intent.model, intent.started_at_ms, intent.stream,
        intent.account, intent.user, intent.reserved_micros, intent.reserved_tokens,
    )  # fmt: skip


def _closed(settlement: Settlement) -> Row:
    tokens = settlement.tokens
    return (
        settlement.settled_at_ms, settlement.status, settlement.ended_by, settlement.code, settlement.model,
        settlement.cost_micros, settlement.price, settlement.plan, settlement.origin, settlement.retries,
        settlement.queue_ms, settlement.first_ms, settlement.total_ms, tokens.prompt, tokens.cached,
        tokens.completion, tokens.reasoning, tokens.source,
    )  # fmt: skip


def _whole(settlement: Settlement) -> Row:
    return _opened(settlement.intent) + _closed(settlement)


_OPENED = (
    "id", "key_id", "holder", "model_asked", "started_at_ms", "stream", "account", "user", "reserved_micros",
    "reserved_tokens",
)  # fmt: skip
_SETTLED = (
    "settled_at_ms", "status", "ended_by", "code", "model_answered", "cost_micros", "price", "plan", "origin",
    "retries", "queue_ms", "first_ms", "total_ms", "prompt_tokens", "cached_tokens", "completion_tokens",
    "reasoning_tokens", "source",
)  # fmt: skip
_LOCK = sa.text(KEYS_LOCK)
_OPEN = REQUESTS, _OPENED
_INSERT = REQUESTS, _OPENED + _SETTLED
_CALL = CALLS, tuple(CALLS.c.keys())
_CORRECT = REQUESTS.update().where(REQUESTS.c.id == sa.bindparam("of")).values(
    {name: sa.bindparam(name) for name in _SETTLED}
)  # fmt: skip
_THERE_POSTGRES = sa.text("SELECT id, ended_by, settled_at_ms FROM requests WHERE id = ANY(CAST(:ids AS text[]))")
_THERE_SQLITE = sa.text(
    "SELECT id, ended_by, settled_at_ms FROM requests WHERE id IN (SELECT value FROM json_each(:ids))"
)
