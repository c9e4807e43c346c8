"""Entries that reach the ledger together: they come to what they would come to one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from andthen.books.store import BadEntry, SqlStore, StoreUnavailable, open_sqlite, open_store
from andthen.books.store.schema import SPENDING
from andthen.books.store.usage import UsageRow
from andthen.ledger.records import Budget, Intent, Settlement
from tests.ledger.making import NOON_MS, intent, post, settled

BUDGETS = (Budget(window="day", micros=10**9), Budget(window="total", tokens=10**9))
DAY_MS = 86_400_000
KEYS = ("key_a", "key_b", "key_c")


def standing(store: SqlStore) -> tuple[list[tuple[object, ...]], list[UsageRow]]:
    with store.reading() as connection:
        spending = connection.execute(sa.select(SPENDING).order_by(*SPENDING.primary_key)).all()
    return [tuple(row) for row in spending], store.usage(["key", "day"])


def story() -> Iterator[Sequence[Intent | Settlement]]:
    """Requests of several keys on two days, with budgets and without; some are settled twice, or without an intent."""
    intents = [
        intent(number, key_id=KEYS[number % 3], budgets=BUDGETS if number % 2 else (),
               started_at_ms=NOON_MS + DAY_MS * (number >= 14), reserved_micros=100 + number)
        for number in range(24)
    ]  # fmt: skip
    settlements = [settled(one, cost_micros=number) for number, one in enumerate(intents)]
    yield intents[:12]
    yield [*settlements[:8], *intents[12:16], settlements[3]]
    yield [settlements[20], *intents[16:18], settlements[20], *settlements[8:10], intents[10], intents[8]]


def test_a_batch_comes_to_what_its_entries_come_to_one_by_one(any_store: SqlStore, tmp_path: Path) -> None:
    with closing(open_sqlite(tmp_path / "one_by_one.db")) as other:
        for batch in story():
            post(any_store, batch)
            for entry in batch:
                post(other, [entry])
            assert standing(any_store) == standing(other)


def test_to_post_records_again_changes_nothing(any_store: SqlStore) -> None:
    batches = list(story())
    for batch in batches:
        post(any_store, batch)
    before = standing(any_store)
    for batch in (*batches, [record for one in batches for record in one]):
        post(any_store, batch)
        assert standing(any_store) == before


def test_a_batch_that_could_not_be_written_leaves_nothing_and_is_in_nobodys_way(any_store: SqlStore) -> None:
    post(any_store, [intent(1, budgets=BUDGETS)])
    before = standing(any_store)
    for bad in (settled(intent(1), total_ms=2**70), intent(2, reserved_tokens=2**70)):
        with pytest.raises(BadEntry):
            post(any_store, [intent(3, budgets=BUDGETS), settled(intent(4)), bad])
        assert standing(any_store) == before
    post(any_store, [intent(3)])
    assert any_store.usage(["key"])[0].open == 2


def test_a_database_file_that_is_gone_is_told_and_not_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    with closing(open_sqlite(path)) as store:
        post(store, [intent(1)])
        for file in tmp_path.iterdir():
            file.unlink()
        with pytest.raises(StoreUnavailable, match="can't be used"):
            post(store, [intent(2)])
    assert not path.exists()


def test_a_server_that_was_started_again_costs_a_connection_and_no_entry(postgres: str) -> None:
    with closing(open_store(postgres, migrate=True)) as store:
        post(store, [intent(1)])
        admin = sa.create_engine(sa.make_url(postgres).set(drivername="postgresql+psycopg"))
        with admin.connect() as connection:
            connection.execute(sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ))  # fmt: skip
        admin.dispose()
        post(store, [settled(intent(1))])
        assert store.usage(["key"])[0].open == 0


def test_a_batch_whose_connection_breaks_is_told_as_a_database_that_is_gone(postgres: str) -> None:
    with closing(open_store(postgres, migrate=True)) as store:
        kill = sa.text("SELECT pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(StoreUnavailable, match="can't be used"), store.driving() as driver:
            driver.read(kill, [{}])
        post(store, [intent(1)])
        assert store.usage(["key"])[0].open == 1
