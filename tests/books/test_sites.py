"""Bounds under a crowd that asks several servers at once: never passed, and of no use to nobody left unused."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from andthen.ledger.records import Budget
from tests.books.limiting import redis_of_its_own
from tests.books.own_postgres import postgres_of_its_own
from tests.books.sites import Books, Site, Spending, one_machine, two_replicas
from tests.serving import Server
from tests.soak.asking import ask, until

CLIENTS = 64
CALLS = 100
"""That a budget has room for."""
ASKED = {"prompt": [300, 301], "max_tokens": 8, "ignore_eos": True}
COST = {"micros": 2 + 2 * 8, "tokens": 2 + 8}
"""Of one call, which is also the worst that it may come to."""


@pytest.fixture(scope="module", params=["one machine", "two replicas"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    if request.param == "one machine":
        with one_machine(folder) as made:
            yield made
    else:
        with (
            redis_of_its_own(folder) as redis,
            postgres_of_its_own() as postgres,
            two_replicas(folder, postgres.url, redis.url) as made,
        ):
            yield made


@contextmanager
def watched(books: Books, key_id: str) -> Iterator[list[Spending]]:
    """What the key's row says, read all the while."""
    seen: list[Spending] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            seen.append(books.spending(key_id))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


async def crowd(servers: list[Server]) -> list[bytes]:
    """What so many clients get that ask at once, each one server."""
    asked = itertools.cycle(servers)
    return await asyncio.gather(*(ask(next(asked), **ASKED) for _ in range(CLIENTS)))


def is_reply(received: bytes) -> bool:
    return received.startswith(b"HTTP/1.1 200 ")


def test_a_budget_is_never_passed_and_all_of_it_can_be_used(site: Site) -> None:
    bounds = {kind: CALLS * cost for kind, cost in COST.items()}
    secret, key_id = site.books.issue("spender", budgets=(Budget(window="total", **bounds),))
    refusals: set[bytes] = set()

    async def spend(server: Server) -> int:
        done = 0
        while True:
            reply = await ask(server, **ASKED)
            if is_reply(reply):
                done += 1
                continue
            refusals.add(reply.split(b"\r\n")[0] + reply[reply.index(b'"code"') :])
            if b"x-should-retry: false" in reply.lower():
                return done
            await asyncio.sleep(0.1)

    async def all_spend() -> int:
        asked = itertools.cycle(site.asked(secret))
        return sum(await asyncio.gather(*(spend(next(asked)) for _ in range(CLIENTS))))

    with watched(site.books, key_id) as seen:
        assert asyncio.run(all_spend()) == CALLS
        asyncio.run(until(lambda: site.books.spending(key_id).micros == bounds["micros"], "all is posted"))
    assert refusals == {b'HTTP/1.1 429 Too Many Requests"code":"budget_exceeded"}}'}
    assert len(set(seen)) > 2, "it was watched while it was spent"
    assert max(one.micros + one.reserved_micros for one in seen) == bounds["micros"]
    assert max(one.tokens + one.reserved_tokens for one in seen) == bounds["tokens"]
    assert site.books.spending(key_id) == Spending(bounds["micros"], 0, bounds["tokens"], 0)
    rows = site.books.requests(key_id).values()
    assert sum(row["cost_micros"] for row in rows) == bounds["micros"]
    assert sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows) == bounds["tokens"]


@pytest.mark.parametrize("bound", [{"requests_per_minute": 40}, {"tokens_per_minute": 40 * COST["tokens"]}])
def test_a_crowd_gets_as_much_in_a_minute_as_it_may_and_no_more(site: Site, bound: dict[str, int]) -> None:
    secret, _ = site.books.issue(next(iter(bound)), **bound)
    replies = asyncio.run(crowd(site.asked(secret)))
    assert sum(map(is_reply, replies)) == 40
    assert {reply[:12] for reply in replies if not is_reply(reply)} == {b"HTTP/1.1 429"}
