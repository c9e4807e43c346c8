"""A transaction by the database's own driver, for what is written with every request: SQLAlchemy's share in a statement
is many times the database's. Statements are still its constructs, put into words once, and take their values by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa

Values = dict[str, Any]
Row = tuple[Any, ...]
_encode_json = msgspec.json.Encoder().encode


class Driver:
    """A connection within a transaction. Raises the driver's own errors."""

    def __init__(self, connection: Any, dialect: sa.Dialect) -> None:
        self._connection = connection
        self._dialect = dialect

    @property
    def database(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._dialect.name

    def write(self, statement: sa.ClauseElement, rows: Sequence[Values]) -> None:
        """Runs a statement for each of the rows. Whether it could is known when the transaction has ended."""
        if rows:
            self._connection.cursor().executemany(_said(statement, self._dialect), rows)

    def insert(self, into: tuple[sa.Table, tuple[str, ...]], rows: Sequence[Row]) -> None:
        """Inserts rows whose values stand in the order of the columns, by the cheapest way that the driver has: for
        SQLite values by position, for PostgreSQL all rows as one JSON text, which its server reads."""
        if not rows:
            return
        table, columns = into
        if self.database == "postgresql":
            text = _encode_json([dict(zip(columns, row, strict=True)) for row in rows]).decode()
            self._connection.execute(_insert_json(table, columns, self._dialect), (text,))
        else:
            self._connection.executemany(_insert(table, columns), rows)

    def read(self, statement: sa.ClauseElement, rows: Sequence[Values]) -> list[list[tuple[Any, ...]]]:
        """Runs a statement for each of the rows; what it gave each time."""
        said = _said(statement, self._dialect)
        cursors = [self._connection.execute(said, row) for row in rows]
        return [cursor.fetchall() for cursor in cursors]


@contextmanager
def transaction(connection: Any, dialect: sa.Dialect) -> Iterator[Driver]:
    """A transaction that writes, committed at the end. After an error the connection is not fit to be used again.

    Args:
        connection: the driver's.
    """
    if dialect.name == "postgresql":
        with connection.pipeline():  # what nobody waits for costs no way there and back
            yield Driver(connection, dialect)
            connection.commit()
    else:
        connection.execute("BEGIN IMMEDIATE")
        yield Driver(connection, dialect)
        connection.commit()


@cache
def _insert(table: sa.Table, columns: tuple[str, ...]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    return f"INSERT INTO {table.name} ({names}) VALUES ({', '.join(['?'] * len(columns))})"  # noqa: S608 - our names


@cache
def _insert_json(table: sa.Table, columns: tuple[str, ...], dialect: sa.Dialect) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    typed = ", ".join(f'"{name}" {table.c[name].type.compile(dialect)}' for name in columns)
    rows = f"json_to_recordset(CAST(%s AS json)) AS given({typed})"
    return f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {rows}"  # noqa: S608 - our names


@cache
def _said(statement: sa.ClauseElement, dialect: sa.Dialect) -> str:
    return str(statement.compile(dialect=dialect))
