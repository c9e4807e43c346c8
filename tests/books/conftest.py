"""One battery over both databases: `any_store` is in turn a SQLite file and a database of our own in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from andthen.books.store import SqlStore, open_store
from tests.postgres import own_database, run


@pytest.fixture(scope="session")
def _postgres_database() -> Iterator[sa.URL]:
    with own_database() as address:
        yield address


@pytest.fixture
def postgres(_postgres_database: sa.URL) -> str:
    """The address of an empty database."""
    run(_postgres_database, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
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
