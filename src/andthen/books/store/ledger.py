"""The ledger in the database: requests, their calls, and what keys have spent.

Whatever has gathered is applied in one transaction, under a lock on each of its keys that is held until it is committed
and was taken before anything else: two writers never wait for each other in a circle, and spent and reserved together
never pass a bound, whoever else writes. A budget's row comes into being with what the ledger knows of the period, so a
budget that is set in the middle of a month counts the whole month.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import default

from andthen.books.ledger import Bounded, Intent, Settlement
from andthen.books.policy import WINDOWS, Budget, Window
from andthen.books.store.database import Database, now_ms
from andthen.books.store.postgres import CLOCK_MS, KEYS_LOCK
from andthen.books.store.schema import CALLS, HOLDERS, REMOVED, REQUESTS, SPENDING

Entry = Intent | Settlement
_DAY_MS = 86_400_000


class Spent(NamedTuple):
    """Of one key in one period: millionths of a dollar, and tokens."""

    micros: int = 0
    reserved_micros: int = 0
    tokens: int = 0
    reserved_tokens: int = 0


class Ledger(Database):
    """What was used."""

    def record(self, entries: Sequence[Entry]) -> list[Bounded | None]:
        """Applies entries in one transaction. A settlement that is already there is passed over.

        Returns:
            For each entry None, or for an intent that was not taken the budget that has no room.

        Raises:
            StoreUnavailable
            BadEntry: one of them can't be written, and so none was.
        """
        results: list[Bounded | None] = [None] * len(entries)
        with self.writing() as connection:
            lock_keys(connection, {_intent(entry).key_id for entry in entries})
            for place, entry in enumerate(entries):
                if isinstance(entry, Intent):
                    results[place] = _intend(connection, entry)
                else:
                    _settle(connection, entry)
        return results

    def renew(self, holder: str, lease_s: float) -> None:
        """The process `holder` lives, for so long at least."""
        with self.writing() as connection:
            until_ms = clock_ms(connection) + round(lease_s * 1000)
            row = insert(connection, HOLDERS).values(id=holder, until_ms=until_ms)
            connection.execute(row.on_conflict_do_update(index_elements=["id"], set_={"until_ms": until_ms}))

    def release_lost(self) -> int:
        """Settles what dead processes left open: as lost, at no cost, its reservation given back. How many."""
        with self.writing() as connection:
            at_ms = clock_ms(connection)
            alive = sa.select(HOLDERS.c.id).where(HOLDERS.c.until_ms >= at_ms)
            left = sa.select(REQUESTS).where(REQUESTS.c.settled_at_ms.is_(None), REQUESTS.c.holder.not_in(alive))
            lost = connection.execute(left).all()
            lock_keys(connection, {row.key_id for row in lost})
            for row in lost:
                _settle(connection, Settlement(
                    intent=_read_intent(row), status=500, ended_by="lost", code="lost", settled_at_ms=now_ms()
                ))  # fmt: skip
            connection.execute(HOLDERS.delete().where(HOLDERS.c.until_ms < at_ms - _DAY_MS))
            return len(lost)

    def spent(self, key_id: str, budgets: Sequence[Budget]) -> list[Spent]:
        """What of each budget is used up in its present period."""
        with self.reading() as connection:
            starts_ms = [(budget.window, period_start_ms(budget.window, now_ms())) for budget in budgets]
            return [
                _kept(connection, _of(key_id, window, start_ms)) or _known(connection, key_id, start_ms)
                for window, start_ms in starts_ms
            ]


def period_start_ms(window: Window, at_ms: int) -> int:
    """When the window that `at_ms` lies in began, UTC."""
    if window == "total":
        return 0
    if window == "day":
        return at_ms - at_ms % _DAY_MS
    month = datetime.fromtimestamp(at_ms / 1000, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return round(month.timestamp() * 1000)


def _intent(entry: Entry) -> Intent:
    return entry if isinstance(entry, Intent) else entry.intent


def _intend(connection: sa.Connection, intent: Intent) -> Bounded | None:
    for budget in intent.budgets:
        spent = _spending(connection, intent.key_id, budget.window, intent.started_at_ms)
        if (bounded := _bounded(budget, spent, intent)) is not None:
            return bounded
    _change(connection, intent, Spent(reserved_micros=intent.reserved_micros, reserved_tokens=intent.reserved_tokens))
    connection.execute(_OPEN, _opened(intent))
    return None


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


def _settle(connection: sa.Connection, settlement: Settlement) -> None:
    intent, tokens = settlement.intent, settlement.tokens
    values = _closed(settlement)
    released = Spent(reserved_micros=-intent.reserved_micros, reserved_tokens=-intent.reserved_tokens)
    if connection.execute(_CLOSE, values | {"id": intent.id}).rowcount == 0:
        # Of one that was taken for dead, because the database was gone while its lease ran out, the truth is told late.
        took = insert(connection, REQUESTS).values(_opened(intent) | values)
        made = took.on_conflict_do_update(
            index_elements=["id"],
            set_=values,
            where=sa.and_(REQUESTS.c.ended_by == "lost", sa.literal(settlement.ended_by) != "lost"),
        )
        if connection.execute(made.returning(REQUESTS.c.id)).first() is None:
            return  # it was settled before
        released = Spent()
    _change(connection, intent, released._replace(micros=settlement.cost_micros, tokens=tokens.total))
    if settlement.calls:
        connection.execute(_CALL, [
            {
                "request_id": intent.id, "number": number, "model": call.model, "status": call.status,
                "cost_micros": call.cost_micros, "took_ms": call.took_ms, **_tokens(call.tokens),
            }
            for number, call in enumerate(settlement.calls)
        ])  # fmt: skip


def _opened(intent: Intent) -> dict[str, Any]:
    return {
        "id": intent.id, "key_id": intent.key_id, "holder": intent.holder, "model_asked": intent.model,
        "started_at_ms": intent.started_at_ms, "stream": intent.stream, "account": intent.account,
        "user": intent.user, "reserved_micros": intent.reserved_micros, "reserved_tokens": intent.reserved_tokens,
    }  # fmt: skip


def _closed(settlement: Settlement) -> dict[str, Any]:
    return {
        "settled_at_ms": settlement.settled_at_ms, "status": settlement.status, "ended_by": settlement.ended_by,
        "code": settlement.code, "model_answered": settlement.model, "cost_micros": settlement.cost_micros,
        "price": settlement.price, "plan": settlement.plan, "origin": settlement.origin, "retries": settlement.retries,
        "queue_ms": settlement.queue_ms, "first_ms": settlement.first_ms, "total_ms": settlement.total_ms,
        **_tokens(settlement.tokens),
    }  # fmt: skip


def _tokens(tokens: Any) -> dict[str, Any]:
    return {
        "prompt_tokens": tokens.prompt, "cached_tokens": tokens.cached, "completion_tokens": tokens.completion,
        "reasoning_tokens": tokens.reasoning, "source": tokens.source,
    }  # fmt: skip


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


def _spending(connection: sa.Connection, key_id: str, window: Window, at_ms: int) -> Spent:
    """What is used up of a period; the key is locked."""
    start_ms = period_start_ms(window, at_ms)
    spent = _kept(connection, _of(key_id, window, start_ms))
    if spent is None:
        spent = _known(connection, key_id, start_ms)
        row = {"key_id": key_id, "window": window, "start_ms": start_ms, **spent._asdict()}
        connection.execute(SPENDING.insert().values(row))
    return spent


def _kept(connection: sa.Connection, which: sa.ColumnElement[bool]) -> Spent | None:
    """What a period's row says; None where it has none."""
    row = connection.execute(sa.select(*(SPENDING.c[name] for name in Spent._fields)).where(which)).first()
    return None if row is None else Spent(*map(int, row))


