"""Rows that are kept no longer: what goes, what stays, and that no sum changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from andthen.books import retention
from andthen.books.retention import Retention
from andthen.books.settings import BooksSettings
from andthen.books.store import METADATA, SqlStore, StoreUnavailable, ledger, open_store
from andthen.books.store.removal import Ageing
from andthen.books.store.schema import CALLS
from andthen.books.store.usage import UsageRow
from andthen.ledger.periods import period_start_ms
from andthen.ledger.records import WINDOWS, Budget, Intent, Settlement, Spent
from andthen.ledger.storage import Place, Want
from tests.ledger.making import NOON_MS, intent, post, settled

DAY_MS = 86_400_000
ALL = tuple(Budget(window=window, micros=2**40) for window in WINDOWS)


@pytest.fixture
def store(any_store: SqlStore) -> SqlStore:
    return any_store


@pytest.fixture(autouse=True)
def _noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "now_ms", lambda: NOON_MS)


def past(number: int | str, days: float, **fields: object) -> Settlement:
    """A request that ended so many days before noon."""
    return settled(intent(number, started_at_ms=NOON_MS - round(days * DAY_MS), **fields))


def write(store: SqlStore, settlements: Sequence[Settlement]) -> None:
    post(store, [one.intent for one in settlements])
    post(store, settlements)


def sums(store: SqlStore) -> list[list[UsageRow]]:
    return [store.usage(["day", "key", "model"]), store.usage(["day"]), store.usage(["key"]), store.usage(["model"])]


def calls(store: SqlStore) -> list[str]:
    with store.reading() as connection:
        return [
            row.request_id for row in connection.execute(sa.select(CALLS.c.request_id).order_by(CALLS.c.request_id))
        ]


def test_old_requests_go_with_their_calls_and_their_sums_stay(store: SqlStore) -> None:
    write(store, [past(1, 3), past(2, 2.001, key_id="key_b"), past(3, 1.999)])
    before = sums(store)
    assert store.count_old("requests", NOON_MS - 2 * DAY_MS) == 2
    assert store.remove_old("requests", NOON_MS - 2 * DAY_MS, most=10) == 2
    assert store.count_old("requests", NOON_MS - 2 * DAY_MS) == 0
    assert sums(store) == before
    assert calls(store) == ["cmpl-3"]


def test_they_go_oldest_first_and_no_more_at_once_than_was_asked(store: SqlStore) -> None:
    write(store, [past(number, 10 - number) for number in range(5)])
    assert [store.remove_old("requests", NOON_MS, most=2) for _ in range(4)] == [2, 2, 1, 0]
    assert sum(row.requests for row in store.usage(["day"])) == 5


def test_requests_under_way_stay_whatever_their_age(store: SqlStore) -> None:
    one = intent(1, started_at_ms=NOON_MS - 90 * DAY_MS, budgets=ALL)
    post(store, [one])
    assert store.remove_old("requests", NOON_MS, most=10) == 0
    post(store, [settled(one)])
    assert store.remove_old("requests", NOON_MS, most=10) == 1


def test_a_budget_that_is_set_after_rows_went_counts_them(store: SqlStore) -> None:
    write(store, [past(1, 400), past(2, 8), past(3, 0.3)])
    store.remove_old("requests", NOON_MS, most=10)
    late = intent("late", budgets=ALL, reserved_micros=7, reserved_tokens=3)
    assert store.spent("key_a", ALL) == [Spent(30, 0, 15, 0), Spent(60, 0, 30, 0), Spent(90, 0, 45, 0)]
    post(store, [late])
    assert store.spent("key_a", ALL) == [Spent(30, 7, 15, 3), Spent(60, 7, 30, 3), Spent(90, 7, 45, 3)]
    store.begin_owner("owner", 60.0)
    (drawn,) = store.draw("owner", [Want(Place("key_a", "total", 0, "money"), 100, 0, 20, exact=False)])
    assert (drawn.granted, drawn.spent) == (0, 90)


_AGES_DAYS = st.floats(0, 60) | st.sampled_from([0.0, 0.5, 1.0, 14.5])
_STEPS = st.lists(
    st.tuples(st.just("begin"), _AGES_DAYS, st.sampled_from([(), ALL, ALL[1:], ALL[:1]]))
    | st.tuples(st.just("settle"), st.integers(0, 20), st.integers(0, 1000))
    | st.tuples(st.just("remove"), _AGES_DAYS, st.integers(1, 5)),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(steps=_STEPS)
def test_no_budget_and_no_sum_changes_when_rows_go(store: SqlStore, steps: list[tuple[str, Any, Any]]) -> None:
    """Whatever its age, and whenever the budget came into being: what is spent is what the requests came to."""
    with store.writing() as connection:
        for table in reversed(METADATA.sorted_tables):
            connection.execute(table.delete())
    began: list[Intent] = []
    cost: dict[str, int] = {}
    for number, (step, one, two) in enumerate(steps):
        if step == "begin":
            began.append(intent(number, started_at_ms=NOON_MS - round(one * DAY_MS), budgets=two))
            post(store, began[-1:])
        elif step == "settle" and one < len(began) and began[one].id not in cost:
            cost[began[one].id] = two
            post(store, [settled(began[one], cost_micros=two)])
        elif step == "remove":
            store.remove_old("requests", NOON_MS - round(one * DAY_MS), most=two)
        assert store.spent("key_a", ALL) == [_expected(budget, began, cost) for budget in ALL]
        assert sum(row.cost_micros for row in store.usage(["day"])) == sum(cost.values())
        assert sum(row.requests for row in store.usage(["model"])) == len(began)


def _expected(budget: Budget, began: list[Intent], cost: dict[str, int]) -> Spent:
    within = [one for one in began if one.started_at_ms >= period_start_ms(budget.window, NOON_MS)]
    done = [cost[one.id] for one in within if one.id in cost]
    reserved = len(within) - len(done)
    return Spent(sum(done), 100 * reserved, 15 * len(done), 50 * reserved)


def test_the_audit_is_kept_as_long_as_is_said(store: SqlStore) -> None:
    store.create_key("one")
    store.create_key("two")
    (newer, older) = store.changes()
    assert store.remove_old("audit", older.at_ms, most=10) == 0
    assert store.count_old("audit", newer.at_ms + 1) == 2
    assert store.remove_old("audit", newer.at_ms + 1, most=1) == 1
    assert store.changes() == [newer]


def test_of_all_that_offer_themselves_one_gets_the_turn(place: str | Path) -> None:
    def offer(_: int) -> int | None:
        with closing(open_store(place)) as store:
            return store.take_turn(60.0)

    with ThreadPoolExecutor(4) as pool:
        turns = list(pool.map(offer, range(8)))
    assert len([turn for turn in turns if turn is not None]) == 1


def test_a_turn_is_free_again_when_it_is_over(store: SqlStore) -> None:
    assert store.take_turn(-1.0) is not None
    assert store.take_turn(60.0) is not None
    assert store.take_turn(60.0) is None


def test_two_that_remove_at_once_add_up_no_row_twice_and_hold_nobody_up(place: str | Path) -> None:
    with closing(open_store(place)) as store:
        write(store, [past(number, 5, key_id=f"key_{number % 3}") for number in range(60)])

        def remove(_: int) -> int:
            with closing(open_store(place)) as own:
                return sum(own.remove_old("requests", NOON_MS, most=7) for _ in range(12))

        def spend(number: int) -> None:
            with closing(open_store(place)) as own:
                for turn in range(8):
                    write(own, [past(f"{number}-{turn}", 6, key_id=f"key_{number}", budgets=ALL)])

        with ThreadPoolExecutor(4) as pool:
            spending = [pool.submit(spend, number) for number in range(2)]
            removed = sum(pool.map(remove, range(2)))
            for one in spending:
                one.result()
        assert removed + store.count_old("requests", NOON_MS) == 76
        assert [(row.key, row.requests, row.cost_micros) for row in store.usage(["key"])] == [
            ("key_0", 28, 840), ("key_1", 28, 840), ("key_2", 20, 600),
        ]  # fmt: skip


class Fake:
    """Rows that a test counts out."""

    def __init__(self, rows: int, at_ms: int | None = NOON_MS) -> None:
        self.left = rows
        self.at_ms = at_ms
        self.asked: list[tuple[Ageing, int]] = []
        self.mood: Callable[[], object] = lambda: None

    def take_turn(self, lease_s: float) -> int | None:
        self.mood()
        return self.at_ms

    def remove_old(self, what: Ageing, before_ms: int, *, most: int) -> int:
        self.asked.append((what, before_ms))
        removed = min(self.left, most)
        self.left -= removed
        return removed


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_server_removes_all_that_is_too_old_in_batches() -> None:
    store = Fake(2 * retention.BATCH_ROWS + 1)
    async with Retention(store, BooksSettings(keep_requests_days=30)):
        await until(lambda: len(store.asked) == 3)
    assert store.left == 0
    assert set(store.asked) == {("requests", NOON_MS - 30 * DAY_MS)}


async def test_each_kind_has_a_time_of_its_own() -> None:
    store = Fake(0)
    async with Retention(store, BooksSettings(keep_requests_days=30, keep_audit_days=90)):
        await until(lambda: len(store.asked) == 2)
    assert store.asked == [("requests", NOON_MS - 30 * DAY_MS), ("audit", NOON_MS - 90 * DAY_MS)]


async def test_nothing_is_removed_that_is_to_be_kept_for_ever_or_in_anothers_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "_EVERY_S", 0.01)
    for settings_, at_ms in ((BooksSettings(), NOON_MS), (BooksSettings(keep_requests_days=1), None)):
        store = Fake(10, at_ms)
        async with Retention(store, settings_):
            await asyncio.sleep(0.05)
        assert store.asked == []


async def test_it_goes_on_when_a_database_that_was_gone_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_EVERY_S", 0.01)
    store, failures = Fake(10), 0

    def gone_twice() -> None:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise StoreUnavailable("gone")

    store.mood = gone_twice
    async with Retention(store, BooksSettings(keep_requests_days=1)):
        await until(lambda: store.left == 0)
