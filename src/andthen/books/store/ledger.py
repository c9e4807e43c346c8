"""The ledger in the database: requests, their calls, and what keys have spent.

Whatever has gathered is applied in one transaction, under a lock on each of its keys that is held until it is committed
and was taken before anything else: two writers never wait for each other in a circle, and spent and reserved together
never pass a bound, whoever else writes. A budget's row comes into being with what the ledger knows of the period, so a
budget that is set in the middle of a month counts the whole month.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from andthen.books.ledger import Bounded, Intent, Settlement
from andthen.books.policy import Budget, Window
from andthen.books.store.database import Database, now_ms
from andthen.books.store.postgres import CLOCK_MS, KEYS_LOCK
from andthen.books.store.posting import Entry, post
from andthen.books.store.schema import HOLDERS, REQUESTS
from andthen.books.store.spending import DAY_MS, KNOWN, PERIODS, Spent, period_start_ms, period_values


class Ledger(Database):
    """What was used."""

    def record(self, entries: Sequence[Entry]) -> list[Bounded | None]:
        """Applies entries in one transaction, none of which settles an intent that is among them too. A settlement that
        is already there is passed over.

        Returns:
            For each entry None, or for an intent that was not taken the budget that has no room.

        Raises:
            StoreUnavailable
            BadEntry: one of them can't be written, and so none was.
        """
        with self.driving() as driver:
            return post(driver, entries)

    def renew(self, holder: str, lease_s: float) -> None:
        """The process `holder` lives, for so long at least."""
        with self.writing() as connection:
            at_ms = clock_ms(connection)
            until_ms = at_ms + round(lease_s * 1000)
            row = insert(connection, HOLDERS).values(id=holder, until_ms=until_ms)
            connection.execute(row.on_conflict_do_update(index_elements=["id"], set_={"until_ms": until_ms}))
            connection.execute(HOLDERS.delete().where(HOLDERS.c.until_ms < at_ms - DAY_MS))

    def leases(self) -> dict[str, int]:
        """Who has open requests, and until when each has said to live; 0 where it never has."""
        held = sa.select(REQUESTS.c.holder).where(REQUESTS.c.settled_at_ms.is_(None)).distinct().subquery()
        until_ms = sa.func.coalesce(HOLDERS.c.until_ms, 0)
        with self.reading() as connection:
            rows = connection.execute(
                sa.select(held.c.holder, until_ms).select_from(held.outerjoin(HOLDERS, HOLDERS.c.id == held.c.holder))
            )
            return {holder: int(until) for holder, until in rows}

    def release_lost(self, holders: Collection[str]) -> int:
        """Settles what those of the holders left open whose lease has run out: as lost, at no cost, its reservation
        given back. How many."""
        with self.reading() as connection:
            alive = sa.select(HOLDERS.c.id).where(HOLDERS.c.until_ms >= clock_ms(connection))
            theirs = sa.and_(REQUESTS.c.holder.in_(holders), REQUESTS.c.holder.not_in(alive))
            lost = [
                Settlement(intent=_read_intent(row), status=500, ended_by="lost", code="lost", settled_at_ms=now_ms())
                for row in connection.execute(sa.select(REQUESTS).where(REQUESTS.c.settled_at_ms.is_(None), theirs))
            ]
        if lost:
            self.record(lost)
        return len(lost)

    def spent(self, key_id: str, budgets: Sequence[Budget]) -> list[Spent]:
        """What of each budget is used up in its present period."""
        at_ms = now_ms()
        with self.reading() as connection:
            rows = connection.execute(PERIODS, period_values(key_id, at_ms)).all()
            kept = {row.window: Spent(*map(int, row[2:])) for row in rows}
            return [kept.get(budget.window) or _known(connection, key_id, budget.window, at_ms) for budget in budgets]


def _read_intent(row: Any) -> Intent:
    return Intent(
        id=row.id,
        key_id=row.key_id,
        holder=row.holder,
        model=row.model_asked,
        started_at_ms=row.started_at_ms,
        stream=row.stream,
        account=row.account,
        user=row.user,
        reserved_micros=row.reserved_micros,
        reserved_tokens=row.reserved_tokens,
    )


def _known(connection: sa.Connection, key_id: str, window: Window, at_ms: int) -> Spent:
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
