"""The ledger in a database: budgets under a race, settlements once, what the dead left behind."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from andthen.books.ledger import Bounded, Call, Intent, Settlement, Tokens
from andthen.books.policy import Budget
from andthen.books.store import BadEntry, SqlStore, ledger, open_store
from andthen.books.store.spending import Spent, period_start_ms
from andthen.contract.request import worst_prompt_tokens

TOTAL = Budget(window="total", micros=1_000)
NOON_MS = 1_800_014_400_000
"""2027-01-15 12:00 UTC."""


@pytest.fixture
def store(any_store: SqlStore) -> SqlStore:
    return any_store


def intent(number: int | str, **fields: object) -> Intent:
    first = Intent(
        id=f"cmpl-{number}", key_id="key_a", holder="here", model="local/tale", started_at_ms=NOON_MS,
        reserved_micros=100, reserved_tokens=50,
    )  # fmt: skip
    return replace(first, **fields)


def settled(of: Intent, **fields: object) -> Settlement:
    first = Settlement(
        intent=of, status=200, ended_by="reply", settled_at_ms=NOON_MS + 5, cost_micros=30,
        tokens=Tokens(prompt=10, completion=5),
        calls=(Call(model="local/tale", status=200, tokens=Tokens(prompt=10, completion=5), cost_micros=30),),
    )  # fmt: skip
    return replace(first, **fields)


def test_a_reservation_makes_room_again_for_what_it_did_not_cost(store: SqlStore) -> None:
    one = intent(1, budgets=(TOTAL,))
    assert store.record([one]) == [None]
    assert store.spent("key_a", [TOTAL]) == [Spent(0, 100, 0, 50)]
    store.record([settled(one)])
    assert store.spent("key_a", [TOTAL]) == [Spent(30, 0, 15, 0)]


def test_what_does_not_fit_is_told_with_whether_waiting_helps(store: SqlStore) -> None:
    small = Budget(window="day", micros=150)
    one = intent(1, budgets=(small,))
    (taken, refused) = store.record([one, intent(2, budgets=(small,))])
    assert taken is None
    assert refused == Bounded(small, "money", 0, 100, 100)
    assert not refused.for_good
    store.record([settled(one, cost_micros=60)])
    (refused,) = store.record([intent(3, budgets=(small,))])
    assert refused is not None
    assert refused.for_good
    assert store.record([intent(4, budgets=(small,), reserved_micros=90)]) == [None]


def test_tokens_are_a_budget_of_their_own(store: SqlStore) -> None:
    tokens = Budget(window="month", tokens=60)
    (taken, refused) = store.record([intent(1, budgets=(tokens,)), intent(2, budgets=(tokens,))])
    assert taken is None
    assert refused is not None
    assert refused.kind == "tokens"


def test_an_intent_that_a_budget_refuses_leaves_no_trace_in_the_others(store: SqlStore) -> None:
    wide, narrow = Budget(window="total", micros=10_000), Budget(window="day", micros=1)
    assert store.record([intent(1, budgets=(wide, narrow))]) != [None]
    assert store.spent("key_a", [wide, narrow]) == [Spent(), Spent()]


def test_a_budget_set_later_knows_what_its_period_has_cost(store: SqlStore) -> None:
    one, open_one = intent(1), intent(2)
    store.record([one, open_one, intent("old", started_at_ms=NOON_MS - 40 * 86_400_000)])
    store.record([settled(one)])
    late = intent(3, budgets=(Budget(window="month", micros=229),))
    (refused,) = store.record([late])
    assert refused == Bounded(late.budgets[0], "money", 30, 100, 100)


def test_each_day_and_month_begins_anew(store: SqlStore) -> None:
    day = Budget(window="day", micros=100)
    assert store.record([intent(1, budgets=(day,))]) == [None]
    assert store.record([intent(2, budgets=(day,))]) != [None]
    assert store.record([intent(3, budgets=(day,), started_at_ms=NOON_MS + 43_200_000)]) == [None]


@pytest.mark.parametrize(
    ("window", "start_ms"), [("day", 1_799_971_200_000), ("month", 1_798_761_600_000), ("total", 0)]
)
def test_periods_are_calendar_days_and_months_of_utc(window: str, start_ms: int) -> None:
    assert period_start_ms(window, NOON_MS) == start_ms  # type: ignore[arg-type]


def test_settling_twice_counts_once(store: SqlStore) -> None:
    one = intent(1, budgets=(TOTAL,))
    store.record([one])
    store.record([settled(one), settled(one, cost_micros=999)])
    store.record([settled(one)])
    assert store.spent("key_a", [TOTAL]) == [Spent(30, 0, 15, 0)]


def test_a_settlement_whose_intent_the_database_does_not_know_is_kept(store: SqlStore) -> None:
    store.spent("key_a", [TOTAL])
    store.record([settled(intent(1))])
    assert store.spent("key_a", [TOTAL]) == [Spent(30, 0, 15, 0)]


def test_what_a_dead_process_left_open_is_given_back_and_what_a_living_one_has_is_not(store: SqlStore) -> None:
    store.record([intent(1, budgets=(TOTAL,), holder="dead"), intent(2, holder="alive"), intent(3, holder="alive")])
    store.renew("dead", 0.0)
    store.renew("alive", 60.0)
    time.sleep(0.01)
    assert set(store.leases()) == {"dead", "alive"}
    assert store.release_lost(["alive"]) == 0
    assert store.release_lost(["alive", "dead"]) == 1
    assert store.release_lost(["alive", "dead"]) == 0
    assert set(store.leases()) == {"alive"}
    assert store.spent("key_a", [TOTAL]) == [Spent(0, 200, 0, 100)]


def test_who_never_said_to_live_has_no_lease(store: SqlStore) -> None:
    store.record([intent(1, holder="unheard")])
    assert store.leases() == {"unheard": 0}
    assert store.release_lost(["unheard"]) == 1


def test_many_writers_never_pass_a_budget_and_leave_none_of_it_unused(place: str | Path) -> None:
    budget = Budget(window="total", micros=100 * 30)
    stores = [open_store(place) for _ in range(2)]
    passed = threading.Event()

    def spend(worker: int) -> int:
        store, done = stores[worker % 2], 0
        while True:
            one = intent(f"{worker}-{done}-{time.monotonic_ns()}", budgets=(budget,))
            (bounded,) = store.record([one])
            (spent,) = store.spent("key_a", [budget])
            if spent.micros + spent.reserved_micros > 3000:
                passed.set()
            if bounded is None:
                store.record([settled(one)])
                done += 1
            elif bounded.for_good:
                return done

    with ThreadPoolExecutor(16) as pool:
        done = sum(pool.map(spend, range(16)))
    assert not passed.is_set()
    # Each reserves 100 and costs 30: the last that fits begins at 2,900 or below.
    assert done == 97
    assert stores[0].spent("key_a", [budget]) == [Spent(97 * 30, 0, 97 * 15, 0)]
    for store in stores:
        store.close()


def test_a_prompt_has_at_most_a_token_for_each_byte() -> None:
    assert worst_prompt_tokens("é") == 66
    assert worst_prompt_tokens((1, 2)) == 66
    assert worst_prompt_tokens("é", tokens=1) == 1


def test_what_was_given_up_for_lost_is_settled_after_all_when_its_process_comes_back(store: SqlStore) -> None:
    one = intent(1, budgets=(TOTAL,))
    store.record([one])
    store.renew("here", -1)
    assert store.release_lost(["here"]) == 1
    store.record([settled(one)])
    store.record([settled(one)])
    assert store.spent("key_a", [TOTAL]) == [Spent(30, 0, 15, 0)]
    assert [(row.requests, row.failed, row.cost_micros) for row in store.usage(["key"])] == [(1, 0, 30)]


def test_an_entry_that_no_database_can_hold_is_told_from_a_database_that_is_gone(store: SqlStore) -> None:
    with pytest.raises(BadEntry):
        store.record([intent(1), settled(intent(2), total_ms=2**70)])
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
                store.record(own)
                store.record([settled(one) for one in reversed(own)])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    with closing(open_store(place)) as store:
        (total,) = store.spent("key_a", [budgets[0]])
    assert total == Spent(2 * 15 * 4 * 30, 0, 2 * 15 * 4 * 15, 0)


def test_a_lease_runs_by_the_databases_clock_where_several_machines_share_it(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_store(postgres, migrate=True)) as store:
        store.record([intent(1)])
        store.renew("here", 20.0)
        monkeypatch.setattr(ledger, "now_ms", lambda: NOON_MS * 2)
        assert store.release_lost(["here"]) == 0
