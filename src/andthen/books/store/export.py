"""The ledger's rows, one after the other, as they leave the house.

They are read in pages, each in a short transaction: of millions of rows only one page is in memory, and no writer and
no vacuum waits for who reads slowly. A request that is settled in between is told as it stands when its page is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from andthen.books.store.database import Database
from andthen.books.store.schema import CALLS, REQUESTS

Rows = Literal["requests", "calls"]
_TABLES: dict[Rows, tuple[sa.Table, tuple[sa.Column[Any], ...]]] = {
    "requests": (REQUESTS, (REQUESTS.c.started_at_ms, REQUESTS.c.id)),
    "calls": (CALLS, (REQUESTS.c.started_at_ms, CALLS.c.request_id, CALLS.c.number)),
}
"""Each with the order of its rows, in which no two are equal."""
_PAGE_ROWS = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Value = str | int | bool | None


def columns(rows: Rows) -> list[str]:
    """The names of the columns, in their order."""
    return [_named(column.name) for column in _TABLES[rows][0].columns]


class Export(Database):
    """The ledger as a list."""

    def export(
        self, rows: Rows, *, since_ms: int = 0, until_ms: int | None = None, key_id: str | None = None
    ) -> Iterator[dict[str, Value]]:
        """All columns of requests, or of their calls, by the requests' beginning.

        Moments are ISO 8601 in UTC, `2026-11-23T12:00:00.250Z`, in columns that end in `_at`; money is in US dollars,
        an exact decimal as text, `0.001250`, in columns that end in `_usd`.

        Args:
            since_ms, until_ms: when the requests began, Unix time in milliseconds, the end not included.
            key_id: only of this key.
        """
        table, order = _TABLES[rows]
        names = table.columns.keys()
        within = REQUESTS.c.started_at_ms >= since_ms
        if until_ms is not None:
            within &= REQUESTS.c.started_at_ms < until_ms
        if key_id is not None:
            within &= REQUESTS.c.key_id == key_id
        places = [column.label(f"place_{number}") for number, column in enumerate(order)]
        of = table if rows == "requests" else CALLS.join(REQUESTS, REQUESTS.c.id == CALLS.c.request_id)
        page = sa.select(*table.columns, *places).select_from(of).where(within).order_by(*order).limit(_PAGE_ROWS)
        after: tuple[Any, ...] | None = None
        while True:
            with self.reading() as connection:
                asked = page if after is None else page.where(sa.tuple_(*order) > sa.tuple_(*after))
                found = connection.execute(asked).all()
            for row in found:
                yield {_named(name): _told(name, value) for name, value in zip(names, row, strict=False)}
            if len(found) < _PAGE_ROWS:
                return
            after = tuple(found[-1])[len(names) :]


def _named(column: str) -> str:
    return column.removesuffix("_ms") if column.endswith("_at_ms") else column.replace("_micros", "_usd")


def _told(column: str, value: Any) -> Value:
    if value is None:
        return None
    if column.endswith("_at_ms"):
        return (_EPOCH + timedelta(milliseconds=value)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if column.endswith("_micros"):
        return f"{value // 1_000_000}.{value % 1_000_000:06d}"
    return value  # type: ignore[no-any-return]
