"""The books in PostgreSQL: who migrates, what is refused, and that no password is told."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from andthen.books.store import (
    HEAD,
    METADATA,
    BadAddress,
    SchemaTooNew,
    SchemaTooOld,
    StoreUnavailable,
    open_store,
)


@pytest.fixture
def engine(postgres: str) -> Iterator[sa.Engine]:
    made = sa.create_engine(sa.make_url(postgres).set(drivername="postgresql+psycopg"))
    yield made
    made.dispose()


def test_only_the_command_migrates(postgres: str) -> None:
    with pytest.raises(SchemaTooOld, match="has no tables yet: run `andthen migrate`"):
        open_store(postgres)
    with closing(open_store(postgres, migrate=True)) as store:
        secret = store.create_key("ci").secret
    with closing(open_store(postgres)) as store:
        assert store.key_ring().lookup(secret, 0) is not None


def test_many_that_migrate_at_once_take_turns(postgres: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for store in pool.map(lambda _: open_store(postgres, migrate=True), range(4)):
            store.close()


def test_the_steps_lead_to_the_tables_that_the_statements_use(postgres: str, engine: sa.Engine) -> None:
    open_store(postgres, migrate=True).close()
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


@pytest.mark.parametrize("migrate", [False, True])
def test_a_newer_schema_is_refused(postgres: str, engine: sa.Engine, migrate: bool) -> None:
    open_store(postgres, migrate=True).close()
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaTooNew, match=r"newer andthen \(schema 9999, .* upgrade andthen"):
        open_store(postgres, migrate=migrate)


def test_an_older_schema_is_refused(postgres: str, engine: sa.Engine) -> None:
    open_store(postgres, migrate=True).close()
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(SchemaTooOld, match=f"has schema 0001, and this andthen needs {HEAD}: run `andthen migrate`"):
        open_store(postgres)


def test_a_server_that_is_not_there_is_told_in_one_line() -> None:
    with pytest.raises(StoreUnavailable, match=r"refused .*connections\. See that it can be reached") as caught:
        open_store("postgresql://127.0.0.1:1/none")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("postgresql://ada:sesame@127.0.0.1:1/none", StoreUnavailable),
        ("postgres://ada:sesame@127.0.0.1:port/none", BadAddress),
        ("postgresql://postgres:sesame@127.0.0.1:5432/no such database", StoreUnavailable),
    ],
)
def test_no_error_shows_the_password(address: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        open_store(address)
    assert "sesame" not in "".join(traceback.format_exception(caught.value))
