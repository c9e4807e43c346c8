"""What keys have spent: a row for each key and period that a budget was set for. It comes into being with what the
ledger knows of the period, so a budget that is set in the middle of a month counts the whole month.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from andthen.books.ledger import Intent
from andthen.books.policy import WINDOWS, Window
from andthen.books.store.driver import Driver, Values
from andthen.books.store.schema import REMOVED, REQUESTS, SPENDING

DAY_MS = 86_400_000


class Spent(NamedTuple):
    """Of one key in one period: millionths of a dollar, and tokens."""

    micros: int = 0
    reserved_micros: int = 0
    tokens: int = 0
    reserved_tokens: int = 0

    def plus(self, other: Spent) -> Spent:
        return Spent(*(one + more for one, more in zip(self, other, strict=True)))


class Changes:
    """What entries change of what keys have spent, to be written at once."""

    def __init__(self) -> None:
        self._by: dict[tuple[str, int], Spent] = {}
        """A key and a day that requests began on → by how much its periods change."""

    def add(self, intent: Intent, by: Spent) -> None:
        """In all periods that the request began in."""
        place = intent.key_id, period_start_ms("day", intent.started_at_ms)
        self._by[place] = self._by.get(place, Spent()).plus(by)

    def write(self, driver: Driver) -> None:
        """Changes the rows of the periods, where there are any; in one order, so that nobody waits in a circle."""
        driver.write(_SPEND, [
            by._asdict() | period_values(key_id, day_ms) for (key_id, day_ms), by in sorted(self._by.items()) if any(by)
        ])  # fmt: skip


class Standing:
    """What is used up of the periods that the budgets of some intents are about; the keys are locked."""

    def __init__(self, driver: Driver, intents: list[Intent]) -> None:
        self._spent: dict[tuple[str, Window, int], Spent] = {}
        bounded = [intent for intent in intents if intent.budgets]
        days = sorted({(intent.key_id, period_start_ms("day", intent.started_at_ms)) for intent in bounded})
        found = driver.read(PERIODS, [period_values(key_id, day_ms) for key_id, day_ms in days])
        for (key_id, _), rows in zip(days, found, strict=True):
            self._spent |= {(key_id, window, start_ms): Spent(*map(int, spent)) for window, start_ms, *spent in rows}
        for intent in bounded:
            for budget in intent.budgets:
                self._begin(driver, intent.key_id, budget.window, period_start_ms(budget.window, intent.started_at_ms))

    def _begin(self, driver: Driver, key_id: str, window: Window, start_ms: int) -> None:
        """Makes the row of a period that has none."""
        if (key_id, window, start_ms) in self._spent:
            return
        ((known,),) = driver.read(KNOWN, [{"key": key_id, "start_ms": start_ms}])
        spent = self._spent[key_id, window, start_ms] = Spent(*map(int, known))
        driver.write(_BEGIN, [{"key_id": key_id, "window": window, "start_ms": start_ms, **spent._asdict()}])

    def of(self, intent: Intent, window: Window) -> Spent:
        """Of the intent's key, in the period in which it began."""
        return self._spent[intent.key_id, window, period_start_ms(window, intent.started_at_ms)]

    def add(self, intent: Intent, by: Spent) -> None:
        """What follows is to fit beside it."""
        for window, start_ms in periods_ms(intent.started_at_ms).items():
            place = intent.key_id, window, start_ms
            if place in self._spent:
                self._spent[place] = self._spent[place].plus(by)


def period_start_ms(window: Window, at_ms: int) -> int:
    """When the window that `at_ms` lies in began, UTC."""
    return periods_ms(at_ms)[window]


def periods_ms(at_ms: int) -> dict[Window, int]:
    """When each of the windows that `at_ms` lies in began, UTC."""
    return _periods_ms(at_ms // DAY_MS)


@lru_cache(maxsize=64)
def _periods_ms(day: int) -> dict[Window, int]:
    month = datetime.fromtimestamp(day * DAY_MS / 1000, UTC).replace(day=1)
    return {"day": day * DAY_MS, "month": round(month.timestamp() * 1000), "total": 0}


def period_values(key_id: str, at_ms: int) -> Values:
    """What `PERIODS` is to be given."""
    return {"key": key_id} | {f"{window}_ms": start_ms for window, start_ms in periods_ms(at_ms).items()}


def _known() -> sa.Select[Any]:
    key_id: sa.BindParameter[str] = sa.bindparam("key")
    start_ms: sa.BindParameter[int] = sa.bindparam("start_ms")
    nothing: sa.ColumnClause[int] = sa.literal_column("0")
    is_open = REQUESTS.c.settled_at_ms.is_(None)
    there = sa.select(
        REQUESTS.c.cost_micros.label("micros"),
        sa.case((is_open, REQUESTS.c.reserved_micros), else_=nothing).label("reserved_micros"),
        (REQUESTS.c.prompt_tokens + REQUESTS.c.completion_tokens).label("tokens"),
        sa.case((is_open, REQUESTS.c.reserved_tokens), else_=nothing).label("reserved_tokens"),
    ).where(REQUESTS.c.key_id == key_id, REQUESTS.c.started_at_ms >= start_ms)
    gone = sa.select(
        REMOVED.c.cost_micros, nothing, REMOVED.c.prompt_tokens + REMOVED.c.completion_tokens, nothing
    ).where(REMOVED.c.key_id == key_id, REMOVED.c.start_ms >= start_ms)  # fmt: skip
    each = sa.union_all(there, gone).subquery()
    return sa.select(*(sa.func.coalesce(sa.func.sum(each.c[name]), nothing) for name in Spent._fields))


KNOWN = _known()
"""What the ledger says of a period: the rows that are there, and what removed ones came to, by days. In one statement,
for rows may go between two."""
_OF_PERIODS = sa.and_(
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
PERIODS = sa.select(
    SPENDING.c.window, SPENDING.c.start_ms, *(SPENDING.c[name] for name in Spent._fields)
).where(_OF_PERIODS)  # fmt: skip
"""The rows of a key's periods that a moment lies in."""
_SPEND = SPENDING.update().where(_OF_PERIODS).values(
    {name: SPENDING.c[name] + sa.bindparam(name) for name in Spent._fields}
)  # fmt: skip
_BEGIN = SPENDING.insert()
