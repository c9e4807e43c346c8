"""A transaction by the database's own driver, for what is written with every request: SQLAlchemy's share in a statement
is many times the database's. Statements are still its constructs, put into words once, and take their values by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import sqlalchemy as sa

Values = dict[str, Any]
Row = tuple[Any, ...]


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
        """Inserts rows whose values stand in the order of the columns: half the work of values by name."""
        if rows:
            self._connection.cursor().executemany(_insert(*into, self.database), rows)

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
def _insert(table: sa.Table, columns: tuple[str, ...], database: str) -> str:
    mark = "%s" if database == "postgresql" else "?"
    names = ", ".join(f'"{name}"' for name in columns)
    return f"INSERT INTO {table.name} ({names}) VALUES ({', '.join([mark] * len(columns))})"  # noqa: S608 - our names


@cache
def _said(statement: sa.ClauseElement, dialect: sa.Dialect) -> str:
    return str(statement.compile(dialect=dialect))
