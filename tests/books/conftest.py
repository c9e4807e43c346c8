"""One battery over both databases: `any_store` is in turn a SQLite file and a database of our own in PostgreSQL."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from andthen.books.store import SqlStore, open_store

POSTGRES = os.environ.get("TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
"""A server's database from which others may be made."""


def _run(url: sa.URL, *statements: str) -> None:
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


@pytest.fixture(scope="session")
def _postgres_database() -> Iterator[sa.URL]:
    name = f"andthen_test_{secrets.token_hex(6)}"
    server = sa.make_url(POSTGRES)
    _run(server, f"CREATE DATABASE {name}")
    yield server.set(database=name)
    _run(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgres(_postgres_database: sa.URL) -> str:
    """The address of an empty database."""
    _run(_postgres_database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return _postgres_database.render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str | Path:
    """A database that is at the newest schema once it was opened."""
    if request.param == "sqlite":
        return tmp_path / "books.db"
    address: str = request.getfixturevalue("postgres")
    open_store(address, migrate=True).close()
    return address


@pytest.fixture
def any_store(place: str | Path) -> Iterator[SqlStore]:
    with closing(open_store(place)) as opened:
        yield opened
