"""The ledger in a database: requests settled once, what the dead left behind, and what a period has cost."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from andthen.books.store import BadEntry, SqlStore, ledger, open_store
from andthen.contract.request import worst_prompt_tokens
from andthen.ledger.periods import period_start_ms
from andthen.ledger.records import Budget, Spent
from andthen.ledger.storage import Place, Want
from tests.ledger.making import NOON_MS, intent, post, settled

TOTAL = Budget(window="total", micros=1_000)


@pytest.fixture
def store(any_store: SqlStore) -> SqlStore:
    return any_store


def test_a_settlement_takes_the_place_of_what_was_reserved(store: SqlStore) -> None:
    one = intent(1, budgets=(TOTAL,))
    post(store, [one])
    assert store.spent("key_a", [TOTAL]) == [Spent(0, 100, 0, 50)]
    post(store, [settled(one)])
    assert store.spent("key_a", [TOTAL]) == [Spent(30, 0, 15, 0)]


def test_a_budget_set_later_knows_what_its_period_has_cost(store: SqlStore) -> None:
    one, open_one = intent(1), intent(2)
    post(store, [one, open_one, settled(intent("old", started_at_ms=NOON_MS - 40 * 86_400_000))])
    post(store, [settled(one)])
    month = period_start_ms("month", NOON_MS)
    store.begin_owner("owner", 60.0)
    (drawn,) = store.draw("owner", [Want(Place("key_a", "month", month, "money"), 229, 0, 100, exact=True)])
    assert (drawn.granted, drawn.spent) == (100, 30)
    post(store, [settled(open_one)])
    (drawn,) = store.draw("owner", [Want(Place("key_a", "month", month, "money"), 229, 100, 70, exact=True)])
    assert (drawn.granted, drawn.spent) == (0, 60)


@pytest.mark.parametrize(
    ("window", "start_ms"), [("day", 1_799_971_200_000), ("month", 1_798_761_600_000), ("total", 0)]
)
def test_periods_are_calendar_days_and_months_of_utc(window: str, start_ms: int) -> None:
    assert period_start_ms(window, NOON_MS) == start_ms  # type: ignore[arg-type]


def test_settling_twice_counts_once(store: SqlStore) -> None:
    one = intent(1, budgets=(TOTAL,))
    post(store, [one])
    post(store, [settled(one), settled(one, cost_micros=999)])
    post(store, [settled(one)])
    assert store.spent("key_a", [TOTAL]) == [Spent(30, 0, 15, 0)]


def test_a_settlement_whose_intent_the_database_does_not_know_is_kept(store: SqlStore) -> None:
    store.spent("key_a", [TOTAL])
    post(store, [settled(intent(1))])
    assert store.spent("key_a", [TOTAL]) == [Spent(30, 0, 15, 0)]


def test_what_a_dead_process_left_open_is_given_back_and_what_a_living_one_has_is_not(store: SqlStore) -> None:
    post(store, [
        intent(1, budgets=(TOTAL,), lease_owner="dead"), intent(2, lease_owner="alive"), intent(3, lease_owner="alive")
    ])  # fmt: skip
    store.renew("dead", 0.0)
    store.renew("alive", 60.0)
    time.sleep(0.01)
    assert set(store.leases()) == {"dead", "alive"}
    assert store.release_lost(["alive"]) == 0
    assert store.release_lost(["alive", "dead"]) == 1
    assert store.release_lost(["alive", "dead"]) == 0
    assert set(store.leases()) == {"alive"}
    assert store.spent("key_a", [TOTAL]) == [Spent(0, 200, 0, 100)]


def test_who_is_known_to_be_dead_is_buried_whatever_its_lease_says(store: SqlStore) -> None:
    post(store, [intent(1, lease_owner="dead"), intent(2, lease_owner="alive")])
    for name in ("dead", "alive"):
        store.renew(name, 60.0)
    assert store.end_lease("dead") == 1
    assert set(store.leases()) == {"alive"}


def test_who_never_said_to_live_has_no_lease(store: SqlStore) -> None:
    post(store, [intent(1, lease_owner="unheard")])
    assert store.leases() == {"unheard": 0}
    assert store.release_lost(["unheard"]) == 1


def test_a_prompt_has_at_most_a_token_for_each_byte() -> None:
    assert worst_prompt_tokens("é") == 66
    assert worst_prompt_tokens((1, 2)) == 66
    assert worst_prompt_tokens("é", tokens=1) == 1


def test_what_was_given_up_for_lost_is_settled_after_all_when_its_process_comes_back(store: SqlStore) -> None:
    one = intent(1, budgets=(TOTAL,))
    post(store, [one])
    store.renew("here", -1)
    assert store.release_lost(["here"]) == 1
    post(store, [settled(one)])
    post(store, [settled(one)])
    assert store.spent("key_a", [TOTAL]) == [Spent(30, 0, 15, 0)]
    assert [(row.requests, row.failed, row.cost_micros) for row in store.usage(["key"])] == [(1, 0, 30)]


def test_an_entry_that_no_database_can_hold_is_told_from_a_database_that_is_gone(store: SqlStore) -> None:
    with pytest.raises(BadEntry):
        post(store, [intent(1), settled(intent(2), total_ms=2**70)])
    assert store.usage(["key"]) == []


def test_two_writers_take_a_keys_periods_in_any_order_and_never_wait_for_each_other(place: str | Path) -> None:
    """Around midnight, with budgets that name their windows in an order of their own."""
    budgets = (Budget(window="total", tokens=10**9), Budget(window="day", tokens=10**9))

    def write(number: int) -> None:
        with closing(open_store(place)) as store:
            for turn in range(15):
                late = NOON_MS + 86_400_000 * ((turn + number) % 2)
                own = [
                    intent(f"{number}-{turn}-{i}", budgets=budgets[:: 1 if i % 2 else -1],
                           started_at_ms=late if i % 2 else NOON_MS)
                    for i in range(4)
                ]  # fmt: skip
                post(store, own)
                post(store, [settled(one) for one in reversed(own)])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    with closing(open_store(place)) as store:
        (total,) = store.spent("key_a", [budgets[0]])
    assert total == Spent(2 * 15 * 4 * 30, 0, 2 * 15 * 4 * 15, 0)


def test_a_lease_runs_by_the_databases_clock_where_several_machines_share_it(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_store(postgres, migrate=True)) as store:
        post(store, [intent(1)])
        store.renew("here", 20.0)
        monkeypatch.setattr(ledger, "now_ms", lambda: NOON_MS * 2)
        assert store.release_lost(["here"]) == 0
