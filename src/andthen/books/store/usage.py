"""What the ledger adds up to: by day, key and model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from msgspec import Struct

from andthen.books.store.database import Database
from andthen.books.store.schema import KEYS, REQUESTS

Group = Literal["day", "key", "model"]
GROUPS: tuple[Group, ...] = ("day", "key", "model")
_DAY_MS = 86_400_000


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
            since_ms, until_ms: when the requests began, Unix time in milliseconds, the end not included.
            key_id: only of this key.
        """
        day = (REQUESTS.c.started_at_ms // _DAY_MS).label("day")
        model = sa.case(
            (REQUESTS.c.model_answered != "", REQUESTS.c.model_answered), else_=REQUESTS.c.model_asked
        ).label("model")
        columns: dict[Group, Any] = {"day": day, "key": REQUESTS.c.key_id.label("key"), "model": model}
        chosen = [columns[group] for group in groups]
        is_open = REQUESTS.c.settled_at_ms.is_(None)
        failed = sa.and_(sa.not_(is_open), REQUESTS.c.ended_by != "reply")
        sums = [
            sa.func.count().label("requests"),
            _sum(sa.case((failed, 1), else_=0)).label("failed"),
            *(
                _sum(REQUESTS.c[name]).label(name)
                for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "cost_micros")
            ),
            _sum(sa.case((is_open, 1), else_=0)).label("open"),
        ]
        where = [REQUESTS.c.started_at_ms >= since_ms]
        if until_ms is not None:
            where.append(REQUESTS.c.started_at_ms < until_ms)
        if key_id is not None:
            where.append(REQUESTS.c.key_id == key_id)
        query = sa.select(*chosen, *sums).where(*where).group_by(*chosen).order_by(*chosen)
        with self.reading() as connection:
            names = {row.id: row.name for row in connection.execute(sa.select(KEYS.c.id, KEYS.c.name))}
            return [_row(row._mapping, names) for row in connection.execute(query) if row.requests]


def _sum(value: Any) -> Any:
    return sa.func.coalesce(sa.func.sum(value), 0)


def _row(row: Any, names: dict[str, str]) -> UsageRow:
    counts = {name: int(row[name]) for name in row if name not in GROUPS}
    key = row.get("key", "")
    day = row.get("day")
    shown = "" if day is None else f"{datetime.fromtimestamp(int(day) * _DAY_MS / 1000, UTC):%Y-%m-%d}"
    return UsageRow(day=shown, key=key, name=names.get(key, ""), model=row.get("model", ""), **counts)
