"""A database of a test's own in the machine's PostgreSQL, dropped at the end."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

SERVER = sa.make_url(os.environ.get("TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres"))
"""A server's database from which others may be made."""


def run(url: sa.URL, *statements: str) -> None:
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


@contextmanager
def own_database() -> Iterator[sa.URL]:
    """An empty one's address."""
    name = f"andthen_test_{secrets.token_hex(6)}"
    run(SERVER, f"CREATE DATABASE {name}")
    try:
        yield SERVER.set(database=name)
    finally:
        run(SERVER, f"DROP DATABASE {name} WITH (FORCE)")