def _known(connection: sa.Connection, key_id: str, start_ms: int) -> Spent:
    """What the ledger says of a period: the rows that are there, and what removed ones came to, by days. In one
    statement, for rows may go between two."""
    is_open = REQUESTS.c.settled_at_ms.is_(None)
    there = sa.select(
        REQUESTS.c.cost_micros.label("micros"),
        sa.case((is_open, REQUESTS.c.reserved_micros), else_=0).label("reserved_micros"),
        (REQUESTS.c.prompt_tokens + REQUESTS.c.completion_tokens).label("tokens"),
        sa.case((is_open, REQUESTS.c.reserved_tokens), else_=0).label("reserved_tokens"),
    ).where(REQUESTS.c.key_id == key_id, REQUESTS.c.started_at_ms >= start_ms)
    nothing = sa.literal(0)
    gone = sa.select(
        REMOVED.c.cost_micros, nothing, REMOVED.c.prompt_tokens + REMOVED.c.completion_tokens, nothing
    ).where(REMOVED.c.key_id == key_id, REMOVED.c.start_ms >= start_ms)  # fmt: skip
    each = sa.union_all(there, gone).subquery()
    sums = sa.select(*(sa.func.coalesce(sa.func.sum(each.c[name]), 0) for name in Spent._fields))
    return Spent(*map(int, connection.execute(sums).one()))


