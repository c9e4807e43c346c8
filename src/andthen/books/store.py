"""Where the books are kept: the Store protocol, and its one implementation in SQL. The only file with SQL in it.

The statements are SQLAlchemy Core and hold for any database; what is SQLite's alone stands in `open_sqlite`. Every
call blocks: an event loop hands it to a thread. Nothing here knows a request, a model or a server.

A writer renews the stamp of what it changes first, in the same transaction as the change: the stamp's row is thereby
the writers' lock, and a reader who sees the same stamp has missed nothing. Stamps are random, not counted, so that a
database that was put in another's place is a change too.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy import event

from andthen.books.keys import ID_BYTES, SECRET_BYTES, Key, KeyRing, check_name, digest, new_id, new_secret

HEAD = "0001"
"""The newest step in migrations/, so that Alembic need not be imported to see that there is nothing to do."""
FIRST_KEY_NAME = "first"

METADATA = sa.MetaData()
KEYS = sa.Table(
    "keys",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("revoked_at_ms", sa.BigInteger),
    sa.Index(
        "keys_name_in_force",
        "name",
        unique=True,
        sqlite_where=sa.text("revoked_at_ms IS NULL"),
        postgresql_where=sa.text("revoked_at_ms IS NULL"),
    ),
)
STAMPS = sa.Table(
    "stamps",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
_KEY_COLUMNS = (KEYS.c.id, KEYS.c.name, KEYS.c.created_at_ms, KEYS.c.revoked_at_ms)


class BooksError(Exception):
    """What the books can't do; the message names the remedy."""


class StoreUnavailable(BooksError):
    """The database is missing, locked, full or broken. It may come back."""


class SchemaTooNew(BooksError):
    """A newer andthen has changed the database."""


class NameTaken(BooksError):
    """A key in force has this name."""


class NoSuchKey(BooksError):
    """No key has this id, and none in force this name."""


class IssuedKey(Struct, frozen=True):
    """A key at the only moment at which its secret is known."""

    key: Key
    secret: str


class Store(Protocol):
    """The books. Every method may raise `StoreUnavailable`."""

    def create_key(self, name: str) -> IssuedKey:
        """Raises ValueError for a name that is none, `NameTaken`."""

    def create_first_key(self) -> IssuedKey | None:
        """A key where there has never been one, else None; of several processes that ask, one gets it."""

    def list_keys(self) -> list[Key]:
        """All keys, revoked ones too, oldest first."""

    def revoke_key(self, id_or_name: str) -> Key:
        """Ends a key; ending it twice is no error. Raises `NoSuchKey`."""

    def keys_stamp(self) -> int:
        """Differs after every change of the keys."""

    def key_ring(self) -> KeyRing:
        """The keys in force, at least as new as the ring's stamp says."""

    def close(self) -> None:
        """Gives the connections back."""


