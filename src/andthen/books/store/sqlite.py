"""The books in one SQLite file."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event

from andthen.books.settings import Durability
from andthen.books.store.errors import StoreUnavailable

_WAITS: dict[Durability, str] = {"process": "PRAGMA synchronous = NORMAL", "power": "PRAGMA synchronous = FULL"}


def sqlite_engine(path: Path, busy_timeout_s: float, durability: Durability) -> sa.Engine:
    """The file's connections: see `open_sqlite`. Raises `StoreUnavailable`."""
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
    engine = sa.create_engine(url, connect_args={"timeout": busy_timeout_s}, paramstyle="named")
    _adapt_to_sqlite(engine, path, busy_timeout_s, durability)
    return engine


def back_up(engine: sa.Engine, path: Path, schema: str) -> None:
    """A copy of the database beside it, named for its schema and the moment, 0600. Waits for no writer.

    Raises:
        StoreUnavailable: no copy could be made.
    """
    copy = path.with_name(f"{path.name}.schema-{schema}.{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
    try:
        os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise _no_copy(path, error.strerror or str(error)) from error
    copying = sa.create_engine(sa.URL.create("sqlite", database=str(copy)))
    try:
        with (
            contextlib.closing(engine.raw_connection()) as source,
            contextlib.closing(copying.raw_connection()) as target,
        ):
            driver: Any = source.driver_connection
            driver.backup(target.driver_connection)
    except engine.dialect.loaded_dbapi.Error as error:
        copy.unlink()
        raise _no_copy(path, str(error)) from error
    finally:
        copying.dispose()


def _no_copy(path: Path, reason: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"the database {path} was left as it is: no copy could be made of it first ({reason}). Make room beside it"
    )


def _adapt_to_sqlite(engine: sa.Engine, path: Path, busy_timeout_s: float, durability: Durability) -> None:
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # `began` opens the transactions: DDL belongs to them then
        cursor = connection.cursor()
        _use_write_ahead_log(cursor, busy_timeout_s, engine.dialect.loaded_dbapi)
        # With a write-ahead log NORMAL loses nothing when processes die, and FULL nothing when the power does
        # (https://sqlite.org/pragma.html#pragma_synchronous).
        cursor.execute(_WAITS[durability])
        cursor.execute("PRAGMA secure_delete = ON")  # what is kept no longer is not in the file's free pages either
        cursor.close()
        record.info["file"] = _identity(path)

    def checked_out(_connection: Any, record: Any, _proxy: Any) -> None:
        if record.info["file"] != _identity(path):
            raise sa.exc.DisconnectionError("the file was deleted or replaced")

    def began(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        if options.get("lasting", False):
            connection.exec_driver_sql(_WAITS["power"])
            connection.info["lasting"] = True
        # A transaction that reads first and writes later fails without waiting when another wrote in between.
        writes = options.get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    def checked_in(connection: Any, record: Any) -> None:
        if record.info.pop("lasting", False) and connection is not None:
            connection.execute(_WAITS[durability])

    event.listen(engine, "connect", connected)
    event.listen(engine, "checkout", checked_out)
    event.listen(engine, "checkin", checked_in)
    event.listen(engine, "begin", began)


def _use_write_ahead_log(cursor: Any, busy_timeout_s: float, driver: Any) -> None:
    """SQLite does not wait here for a process that makes the database or, as the last one, closes it."""
    deadline_s = time.monotonic() + busy_timeout_s
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except driver.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() >= deadline_s:
                raise
        time.sleep(0.01)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
