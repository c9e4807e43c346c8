"""The ledger's rows, one after the other, as they leave the house.

They are read in pages, each in a short transaction: of millions of rows only one page is in memory, and no writer and
no vacuum waits for who reads slowly. A request that is settled in between is told as it stands when its page is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from andthen.books.store.database import Database
from andthen.books.store.schema import CALLS, REQUESTS

Rows = Literal["requests", "calls"]
Value = str | int | bool | None
_Row = sa.Row[*tuple[Any, ...]]
_Shown = list[tuple[str, Callable[[Any], Value]]]

_TABLES: dict[Rows, sa.Table] = {"requests": REQUESTS, "calls": CALLS}
_ORDER = (REQUESTS.c.started_at_ms, REQUESTS.c.id)
_PAGE_REQUESTS = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def columns(rows: Rows) -> list[str]:
    """The names of the columns, in their order."""
    return [name for name, _ in _shown_of(rows)]


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
        within = REQUESTS.c.started_at_ms >= since_ms
        if until_ms is not None:
            within &= REQUESTS.c.started_at_ms < until_ms
        if key_id is not None:
            within &= REQUESTS.c.key_id == key_id
        page = sa.select(REQUESTS).where(within).order_by(*_ORDER).limit(_PAGE_REQUESTS)
        shown = _shown_of(rows)
        last: _Row | None = None
        while True:
            asked = page if last is None else page.where(sa.tuple_(*_ORDER) > sa.tuple_(last.started_at_ms, last.id))
            with self.reading() as connection:
                requests = connection.execute(asked).all()
                found = requests if rows == "requests" else _calls(connection, [row.id for row in requests])
            for row in found:
                yield _told(shown, row)
            if len(requests) < _PAGE_REQUESTS:
                return
            last = requests[-1]

    def export_one(self, request_id: str) -> tuple[dict[str, Value], list[dict[str, Value]]] | None:
        """A request and its calls, their columns as `export` tells them; None where the ledger has no such row."""
        with self.reading() as connection:
            request = connection.execute(sa.select(REQUESTS).where(REQUESTS.c.id == request_id)).first()
            calls = _calls(connection, [request_id])
        if request is None:
            return None
        return _told(_shown_of("requests"), request), [_told(_shown_of("calls"), call) for call in calls]


def _calls(connection: sa.Connection, request_ids: list[str]) -> list[_Row]:
    places = {request_id: place for place, request_id in enumerate(request_ids)}
    found = connection.execute(sa.select(CALLS).where(CALLS.c.request_id.in_(request_ids)))
    return sorted(found, key=lambda row: (places[row.request_id], row.number))


def _shown_of(rows: Rows) -> _Shown:
    return [_shown(column.name) for column in _TABLES[rows].columns]


def _told(shown: _Shown, row: _Row) -> dict[str, Value]:
    return {name: None if value is None else tell(value) for (name, tell), value in zip(shown, row, strict=True)}


def _shown(column: str) -> tuple[str, Callable[[Any], Value]]:
    """A column's name outside, and how its values are told."""
    if column.endswith("_at_ms"):
        return column.removesuffix("_ms"), _moment
    if column.endswith("_micros"):
        return column.replace("_micros", "_usd"), _dollars
    return column, lambda value: value


def _moment(at_ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=at_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _dollars(micros: int) -> str:
    return f"{micros // 1_000_000}.{micros % 1_000_000:06d}"
