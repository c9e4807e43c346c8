"""The books under load while everything dies at random moments: nothing that a client got whole is missing, none of it
counts twice, no reservation stays, and the servers come back by themselves, started again as a service manager would.

`SOAK_SEED` sets the moments.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import secrets
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from andthen.ledger.records import Budget
from andthen.ledger.worker_ledger import LEASE_S
from tests.books.limiting import OwnRedis, redis_of_its_own
from tests.books.own_postgres import OwnPostgres, postgres_of_its_own
from tests.books.sites import Books, Replica, Site, one_machine, two_replicas
from tests.serving import Server
from tests.soak.asking import ask, is_whole, until

CLIENTS = 24
MOMENTS = 50
BETWEEN = 10
"""So many replies come at least between two of them."""
SEED = int(os.environ.get("SOAK_SEED", secrets.randbits(32)))
WIDE = {"micros": 10**12, "tokens": 10**12}
NEVER = {
    "budgets_not_looked_after", "ledger_entry_refused", "ledger_journal_failed", "ledger_journal_unreadable",
    "ledger_not_posted", "ledger_not_recovered", "request_failed",
}  # fmt: skip
"""What the log says where something was lost or broke."""

Deed = Callable[[], Awaitable[object]]

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]


class Clients:
    """Who ask all the while, and what they got."""

    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers
        self.whole: dict[str, dict[str, int]] = {}
        """A reply's id → its usage."""
        self.outcomes: Counter[str] = Counter()
        self.over = asyncio.Event()

    async def run(self, number: int) -> None:
        draw = random.Random(SEED + number)
        while not self.over.is_set():
            stream = draw.random() < 0.5
            fields: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
            try:
                reply = await ask(
                    draw.choice(self._servers), max_tokens=draw.randrange(1, 200), seed=draw.randrange(99), **fields
                )
            except ConnectionError:
                reply = b""
            if not self._take(reply, stream):
                await asyncio.sleep(draw.uniform(0, 0.5))

    def _take(self, reply: bytes, stream: bool) -> bool:
        """Whether it was whole."""
        head, _, body = reply.partition(b"\r\n\r\n")
        if not reply.startswith(b"HTTP/1.1 200 "):
            code = re.search(rb'"code":"(\w+)"', body)
            self.outcomes[f"{head[9:12].decode()} {code[1].decode()}" if code else "closed"] += 1
            return False
        length = re.search(rb"content-length: (\d+)", head)
        if not (is_whole(reply) if stream else length is not None and len(body) == int(length[1])):
            self.outcomes["cut"] += 1
            return False
        self.outcomes["whole"] += 1
        (request_id,) = set(re.findall(rb'"id":"(cmpl-[^"]+)"', reply))
        usage = re.findall(rb'"usage":(\{"prompt_tokens[^}]*\}[^}]*\})', body)[-1]
        self.whole[request_id.decode()] = json.loads(usage)
        return True


async def keep(replica: Replica) -> None:
    """Starts a server again that has ended, as service managers do."""
    while True:
        await asyncio.sleep(0.5)
        if replica.process.poll() is not None:
            replica.start()


def killing(replica: Replica, place: str) -> Deed:
    async def kill() -> None:
        with suppress(ProcessLookupError):  # it is only just coming back
            os.kill(replica.pid(place), signal.SIGKILL)

    return kill


def killing_all_of(replica: Replica) -> Deed:
    """The supervisor: with it go its workers and its engine, and what it counted."""
    return lambda: asyncio.to_thread(replica.kill)


def restarting_redis(redis: OwnRedis, draw: random.Random) -> Deed:
    async def restart() -> None:
        redis.kill()
        await asyncio.sleep(draw.uniform(0, 2))
        await asyncio.to_thread(redis.start)

    return restart


def restarting_postgres(postgres: OwnPostgres, draw: random.Random) -> Deed:
    async def restart() -> None:
        await asyncio.to_thread(postgres.stop, draw.choice((signal.SIGINT, signal.SIGQUIT)))
        await asyncio.sleep(draw.uniform(0, 2))
        await asyncio.to_thread(postgres.start)

    return restart