def _change(connection: sa.Connection, intent: Intent, by: Spent) -> None:
    """Changes the rows of the periods that an intent began in, where there are any."""
    if any(by):
        starts_ms = {f"{window}_ms": period_start_ms(window, intent.started_at_ms) for window in WINDOWS}
        connection.execute(_SPEND, by._asdict() | starts_ms | {"key": intent.key_id})


def _of(key_id: str, window: Window, start_ms: int) -> sa.ColumnElement[bool]:
    return sa.and_(SPENDING.c.key_id == key_id, SPENDING.c.window == window, SPENDING.c.start_ms == start_ms)


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


def _said(statement: sa.Insert | sa.Update) -> sa.TextClause:
    """A statement in words, made once: to make it for each request took most of a request's time."""
    return sa.text(str(statement.compile(dialect=default.DefaultDialect(paramstyle="named"))))


def _given(columns: Iterable[str]) -> dict[str, sa.BindParameter[Any]]:
    return {name: sa.bindparam(name) for name in columns}


_OPENED = (
    "id", "key_id", "holder", "model_asked", "started_at_ms", "stream", "account", "user", "reserved_micros",
    "reserved_tokens",
)  # fmt: skip
_CLOSED = (
    "settled_at_ms", "status", "ended_by", "code", "model_answered", "cost_micros", "price", "plan", "origin",
    "retries", "queue_ms", "first_ms", "total_ms", "prompt_tokens", "cached_tokens", "completion_tokens",
    "reasoning_tokens", "source",
)  # fmt: skip
_OPEN = _said(REQUESTS.insert().values(_given(_OPENED)))
_CLOSE = _said(
    REQUESTS.update()
    .where(REQUESTS.c.id == sa.bindparam("id"), REQUESTS.c.settled_at_ms.is_(None))
    .values(_given(_CLOSED))
)
_CALL = _said(CALLS.insert().values(_given(CALLS.c.keys())))
_SPEND = _said(
    SPENDING.update()
    .where(
        SPENDING.c.key_id == sa.bindparam("key"),
        sa.or_(
            *(
                sa.and_(
                    SPENDING.c.window == sa.literal_column(f"'{window}'"),
                    SPENDING.c.start_ms == sa.bindparam(f"{window}_ms"),
                )
                for window in WINDOWS
            )
        ),
    )
    .values({name: SPENDING.c[name] + sa.bindparam(name) for name in Spent._fields})
)
