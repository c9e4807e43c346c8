"""Budgets in memory: never more than the bound, all of it usable, nothing stuck, whoever shares it and whoever dies."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from andthen.books.store import SqlStore, StoreUnavailable, open_store
from andthen.ledger import budgets as budgets_module
from andthen.ledger.budgets import BudgetOwner, Hold
from andthen.ledger.records import Budget, Intent, Settlement, Shortfall, Tokens
from tests.ledger.making import NOON_MS, intent, post, settled

WAIT_S = 20.0
_NUMBERS = itertools.count(1)


def new_name() -> str:
    return f"owner-{next(_NUMBERS)}"


@asynccontextmanager
async def owner(store: SqlStore, **fields: Any) -> AsyncIterator[BudgetOwner]:
    async with BudgetOwner(store, new_name, **({"tick_s": 0.02} | fields)) as made:
        yield made


def hold(number: int | str, *budgets: Budget, micros: int = 100, tokens: int = 50, **fields: Any) -> Hold:
    whole: dict[str, Any] = {"lease_owner": "here", "key_id": "key_a", "at_ms": NOON_MS} | fields
    return Hold(request_id=f"cmpl-{number}", budgets=budgets, micros=micros, tokens=tokens, **whole)


def ended(of: Hold, by: str, micros: int, tokens: int = 0) -> Settlement:
    """As the request's settlement has it."""
    began = intent(
        of.request_id, id=of.request_id, key_id=of.key_id, budgets=of.budgets, budget_owner=by,
        reserved_micros=of.micros, reserved_tokens=of.tokens, started_at_ms=of.at_ms,
    )  # fmt: skip
    return settled(began, cost_micros=micros, tokens=Tokens(prompt=tokens), calls=())


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.005)


async def test_a_reservation_makes_room_again_for_what_it_did_not_cost(any_store: SqlStore) -> None:
    budget = Budget(window="total", micros=150)
    async with owner(any_store) as budgets:
        assert await budgets.reserve(hold(1, budget)) is None
        refused = await budgets.reserve(hold(2, budget))
        assert refused == Shortfall(budget, "money", 0, 100, 100)
        assert not refused.for_good
        budgets.settle("cmpl-1", 60, 0)
        refused = await budgets.reserve(hold(3, budget))
        assert refused is not None
        assert (refused.spent, refused.for_good) == (60, True)
        assert await budgets.reserve(hold(4, budget, micros=90)) is None


async def test_the_database_is_asked_for_an_allotment_and_not_for_each_request(any_store: SqlStore) -> None:
    budget = Budget(window="total", micros=10**6)
    async with owner(any_store) as budgets:
        assert budgets.try_reserve(hold(0, budget)) is False
        assert await budgets.reserve(hold(0, budget)) is None
        for number in range(1, 1000):
            assert budgets.try_reserve(hold(number, budget)) is True


async def test_tokens_are_a_budget_of_their_own_and_a_refusal_leaves_no_trace(any_store: SqlStore) -> None:
    wide, narrow = Budget(window="total", micros=10_000), Budget(window="day", tokens=40)
    async with owner(any_store) as budgets:
        refused = await budgets.reserve(hold(1, wide, narrow))
        assert refused is not None
        assert refused.kind == "tokens"
        assert await budgets.reserve(hold(2, wide, micros=10_000)) is None


async def test_each_day_and_month_begins_anew(any_store: SqlStore) -> None:
    day = Budget(window="day", micros=100)
    async with owner(any_store) as budgets:
        assert await budgets.reserve(hold(1, day)) is None
        assert await budgets.reserve(hold(2, day)) is not None
        assert await budgets.reserve(hold(3, day, at_ms=NOON_MS + 43_200_000)) is None


async def test_a_bound_that_is_lowered_or_raised_holds_at_once(any_store: SqlStore) -> None:
    async with owner(any_store) as budgets:
        assert await budgets.reserve(hold(1, Budget(window="total", micros=100_000))) is None
        budgets.settle("cmpl-1", 100, 0)
        low = Budget(window="total", micros=150)
        assert await budgets.reserve(hold(2, low)) is not None
        assert await budgets.reserve(hold(3, low, micros=50)) is None
        high = Budget(window="total", micros=1000)
        assert await budgets.reserve(hold(4, high, micros=850)) is None
        assert await budgets.reserve(hold(5, high, micros=1)) is not None


async def test_what_the_ledger_knows_of_a_period_counts(any_store: SqlStore) -> None:
    post(any_store, [settled(intent(1)), settled(intent(2))])
    async with owner(any_store) as budgets:
        refused = await budgets.reserve(hold(3, Budget(window="month", micros=159)))
        assert refused is not None
        assert (refused.spent, refused.needed) == (60, 100)
        assert await budgets.reserve(hold(4, Budget(window="month", micros=160))) is None


