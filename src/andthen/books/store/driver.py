"""A transaction by the database's own driver, for what is written with every request: SQLAlchemy's share in a statement
is many times the database's. Statements are still its constructs, put into words once, and take their values by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import sqlalchemy as sa

Values = dict[str, Any]


class Driver:
    """A connection within a transaction. Raises the driver's own errors."""

    def __init__(self, connection: Any, dialect: sa.Dialect, wait: Callable[[], None]) -> None:
        """`wait` returns when all that was sent has been answered."""
        self._connection = connection
        self._dialect = dialect
        self._wait = wait
        self.committing = False
        """From here on the database may have what was written, whatever error comes."""

    @property
    def database(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._dialect.name

    def write(self, statement: sa.ClauseElement, rows: Sequence[Values]) -> None:
        """Runs a statement for each of the rows. Whether it could is known when the transaction has ended."""
        if rows:
            self._connection.cursor().executemany(_said(statement, self._dialect), rows)

    def change(self, statement: sa.ClauseElement, rows: Sequence[Values]) -> list[int]:
        """Runs a statement for each of the rows; how many rows of the table each has changed."""
        said = _said(statement, self._dialect)
        cursors = [self._connection.execute(said, row) for row in rows]
        self._wait()
        return [cursor.rowcount for cursor in cursors]

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
        with connection.pipeline() as pipeline:  # what nobody waits for costs no way there and back
            yield (driver := Driver(connection, dialect, pipeline.sync))
            driver.committing = True
            connection.commit()
    else:
        connection.execute("BEGIN IMMEDIATE")
        yield Driver(connection, dialect, lambda: None)
        connection.commit()


def surely_unwritten(error: BaseException | None, driver: Driver | None) -> bool:
    """Whether a transaction that ended in the driver's `error` has surely changed nothing.

    Args:
        driver: None where there was no connection.
    """
    if driver is None or not driver.committing:
        return True
    # An error with a code is the server's answer: it has rolled back. With none, or one of these classes, the
    # connection ended and the answer is missing (https://www.postgresql.org/docs/current/errcodes-appendix.html).
    code = getattr(error, "sqlstate", None)
    return code is not None and not code.startswith(("08", "57P"))


@cache
def _said(statement: sa.ClauseElement, dialect: sa.Dialect) -> str:
    return str(statement.compile(dialect=dialect))
