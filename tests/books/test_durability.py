"""What a commit waits for, as the database says on the very connections that write."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from andthen.books.settings import BooksSettings, Durability
from andthen.books.store import SqlStore, open_store

ASKED = {"sqlite": sa.text("PRAGMA synchronous"), "postgresql": sa.text("SHOW synchronous_commit")}
SQLITE = {1: "off", 2: "on"}


def waits_for(connection: sa.Connection) -> str:
    told = connection.execute(ASKED[connection.dialect.name]).scalar_one()
    return str(SQLITE.get(told, told))


def written(store: SqlStore) -> str:
    """How the ledger is, whichever way it is written."""
    with store.writing() as connection:
        found = waits_for(connection)
    with store.driving() as driver:
        [[(told,)]] = driver.read(ASKED[driver.database], [{}])
    assert SQLITE.get(told, told) == found
    return found


@pytest.mark.parametrize(("durability", "wanted"), [("process", "off"), ("power", "on")])
def test_a_commit_waits_for_the_disk_where_it_is_to_survive_a_power_cut(
    place: str | Path, durability: Durability, wanted: str
) -> None:
    with closing(open_store(place, durability=durability)) as store:
        assert written(store) == wanted
        with store.changing("keys") as connection:
            assert waits_for(connection) == "on", "keys always do"
        assert written(store) == wanted, "on the same connection"


def test_sqlite_has_a_log_that_is_written_ahead(tmp_path: Path) -> None:
    with closing(open_store(tmp_path / "books.db")) as store, store.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"


@pytest.mark.parametrize(
    ("durability", "wanted"), [("process", "off"), ("power", "remote_apply")], ids=["process", "power"]
)
def test_power_keeps_what_the_server_itself_is_set_to(postgres: str, durability: Durability, wanted: str) -> None:
    open_store(postgres, migrate=True).close()
    with closing(open_store(f"{postgres}?options=-csynchronous_commit%3Dremote_apply", durability=durability)) as store:
        assert written(store) == wanted
    with closing(open_store(f"{postgres}?options=-csynchronous_commit%3Doff", durability="power")) as store:
        assert written(store) == "on"


def test_the_usual_is_what_the_settings_say() -> None:
    assert BooksSettings().durability == "process"