async def test_one_owner_gives_back_what_another_lacks(any_store: SqlStore) -> None:
    budget = Budget(window="total", micros=10_000)
    async with owner(any_store) as one, owner(any_store) as other:
        for number in range(10):
            assert await one.reserve(hold(f"a{number}", budget)) is None
        for number in range(10):
            one.settle(f"cmpl-a{number}", 100, 0)
        numbers = itertools.count()
        refusals: list[Shortfall] = []

        async def reserve() -> bool:
            refused = await other.reserve(hold(f"b{next(numbers)}", budget, micros=1000))
            if refused is not None:
                refusals.append(refused)
            return refused is None

        async with asyncio.timeout(WAIT_S):
            got = 0
            while got < 9:
                got += await reserve()
                await asyncio.sleep(0.01)
        assert not await reserve()
        assert refusals
        assert not any(refused.for_good for refused in refusals[:-1])


async def test_what_nobody_uses_is_given_back_and_forgotten(
    any_store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets_module, "_IDLE_S", 0.05)
    budget = Budget(window="total", micros=10_000)
    async with owner(any_store) as budgets:
        one = hold(1, budget)
        assert await budgets.reserve(one) is None
        budgets.settle("cmpl-1", 60, 0)
        await asyncio.sleep(0.2)
        assert budgets._keys, "it is not posted yet"
        post(any_store, [ended(one, budgets.owner, 60)])
        await until(lambda: not budgets._keys)
        assert any_store.leases() == {}
        assert await budgets.reserve(hold(2, budget, micros=9_940)) is None


async def test_who_leaves_while_it_is_reserved_has_reserved_nothing(any_store: SqlStore) -> None:
    budget = Budget(window="total", micros=100)
    async with owner(any_store) as budgets:
        reserving = asyncio.ensure_future(budgets.reserve(hold(1, budget)))
        await asyncio.sleep(0)
        reserving.cancel()
        budgets.settle("cmpl-1", 0, 0)
        assert await budgets.reserve(hold(2, budget)) is None


async def test_a_transaction_whose_outcome_was_never_heard_of_does_no_harm(any_store: SqlStore) -> None:
    budget = Budget(window="total", micros=100_000)
    really, failures = any_store.draw, 3

    def draw(*of: Any) -> Any:
        nonlocal failures
        drawn = really(*of)
        if failures:
            failures -= 1
            raise StoreUnavailable("the connection broke after the commit")
        return drawn

    any_store.draw = draw  # type: ignore[assignment, method-assign]
    async with owner(any_store) as budgets:
        for number in range(3):
            with pytest.raises(StoreUnavailable):
                await budgets.reserve(hold(number, budget))
        assert await budgets.reserve(hold(4, budget, micros=100_000)) is None


