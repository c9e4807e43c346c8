"""What keys have spent: a row for each key and period that a budget was set for. It comes into being with what the
ledger knows of the period, so a budget that is set in the middle of a month counts the whole month.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from andthen.books.store.driver import Driver, Values
from andthen.books.store.schema import ALLOTMENTS, REMOVED, REQUESTS, SPENDING
from andthen.ledger.periods import DAY_MS, periods_ms
from andthen.ledger.records import WINDOWS, Intent, Settlement, Spent


class Changes:
    """What entries change of what keys have spent, to be written at once."""

    def __init__(self) -> None:
        self._by: dict[tuple[str, int], list[int]] = {}
        """A key and a day that requests began on → by how much its periods change, as in `Spent`."""
        self._posted: dict[tuple[str, str, int, str, str], int] = {}
        """A place and its owner → how much of the allotment is known to be spent."""

    def open(self, intent: Intent) -> None:
        """It is under way."""
        self._add(intent, 0, intent.reserved_micros, 0, intent.reserved_tokens)

    def settle(self, settlement: Settlement, *, was_open: bool) -> None:
        """It has ended."""
        intent = settlement.intent
        micros, tokens = settlement.cost_micros, settlement.tokens.total
        if was_open:
            self._add(intent, micros, -intent.reserved_micros, tokens, -intent.reserved_tokens)
        else:
            self._add(intent, micros, 0, tokens, 0)
        if intent.budget_owner and (micros or tokens):
            self._post(intent, micros, tokens)

    def _add(self, intent: Intent, micros: int, reserved_micros: int, tokens: int, reserved_tokens: int) -> None:
        """In all periods that the request began in."""
        place = intent.key_id, intent.started_at_ms // DAY_MS * DAY_MS
        by = self._by.get(place)
        if by is None:
            by = self._by[place] = [0, 0, 0, 0]
        by[0] += micros
        by[1] += reserved_micros
        by[2] += tokens
        by[3] += reserved_tokens

    def _post(self, intent: Intent, micros: int, tokens: int) -> None:
        starts_ms = periods_ms(intent.started_at_ms)
        posted = self._posted
        for budget in intent.budgets:
            place = intent.key_id, budget.window, starts_ms[budget.window]
            if budget.micros is not None:
                of = (*place, "money", intent.budget_owner)
                posted[of] = posted.get(of, 0) + micros
            if budget.tokens is not None:
                of = (*place, "tokens", intent.budget_owner)
                posted[of] = posted.get(of, 0) + tokens

    def write(self, driver: Driver) -> None:
        """Changes the rows of the periods, where there are any; in one order, so that nobody waits in a circle."""
        driver.write(_SPEND, [
            Spent(*by)._asdict() | period_values(key_id, day_ms)
            for (key_id, day_ms), by in sorted(self._by.items()) if any(by)
        ])  # fmt: skip
        driver.write(_POST, [
            dict(zip(("of_key", "of_window", "of_start", "of_kind", "of_owner"), of, strict=True)) | {"by": by}
            for of, by in sorted(self._posted.items()) if by
        ])  # fmt: skip


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
_POST = (
    ALLOTMENTS.update()
    .where(
        ALLOTMENTS.c.key_id == sa.bindparam("of_key"),
        ALLOTMENTS.c.window == sa.bindparam("of_window"),
        ALLOTMENTS.c.start_ms == sa.bindparam("of_start"),
        ALLOTMENTS.c.kind == sa.bindparam("of_kind"),
        ALLOTMENTS.c.owner == sa.bindparam("of_owner"),
    )
    .values(posted=ALLOTMENTS.c.posted + sa.bindparam("by"))
)
