"""A database under the books: its connections, its transactions, its schema. What is one
database's alone stands in a file of its own.

A writer renews the stamp of what it changes first, in the same transaction as the change: the stamp's row is thereby
the writers' lock, and a reader who sees the same stamp has missed nothing. Stamps are random, not counted, so that a
database that was put in another's place is a change too.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from andthen.books.store.driver import Driver, transaction
from andthen.books.store.errors import BadEntry, SchemaTooNew, SchemaTooOld, StoreUnavailable
from andthen.books.store.schema import HEAD, STAMPS
from andthen.descriptors import none_left


class Database:
    """A SQL database, at the newest schema. Every call blocks: an event loop hands it to a thread."""

    def __init__(self, engine: sa.Engine, place: str, remedy: str) -> None:
        """`place` names the database in messages and `remedy` another way out; they hold no password."""
        self._engine = engine
        self._place = place
        self._remedy = remedy

    def close(self) -> None:
        """Gives the connections back."""
        self._engine.dispose()

    def migrate(self, *, lock: str = "", back_up: Callable[[str], None] | None = None) -> None:
        """Brings the schema to `HEAD`, in one transaction; of several processes that try, one does it.

        Args:
            lock: a statement that waits for the other processes, where a transaction that writes does not.
            back_up: called with the schema of a database that is about to be changed, while nobody else writes.

        Raises:
            SchemaTooNew, StoreUnavailable
        """
        with self.reading() as connection:
            if _schema(connection) == HEAD:
                return
        with self.writing() as connection:
            if lock:
                connection.execute(sa.text(lock))
            if (schema := _schema(connection)) == HEAD:
                return
            if schema is not None and schema > HEAD:
                raise self._too_new(schema)
            if schema is not None and back_up is not None:
                back_up(schema)
            from alembic import command, config, util

            settings = config.Config()
            settings.set_main_option("script_location", "andthen.books:migrations")
            settings.attributes["connection"] = connection
            try:
                command.upgrade(settings, HEAD)
            except util.CommandError as error:
                raise self._too_new(schema) from error

    def check_schema(self) -> None:
        """Raises `SchemaTooOld`, `SchemaTooNew`, `StoreUnavailable`."""
        with self.reading() as connection:
            schema = _schema(connection)
        if schema is None or schema < HEAD:
            found = "has no tables yet" if schema is None else f"has schema {schema}, and this andthen needs {HEAD}"
            raise SchemaTooOld(f"the database {self._place} {found}: run `andthen migrate`")
        if schema > HEAD:
            raise self._too_new(schema)

    def _too_new(self, schema: str | None) -> SchemaTooNew:
        return SchemaTooNew(
            f"{self._place} was written by a newer andthen (schema {schema}, this one knows {HEAD}): upgrade"
            f" andthen, or {self._remedy}"
        )

    @contextmanager
    def changing(self, what: str) -> Iterator[sa.Connection]:
        """A transaction that writes, under the writers' lock of `what`. It survives a power cut."""
        with self.writing(lasting=True) as connection:
            connection.execute(STAMPS.update().where(STAMPS.c.name == what).values(value=secrets.randbits(63)))
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads. Raises `StoreUnavailable`."""
        with self._told(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self, *, lasting: bool = False) -> Iterator[sa.Connection]:
        """A transaction that writes, committed at the end. Raises `StoreUnavailable`.

        Args:
            lasting: whether it survives a power cut under any settings.
        """
        with self._told(), self._engine.execution_options(writes=True, lasting=lasting).begin() as connection:
            yield connection

    @contextmanager
    def driving(self) -> Iterator[Driver]:
        """As `writing`, by the database's own driver. Raises `StoreUnavailable`, `BadEntry`."""
        with self._told():
            pooled = self._engine.raw_connection()
            try:
                with transaction(pooled.driver_connection, self._engine.dialect) as driver:
                    yield driver
            except BaseException:
                pooled.invalidate()
                raise
            pooled.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tells a database's failure in our words."""
        own = self._engine.dialect.loaded_dbapi
        try:
            yield
        except (sa.exc.DataError, sa.exc.IntegrityError, own.DataError, own.IntegrityError,
                OverflowError, UnicodeError) as error:  # fmt: skip
            raise BadEntry(f"the database {self._place} can't hold what was to be written: {error}") from error
        except (sa.exc.DBAPIError, own.Error) as error:
            reason = error.orig if isinstance(error, sa.exc.DBAPIError) else error
            if none_left():
                raise StoreUnavailable(
                    f"the database {self._place} can't be used: this process is out of file descriptors (`ulimit -n`)"
                ) from error
            told = " ".join(str(reason).split()).rstrip(".?")
            raise StoreUnavailable(
                f"the database {self._place} can't be used: {told}. See that it can be reached, is whole and can be"
                f" written, or {self._remedy}"
            ) from error
        except sa.exc.SQLAlchemyError as error:
            raise StoreUnavailable(f"the database {self._place} can't be used: {error}") from error


def _schema(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def stamp(connection: sa.Connection, what: str) -> int:
    """Differs after every change of `what`."""
    return int(connection.execute(sa.select(STAMPS.c.value).where(STAMPS.c.name == what)).scalar_one())


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000