async def test_without_the_database_an_owner_spends_what_it_holds_until_its_lease_ends(
    any_store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(window="total", micros=100_000)

    def gone(*_: Any) -> Any:
        raise StoreUnavailable("gone")

    async with owner(any_store, lease_s=2.0) as budgets:
        assert await budgets.reserve(hold(1, budget)) is None
        with monkeypatch.context() as patched:
            for name in ("renew_owner", "begin_owner", "draw", "give_back", "wanted"):
                patched.setattr(any_store, name, gone)
            assert budgets.try_reserve(hold(2, budget)) is True
            await until(lambda: budgets.try_reserve(hold(next(_NUMBERS), budget, micros=1)) is False)
            with pytest.raises(StoreUnavailable):
                await budgets.reserve(hold(3, budget))
        assert await budgets.reserve(hold(4, budget)) is None, "and goes on when it is back"


async def test_an_owner_that_was_taken_for_dead_begins_anew(any_store: SqlStore) -> None:
    budget = Budget(window="total", micros=1000)
    async with owner(any_store, tick_s=0.2) as budgets:
        before = budgets.owner
        assert await budgets.reserve(hold(1, budget)) is None
        any_store.end_lease(before)
        async with asyncio.timeout(WAIT_S):
            while await budgets.reserve(hold(next(_NUMBERS), budget, micros=500)) is not None:
                await asyncio.sleep(0.01)
        assert budgets.owner != before
        budgets.settle("cmpl-1", 60, 0)  # of before: passed over


async def test_what_dead_processes_held_is_settled_at_what_the_database_says(any_store: SqlStore) -> None:
    budget = Budget(window="total", micros=1000)
    dead: set[str] = set()
    async with BudgetOwner(any_store, new_name, dead.__contains__, tick_s=0.02) as budgets:
        for number in range(3):
            assert await budgets.reserve(hold(number, budget, lease_owner="dead")) is None
        assert await budgets.reserve(hold("alive", budget, lease_owner="alive")) is None
        post(any_store, [ended(hold(0, budget), budgets.owner, 70)])
        dead.add("dead")
        await until(lambda: len(budgets._held) == 1)
        refused = await budgets.reserve(hold("more", budget, micros=831))
        assert refused is not None
        assert await budgets.reserve(hold("all", budget, micros=830)) is None


class World:
    """Owners that share a budget, and what really is spent and reserved of it."""

    def __init__(self, store: SqlStore, bound: int, draw: random.Random) -> None:
        self.store = store
        self.bound = bound
        self.draw = draw
        self.budget = Budget(window="total", micros=bound)
        self.owners: list[BudgetOwner] = []
        self.running: dict[str, tuple[BudgetOwner, Hold]] = {}
        self.journals: dict[str, list[Settlement]] = {}
        """An owner's name → what is not posted yet."""
        self.spent = 0

    def check(self) -> None:
        reserved = sum(one.micros for _, one in self.running.values())
        assert self.spent + reserved <= self.bound

    async def start(self) -> None:
        made = BudgetOwner(self.store, new_name, tick_s=0.01)
        await made.__aenter__()
        self.owners.append(made)
        self.journals[made.owner] = []

    async def reserve(self) -> None:
        budgets = self.draw.choice(self.owners)
        one = hold(next(_NUMBERS), self.budget, micros=self.draw.randrange(1, 200))
        if await budgets.reserve(one) is None:
            self.running[one.request_id] = budgets, one
            self.check()

    async def settle(self) -> None:
        if self.running:
            request_id = self.draw.choice(list(self.running))
            budgets, one = self.running.pop(request_id)
            cost = self.draw.randrange(one.micros + 1)
            self.spent += cost
            self.journals[budgets.owner].append(ended(one, budgets.owner, cost))
            budgets.settle(request_id, cost, 0)
            self.check()

    async def post(self) -> None:
        journal = self.journals[self.draw.choice(list(self.journals))]
        some = journal[: self.draw.randrange(len(journal) + 1)]
        await asyncio.to_thread(post, self.store, some)
        del journal[: len(some)]

    async def crash(self) -> None:
        """It forgets all; what it had appended is posted, and what ran is lost."""
        budgets = self.owners.pop(self.draw.randrange(len(self.owners)))
        budgets._ticking.cancel()
        await asyncio.wait([budgets._ticking])
        budgets._thread.shutdown()
        for request_id in [name for name, (of, _) in self.running.items() if of is budgets]:
            del self.running[request_id]
        await asyncio.to_thread(post, self.store, self.journals.pop(budgets.owner))
        await asyncio.to_thread(self.store.end_lease, budgets.owner)
        await self.start()

    async def finish(self) -> None:
        """Everything that is left can be used, and no more."""
        while self.running:
            await self.settle()
        last = self.draw.choice(self.owners)
        left = self.bound - self.spent
        async with asyncio.timeout(WAIT_S):
            while await last.reserve(hold(next(_NUMBERS), self.budget, micros=left)) is not None:
                await asyncio.sleep(0.01)
        assert await last.reserve(hold(next(_NUMBERS), self.budget, micros=1)) is not None
        for one in self.owners:
            await one.__aexit__(None, None, None)


@pytest.mark.parametrize("seed", range(6))
async def test_in_any_order_of_events_no_more_than_the_budget_is_spent_and_all_of_it_can_be(
    any_store: SqlStore, seed: int
) -> None:
    draw = random.Random(seed)
    world = World(any_store, draw.choice((500, 3000, 50_000)), draw)
    for _ in range(draw.choice((1, 2, 3))):
        await world.start()
    steps = [world.reserve] * 10 + [world.settle] * 8 + [world.post] * 3 + [world.crash]
    for _ in range(150):
        await draw.choice(steps)()
        if draw.random() < 0.05:
            await asyncio.sleep(0.03)
    await world.finish()


async def test_many_at_once_over_several_owners_never_pass_a_budget_and_leave_none_of_it_unused(
    place: str | Path,
) -> None:
    """Each owner with connections of its own, as on a machine of its own."""
    budget = Budget(window="total", micros=100 * 30)
    stores = [open_store(place) for _ in range(3)]
    spent = running = passed = 0

    async def spend(budgets: BudgetOwner, store: SqlStore) -> int:
        nonlocal spent, running, passed
        done = 0
        while True:
            one = hold(next(_NUMBERS), budget)
            refused = await budgets.reserve(one)
            if refused is None:
                running += 100
                passed = max(passed, spent + running)
                await asyncio.sleep(0)
                running, spent, done = running - 100, spent + 30, done + 1
                budgets.settle(one.request_id, 30, 0)
                await asyncio.to_thread(post, store, [ended(one, budgets.owner, 30)])
            elif refused.for_good:
                return done
            else:
                await asyncio.sleep(0.01)

    async with owner(stores[0]) as one, owner(stores[1]) as two, owner(stores[2]) as three:
        crowd = [spend(*pair) for pair in zip((one, two, three), stores, strict=True) for _ in range(5)]
        async with asyncio.timeout(60):
            done = sum(await asyncio.gather(*crowd))
    assert passed <= 3000
    # Each reserves 100 and costs 30: the last that fits begins at 2,900 or below.
    assert done == 97
    assert stores[0].spent("key_a", [budget])[0].micros == 97 * 30
    for store in stores:
        with closing(store):
            pass


def test_an_intent_has_who_reserved_for_it() -> None:
    assert Intent(id="1", key_id="k", lease_owner="l", model="m", started_at_ms=0).budget_owner == ""
