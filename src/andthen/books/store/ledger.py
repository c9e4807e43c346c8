"""The ledger in the database: requests, their calls, what keys have spent, and what owners of budgets have drawn.

A batch is posted in one transaction, under a lock on each of its keys that is held until it is committed and was taken
before anything else: two writers never deadlock, and one that draws from a budget sees all that is spent of it. A
budget's row comes into being with what the ledger knows of the period, so a budget that is set in the middle of a month
counts the whole month.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from andthen.books.store.database import Database, now_ms
from andthen.books.store.postgres import CLOCK_MS, KEYS_LOCK
from andthen.books.store.posting import post
from andthen.books.store.schema import ALLOTMENTS, HOLDERS, REQUESTS
from andthen.books.store.spending import KNOWN, PERIODS, period_values
from andthen.ledger.periods import DAY_MS, period_start_ms
from andthen.ledger.records import Budget, Intent, Settlement, Spent, Window


class Ledger(Database):
    """What was used. The methods are those that `andthen.ledger.storage` declares."""

    def post(self, intents: Sequence[Intent], settlements: Sequence[Settlement]) -> None:
        """Raises: StoreUnavailable, BadEntry"""
        with self.driving() as driver:
            post(driver, intents, settlements)

    def renew(self, lease_owner: str, lease_s: float) -> None:
        with self.writing() as connection:
            at_ms = clock_ms(connection)
            until_ms = at_ms + round(lease_s * 1000)
            row = insert(connection, HOLDERS).values(id=lease_owner, until_ms=until_ms)
            connection.execute(row.on_conflict_do_update(index_elements=["id"], set_={"until_ms": until_ms}))
            connection.execute(HOLDERS.delete().where(HOLDERS.c.until_ms < at_ms - DAY_MS))

    def leases(self) -> dict[str, int]:
        open_ = sa.select(REQUESTS.c.holder).where(REQUESTS.c.settled_at_ms.is_(None))
        held = sa.union(open_, sa.select(ALLOTMENTS.c.owner)).subquery()
        until_ms = sa.func.coalesce(HOLDERS.c.until_ms, 0)
        with self.reading() as connection:
            rows = connection.execute(
                sa.select(held.c.holder, until_ms).select_from(held.outerjoin(HOLDERS, HOLDERS.c.id == held.c.holder))
            )
            return {lease_owner: int(until) for lease_owner, until in rows}

    def release_lost(self, lease_owners: Collection[str]) -> int:
        with self.reading() as connection:
            living = sa.select(HOLDERS.c.id).where(HOLDERS.c.until_ms >= clock_ms(connection))
            alive = set(connection.execute(living).scalars())
        return sum(self._bury(one) for one in sorted(lease_owners) if one not in alive)

    def end_lease(self, lease_owner: str) -> int:
        with self.writing() as connection:
            connection.execute(HOLDERS.delete().where(HOLDERS.c.id == lease_owner))
        return self._bury(lease_owner)

    def _bury(self, lease_owner: str) -> int:
        """Settles what a dead process has left open, and gives back what it held. How many requests."""
        with self.reading() as connection:
            left = sa.select(REQUESTS).where(REQUESTS.c.settled_at_ms.is_(None), REQUESTS.c.holder == lease_owner)
            lost = [
                Settlement(intent=_read_intent(row), status=500, ended_by="lost", code="lost", settled_at_ms=now_ms())
                for row in connection.execute(left)
            ]
            theirs = sa.select(ALLOTMENTS.c.key_id).where(ALLOTMENTS.c.owner == lease_owner).distinct()
            keys = set(connection.execute(theirs).scalars())
        if lost:
            self.post([], lost)
        if keys:
            with self.writing() as connection:
                lock_keys(connection, keys)
                dead = sa.not_(
                    sa.exists().where(HOLDERS.c.id == lease_owner, HOLDERS.c.until_ms >= clock_ms(connection))
                )
                if connection.execute(ALLOTMENTS.delete().where(ALLOTMENTS.c.owner == lease_owner, dead)).rowcount:
                    connection.execute(HOLDERS.delete().where(HOLDERS.c.id == lease_owner))
        return len(lost)

    def costs(self, request_ids: Collection[str]) -> dict[str, tuple[int, int]]:
        tokens = REQUESTS.c.prompt_tokens + REQUESTS.c.completion_tokens
        asked = sa.select(REQUESTS.c.id, REQUESTS.c.cost_micros, tokens)
        with self.reading() as connection:
            rows = connection.execute(asked.where(REQUESTS.c.id.in_(list(request_ids))))
            return {row[0]: (int(row[1]), int(row[2])) for row in rows}

    def spent(self, key_id: str, budgets: Sequence[Budget]) -> list[Spent]:
        """What of each budget is used up in its present period."""
        at_ms = now_ms()
        with self.reading() as connection:
            rows = connection.execute(PERIODS, period_values(key_id, at_ms)).all()
            kept = {row.window: Spent(*map(int, row[2:])) for row in rows}
            return [kept.get(budget.window) or known(connection, key_id, budget.window, at_ms) for budget in budgets]


def _read_intent(row: Any) -> Intent:
    return Intent(
        id=row.id,
        key_id=row.key_id,
        lease_owner=row.holder,
        model=row.model_asked,
        started_at_ms=row.started_at_ms,
        stream=row.stream,
        account=row.account,
        user=row.user,
        reserved_micros=row.reserved_micros,
        reserved_tokens=row.reserved_tokens,
    )


def known(connection: sa.Connection, key_id: str, window: Window, at_ms: int) -> Spent:
    row = connection.execute(KNOWN, {"key": key_id, "start_ms": period_start_ms(window, at_ms)}).one()
    return Spent(*map(int, row))


def lock_keys(connection: sa.Connection, key_ids: Collection[str]) -> None:
    """Lets nobody else change what these keys have spent until the transaction ends. In SQLite nobody else writes."""
    if connection.dialect.name == "postgresql" and key_ids:
        connection.execute(sa.text(KEYS_LOCK), {"keys": sorted(key_ids)})


def clock_ms(connection: sa.Connection) -> int:
    """Milliseconds since 1970, by the clock of the database where other machines use it too."""
    if connection.dialect.name == "postgresql":
        return int(connection.execute(sa.text(CLOCK_MS)).scalar_one())
    return now_ms()


def insert(connection: sa.Connection, table: sa.Table) -> Any:
    """INSERT with ON CONFLICT, which both databases have and SQL has not."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
