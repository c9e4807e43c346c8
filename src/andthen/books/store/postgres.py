"""The books in a PostgreSQL database."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from andthen.books.settings import Durability
from andthen.books.store.errors import BadAddress

MIGRATION_LOCK = "SET LOCAL statement_timeout = 0; SELECT pg_advisory_xact_lock(7165918216330246248)"
"""The number is any that nobody else uses: whoever migrates waits for the others who do."""
KEYS_LOCK = """
SELECT pg_advisory_xact_lock(number)
FROM (SELECT hashtextextended(key, 0) AS number FROM unnest(CAST(:keys AS text[])) AS key ORDER BY 1 OFFSET 0) AS each
"""
"""Whoever changes what keys have spent waits for the others who do; all take the locks in one order."""
CLOCK_MS = "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)"
_SCHEMES = ("postgresql://", "postgres://")
_CONNECT_TIMEOUT_S = 2
_STATEMENT_TIMEOUT_MS = 5000
_AT_LEAST_OWN_DISK = """
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""
_LASTING = "SET LOCAL synchronous_commit = on"


def is_url(text: str) -> bool:
    """Whether it names a PostgreSQL database."""
    return text.startswith(_SCHEMES)


def postgres_engine(url: str, durability: Durability) -> tuple[sa.Engine, str]:
    """The database's connections, and how to name it in messages: without user and password.

    With `process` a commit waits for no disk: a crash of the server itself loses at most some tenths of a second
    (https://www.postgresql.org/docs/current/wal-async-commit.html). With `power` it waits for what the server is set to
    wait for, its own disk at least.

    Raises:
        BadAddress
    """
    try:
        named = sa.make_url("postgresql://" + url.partition("://")[2])
    except (sa.exc.ArgumentError, ValueError):
        # Not shown and not chained: the error's own text has the whole URL.
        raise BadAddress("the setting `books.database` is no postgresql://user:password@host:port/name") from None
    if find_spec("psycopg") is None:
        raise BadAddress("PostgreSQL needs the package psycopg: install `andthen[postgres]`")
    place = f"postgresql://{named.host or 'localhost'}:{named.port or 5432}/{named.database or ''}"
    engine = sa.create_engine(
        named.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,  # a server that was restarted costs a connection, not a request
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "tcp_user_timeout": _STATEMENT_TIMEOUT_MS,  # a machine that is gone answers nothing, not even that it is
            "application_name": "andthen",
        },
        hide_parameters=True,
    )

    def connected(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = {_STATEMENT_TIMEOUT_MS}")
            if durability == "process":
                cursor.execute("SET synchronous_commit = off")
            else:
                cursor.execute(_AT_LEAST_OWN_DISK)
        connection.commit()

    def began(connection: sa.Connection) -> None:
        if durability == "process" and connection.get_execution_options().get("lasting", False):
            connection.exec_driver_sql(_LASTING)

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", began)
    return engine, place
