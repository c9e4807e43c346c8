"""What the ledger adds up to: by day, key and model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from msgspec import Struct

from andthen.books.store.database import Database
from andthen.books.store.schema import KEYS, REMOVED, REQUESTS

Group = Literal["day", "key", "model"]
GROUPS: tuple[Group, ...] = ("day", "key", "model")
_DAY_MS = 86_400_000

_IS_OPEN = REQUESTS.c.settled_at_ms.is_(None)
_FAILED = sa.and_(sa.not_(_IS_OPEN), REQUESTS.c.ended_by != "reply")
_TOTALS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "cost_micros")
SUMS = ("requests", "failed", *_TOTALS)
"""What is added up."""
THERE = sa.select(
    (REQUESTS.c.started_at_ms - REQUESTS.c.started_at_ms % _DAY_MS).label("day"),
    REQUESTS.c.key_id.label("key"),
    sa.case((REQUESTS.c.model_answered != "", REQUESTS.c.model_answered), else_=REQUESTS.c.model_asked).label("model"),
    sa.literal_column("1").label("requests"),
    sa.case((_FAILED, 1), else_=0).label("failed"),
    *(REQUESTS.c[name] for name in _TOTALS),
    sa.case((_IS_OPEN, 1), else_=0).label("open"),
)
"""Requests whose rows are there, each with its groups and what it adds to the sums; `day` is when its day began, UTC,
in milliseconds since 1970."""
_GONE = sa.select(
    REMOVED.c.start_ms, REMOVED.c.key_id, REMOVED.c.model, *(REMOVED.c[name] for name in SUMS), sa.literal_column("0")
)
"""The same of those whose rows were removed, together by day, key and model."""


class UsageRow(Struct, frozen=True, kw_only=True):
    """The requests of one group; what they are not grouped by is empty."""

    day: str = ""
    """Of their beginning, UTC: `2026-11-23`."""
    key: str = ""
    """The key's id."""
    name: str = ""
    """The key's name."""
    model: str = ""
    """That answered, else as it was asked."""
    requests: int
    failed: int
    """Those whose reply was an error, or was left by its caller."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_micros: int
    """Millionths of a US dollar."""
    open: int
    """Those under way, which the other sums lack."""


class UsageBook(Database):
    """Sums over the ledger."""

    def usage(
        self, groups: Sequence[Group], *, since_ms: int = 0, until_ms: int | None = None, key_id: str | None = None
    ) -> list[UsageRow]:
        """The sums of each group, in the groups' order.

        Args:
            since_ms, until_ms: when the requests began, Unix time in milliseconds, the end not included. Those whose
                rows were removed count with the beginning of their day.
            key_id: only of this key.
        """
        each = sa.union_all(
            _within(THERE, REQUESTS.c.key_id, REQUESTS.c.started_at_ms, since_ms, until_ms, key_id),
            _within(_GONE, REMOVED.c.key_id, REMOVED.c.start_ms, since_ms, until_ms, key_id),
        ).subquery()
        chosen = [each.c[group] for group in groups]
        sums = [sa.func.coalesce(sa.func.sum(each.c[name]), 0).label(name) for name in (*SUMS, "open")]
        query = sa.select(*chosen, *sums).group_by(*chosen).order_by(*chosen)
        with self.reading() as connection:
            names = {row.id: row.name for row in connection.execute(sa.select(KEYS.c.id, KEYS.c.name))}
            return [_row(row._mapping, names) for row in connection.execute(query) if row.requests]


def _within(
    rows: sa.Select[Any], key: Any, began_ms: Any, since_ms: int, until_ms: int | None, key_id: str | None
) -> sa.Select[Any]:
    rows = rows.where(began_ms >= since_ms)
    if until_ms is not None:
        rows = rows.where(began_ms < until_ms)
    return rows if key_id is None else rows.where(key == key_id)


def _row(row: Any, names: dict[str, str]) -> UsageRow:
    counts = {name: int(row[name]) for name in row if name not in GROUPS}
    key = row.get("key", "")
    day = row.get("day")
    shown = "" if day is None else f"{datetime.fromtimestamp(int(day) / 1000, UTC):%Y-%m-%d}"
    return UsageRow(day=shown, key=key, name=names.get(key, ""), model=row.get("model", ""), **counts)
