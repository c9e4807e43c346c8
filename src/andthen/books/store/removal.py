"""Old rows, removed in batches: each is a short transaction, so that no writer waits long for one.

What removed requests came to stays, by day, key and model. Budgets and the sums of `usage` read it beside the rows that
are left, so neither changes when rows go. A settlement that comes so late that its request's row is gone counts as one
whose intent the database never knew.
"""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa

from andthen.books.store.database import Database
from andthen.books.store.ledger import clock_ms, insert, lock_keys
from andthen.books.store.schema import AUDIT, CALLS, HOLDERS, REMOVED, REQUESTS, TEXTS
from andthen.books.store.usage import SUMS, THERE

Ageing = Literal["requests", "texts", "audit"]
"""What may be kept for a time: the rows of requests with all that is theirs, their texts alone, and the audit."""

_TURN = "removal"
"""Among the holders of leases; no process is called so."""


class Removal(Database):
    """Rows that are kept no longer."""

    def take_turn(self, lease_s: float) -> int | None:
        """Of all processes that ask within `lease_s`, one gets the moment, milliseconds since 1970 by the database's
        clock; the others None."""
        with self.writing() as connection:
            at_ms = clock_ms(connection)
            until_ms = at_ms + round(lease_s * 1000)
            taken = insert(connection, HOLDERS).values(id=_TURN, until_ms=until_ms)
            taken = taken.on_conflict_do_update(
                index_elements=["id"], set_={"until_ms": until_ms}, where=HOLDERS.c.until_ms < at_ms
            )
            return None if connection.execute(taken.returning(HOLDERS.c.id)).first() is None else at_ms

    def count_old(self, what: Ageing, before_ms: int) -> int:
        """How many rows are older than a moment, and may go."""
        table, old = _old(what, before_ms)
        with self.reading() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(table).where(old)).scalar_one())

    def remove_old(self, what: Ageing, before_ms: int, *, most: int) -> int:
        """Removes the oldest of them; how many. Requests under way stay, whatever their age."""
        with self.writing() as connection:
            if what == "requests":
                return _remove_requests(connection, before_ms, most)
            table, old = _old(what, before_ms)
            (name,) = table.primary_key
            oldest = sa.select(name).where(old).order_by(table.c.at_ms).limit(most)
            return connection.execute(table.delete().where(name.in_(oldest))).rowcount


def _old(what: Ageing, before_ms: int) -> tuple[sa.Table, sa.ColumnElement[bool]]:
    if what != "requests":
        table = AUDIT if what == "audit" else TEXTS
        return table, table.c.at_ms < before_ms
    return REQUESTS, sa.and_(REQUESTS.c.started_at_ms < before_ms, REQUESTS.c.settled_at_ms.is_not(None))


def _remove_requests(connection: sa.Connection, before_ms: int, most: int) -> int:
    _, old = _old("requests", before_ms)
    oldest = sa.select(REQUESTS.c.id, REQUESTS.c.key_id).where(old).order_by(REQUESTS.c.started_at_ms).limit(most)
    found = connection.execute(oldest).all()
    if not found:
        return 0
    # Another may have removed them, or settled a lost one, before we had the lock: what they come to is read after it.
    lock_keys(connection, {row.key_id for row in found})
    chosen = REQUESTS.c.id.in_([row.id for row in found])
    _add_up(connection, chosen)
    for table in (CALLS, TEXTS):
        connection.execute(table.delete().where(table.c.request_id.in_([row.id for row in found])))
    return connection.execute(REQUESTS.delete().where(chosen)).rowcount


def _add_up(connection: sa.Connection, chosen: sa.ColumnElement[bool]) -> None:
    """Adds what the chosen requests come to to what stays of removed ones."""
    each = THERE.where(chosen).subquery()
    groups = [each.c.key, each.c.day, each.c.model]
    sums = sa.select(*groups, *(sa.func.sum(each.c[name]) for name in SUMS)).group_by(*groups)
    added = insert(connection, REMOVED).from_select(["key_id", "start_ms", "model", *SUMS], sums)
    connection.execute(
        added.on_conflict_do_update(
            index_elements=["key_id", "start_ms", "model"],
            set_={name: REMOVED.c[name] + added.excluded[name] for name in SUMS},
        )
    )