class SqlStore:
    """The Store in a SQL database, at the newest schema."""

    def __init__(self, engine: sa.Engine, place: str) -> None:
        """`place` names the database in messages; it holds no password."""
        self._engine = engine
        self._place = place

    def create_key(self, name: str) -> IssuedKey:
        check_name(name)
        with self._changing_keys() as connection:
            taken = sa.select(KEYS.c.id).where(KEYS.c.name == name, KEYS.c.revoked_at_ms.is_(None))
            if connection.execute(taken).first():
                raise NameTaken(f"a key named {name!r} is in force: choose another name, or revoke that key first")
            return _issue(connection, name)

    def create_first_key(self) -> IssuedKey | None:
        with self._changing_keys() as connection:
            if connection.execute(sa.select(KEYS.c.id).limit(1)).first():
                return None
            return _issue(connection, FIRST_KEY_NAME)

    def list_keys(self) -> list[Key]:
        with self._reading() as connection:
            rows = connection.execute(sa.select(*_KEY_COLUMNS).order_by(KEYS.c.created_at_ms, KEYS.c.id))
            return [_key(row) for row in rows]

    def revoke_key(self, id_or_name: str) -> Key:
        with self._changing_keys() as connection:
            named = sa.and_(KEYS.c.name == id_or_name, KEYS.c.revoked_at_ms.is_(None))
            row = connection.execute(sa.select(*_KEY_COLUMNS).where(sa.or_(KEYS.c.id == id_or_name, named))).first()
            if row is None:
                raise NoSuchKey(f"no key in force has the id or name {id_or_name!r}: `andthen keys list` shows them")
            if row.revoked_at_ms is None:
                ended = (
                    KEYS.update().where(KEYS.c.id == row.id).values(revoked_at_ms=_now_ms()).returning(*_KEY_COLUMNS)
                )
                row = connection.execute(ended).one()
            return _key(row)

    def keys_stamp(self) -> int:
        with self._reading() as connection:
            return _stamp(connection, "keys")

    def key_ring(self) -> KeyRing:
        with self._reading() as connection:
            # The stamp first: keys newer than it are read once more, keys older than it would be missed.
            stamp = _stamp(connection, "keys")
            rows = connection.execute(sa.select(KEYS.c.digest, *_KEY_COLUMNS).where(KEYS.c.revoked_at_ms.is_(None)))
            return KeyRing(stamp, {row.digest: _key(row) for row in rows})

    def close(self) -> None:
        self._engine.dispose()

    def migrate(self) -> None:
        """Brings the schema to `HEAD`, in one transaction; of several processes that try, one does it.

        Raises:
            SchemaTooNew, StoreUnavailable
        """
        with self._reading() as connection:
            if _schema(connection) == HEAD:
                return
        with self._writing() as connection:
            if (schema := _schema(connection)) == HEAD:
                return
            from alembic import command, config, util

            settings = config.Config()
            settings.set_main_option("script_location", "andthen.books:migrations")
            settings.attributes["connection"] = connection
            try:
                command.upgrade(settings, HEAD)
            except util.CommandError as error:
                raise SchemaTooNew(
                    f"{self._place} was written by a newer andthen (schema {schema}, this one knows {HEAD}): upgrade"
                    " andthen, or start with another ANDTHEN_HOME"
                ) from error

    @contextmanager
    def _changing_keys(self) -> Iterator[sa.Connection]:
        with self._writing() as connection:
            connection.execute(STAMPS.update().where(STAMPS.c.name == "keys").values(value=secrets.randbits(63)))
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._told(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._told(), self._engine.execution_options(writes=True).begin() as connection:
            yield connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tells a database's failure in our words."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise StoreUnavailable(
                f"the database {self._place} can't be used: {error.orig}. See that it is whole and can be"
                " written, or set ANDTHEN_HOME to another folder"
            ) from error
        except sa.exc.SQLAlchemyError as error:
            raise StoreUnavailable(f"the database {self._place} can't be used: {error}") from error


def open_sqlite(path: Path, *, busy_timeout_s: float = 5.0) -> SqlStore:
    """The store in one SQLite file, made with its folder where they don't exist: the folder 0700, the file 0600.

    A file that is deleted or replaced later is noticed: the next call raises `StoreUnavailable` or reads the new one,
    and never goes on with the old one's pages.

    Raises:
        StoreUnavailable, SchemaTooNew
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Never opened here where it exists: to close it would take this process's locks from SQLite, and another
        # process would then delete the write-ahead log that we read (https://sqlite.org/howtocorrupt.html, 2.2).
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise StoreUnavailable(
            f"the database {path} can't be made ({error.strerror}): set ANDTHEN_HOME to a folder that can be written"
        ) from error
    # mode=rw, because SQLite would otherwise put a new empty database where ours went missing.
    url = sa.URL.create("sqlite", database=f"file:{quote(str(path.resolve()))}", query={"mode": "rw", "uri": "true"})
    engine = sa.create_engine(url, connect_args={"timeout": busy_timeout_s})
    _adapt_to_sqlite(engine, path)
    store = SqlStore(engine, str(path))
    try:
        store.migrate()
    except BaseException:
        store.close()
        raise
    return store


def _adapt_to_sqlite(engine: sa.Engine, path: Path) -> None:
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # `began` opens the transactions: DDL belongs to them then
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()
        record.info["file"] = _identity(path)

    def checked_out(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info["file"] != _identity(path):
            raise sa.exc.DisconnectionError("the file was deleted or replaced")

    def began(connection: sa.Connection) -> None:
        # A transaction that reads first and writes later fails without waiting when another wrote in between.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", connected)
    event.listen(engine, "checkout", checked_out)
    event.listen(engine, "begin", began)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _schema(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _stamp(connection: sa.Connection, name: str) -> int:
    return int(connection.execute(sa.select(STAMPS.c.value).where(STAMPS.c.name == name)).scalar_one())


def _issue(connection: sa.Connection, name: str) -> IssuedKey:
    key = Key(id=new_id(secrets.token_bytes(ID_BYTES)), name=name, created_at_ms=_now_ms())
    secret = new_secret(secrets.token_bytes(SECRET_BYTES))
    row = {"id": key.id, "name": key.name, "digest": digest(secret), "created_at_ms": key.created_at_ms}
    connection.execute(KEYS.insert().values(row))
    return IssuedKey(key, secret)


def _key(row: sa.Row[*tuple[Any, ...]]) -> Key:
    return Key(id=row.id, name=row.name, created_at_ms=row.created_at_ms, revoked_at_ms=row.revoked_at_ms)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