async def under_fire(site: Site, deeds: dict[str, Deed], draw: random.Random) -> None:
    budget = Budget(window="total", **WIDE)
    secret, key_id = site.books.issue("bounded", budgets=(budget,), requests_per_minute=10**6, tokens_per_minute=10**9)
    clients = Clients(site.asked(secret))
    keepers = [asyncio.create_task(keep(replica)) for replica in site.replicas]
    asking = [asyncio.create_task(clients.run(number)) for number in range(CLIENTS)]
    names = (list(deeds) * MOMENTS)[:MOMENTS]
    draw.shuffle(names)
    for name in names:
        answered = clients.outcomes["whole"] + BETWEEN
        await asyncio.sleep(draw.uniform(0.2, 1.5))
        await until(lambda: clients.outcomes["whole"] >= answered, "somebody serves")  # noqa: B023 - awaited here
        await deeds[name]()
    clients.over.set()
    await asyncio.gather(*asking)
    back_s = await until(lambda: all(replica.is_ready() for replica in site.replicas), "all are ready")
    settled_s = await until(
        lambda: all(row["settled_at_ms"] for row in site.books.requests(key_id).values()),
        "what the dead had reserved is given back",
    )
    for keeper in keepers:
        keeper.cancel()
    lost = sum(row["ended_by"] == "lost" for row in site.books.requests(key_id).values())
    events = Counter(line["event"] for replica in site.replicas for line in replica.log if line["level"] == "error")
    print(
        f"\nseed {SEED}; {dict(Counter(names))}; starts {[replica.starts for replica in site.replicas]}\n"
        f"{dict(clients.outcomes)}; {len(site.books.requests(key_id))} rows, {lost} lost\n"
        f"all ready {back_s:.1f} s and all settled {settled_s:.1f} s later; log {dict(events)}"
    )
    assert settled_s < LEASE_S + 15
    check(site.books, key_id, clients.whole)
    assert not set(events) & NEVER
    left = [path for replica in site.replicas for path in replica.home.glob("ledger-*.*")]
    assert not [path for path in left if path.suffix != ".part"], "one who was killed while it wrote has told nobody"


def check(books: Books, key_id: str, whole: dict[str, dict[str, int]]) -> None:
    """Every reply has its row, with what it cost; and the sums are those of the rows."""
    rows, spending = books.requests(key_id), books.spending(key_id)
    calls = Counter(call["request_id"] for call in books.calls(key_id))
    assert not set(whole) - set(rows)
    for request_id, usage in whole.items():
        row = rows[request_id]
        assert (row["ended_by"], row["status"]) == ("reply", 200)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert row["cost_micros"] == usage["prompt_tokens"] + 2 * usage["completion_tokens"]
        assert calls[request_id] == 1
    assert (spending.reserved_micros, spending.reserved_tokens) == (0, 0)
    assert spending.micros == sum(row["cost_micros"] for row in rows.values())
    assert spending.tokens == sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows.values())


def test_workers_and_the_hub_die(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    with one_machine(tmp_path) as site:
        (replica,) = site.replicas
        deeds = {
            "worker-0": killing(replica, "worker-0"),
            "worker-1": killing(replica, "worker-1"),
            "hub": killing_all_of(replica),
        }
        uvloop.run(under_fire(site, deeds, draw))


def test_replicas_workers_redis_and_postgres_die(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    with (
        redis_of_its_own(tmp_path) as redis,
        postgres_of_its_own() as postgres,
        two_replicas(tmp_path, postgres.url, redis.url) as site,
    ):
        one, two = site.replicas
        deeds = {
            "replica one": killing_all_of(one),
            "replica two": killing_all_of(two),
            "a worker": killing(two, "worker-0"),
            "its other worker": killing(two, "worker-1"),
            "Redis": restarting_redis(redis, draw),
            "PostgreSQL": restarting_postgres(postgres, draw),
        }
        uvloop.run(under_fire(site, deeds, draw))
