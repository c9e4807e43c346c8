"""Requests and tokens a minute over true minutes, as those who ask can tell, with two servers and with two workers."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.books.limiting import redis_of_its_own
from tests.books.own_postgres import postgres_of_its_own
from tests.books.sites import Site, one_machine, two_replicas
from tests.soak.asking import ask

CLIENTS = 64
CALLS = 120
"""That a minute has room for."""
MINUTE_S = 60.0
DURATION_S = 110.0
PAUSE_S = 16.0
"""Of each client between two of its requests, on average: twice as many a minute as there is room for."""
ASKED = {"prompt": [300, 301], "max_tokens": 3, "ignore_eos": True}
TOKENS = 5
"""Of one call."""
BOUNDS = {"requests": {"requests_per_minute": CALLS}, "tokens": {"tokens_per_minute": CALLS * TOKENS}}
SEED = int(os.environ.get("SOAK_SEED", secrets.randbits(32)))

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]


class Asked(NamedTuple):
    """One request: it was counted or refused at some moment between these two."""

    sent_s: float
    told_s: float
    admitted: bool


async def load(site: Site, secret: str) -> list[Asked]:
    """All at once at first, and then each in its own time."""
    found: list[Asked] = []
    end_s = time.monotonic() + DURATION_S
    servers = site.asked(secret)

    async def client(number: int) -> None:
        draw = random.Random(SEED + number)
        while (sent_s := time.monotonic()) < end_s:
            reply = await ask(draw.choice(servers), **ASKED)
            assert reply[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 429"), reply
            found.append(Asked(sent_s, time.monotonic(), reply.startswith(b"HTTP/1.1 200")))
            await asyncio.sleep(draw.uniform(0, 2 * PAUSE_S))

    await asyncio.gather(*map(client, range(CLIENTS)))
    return found


def most_in_a_minute(found: list[Asked]) -> int:
    """The most that certainly were counted within one minute."""
    admitted = [one for one in found if one.admitted]
    return max(
        sum(first.sent_s <= one.sent_s and one.told_s < first.sent_s + MINUTE_S for one in admitted)
        for first in admitted
    )


def fewest_before_a_refusal(found: list[Asked]) -> int:
    """The fewest that can have been counted within the minute before a refusal."""
    admitted = [one for one in found if one.admitted]
    return min(
        sum(refused.sent_s - MINUTE_S < one.told_s and one.sent_s < refused.told_s for one in admitted)
        for refused in found
        if not refused.admitted
    )


async def check(site: Site) -> None:
    issued = [site.books.issue(name, **bound)[0] for name, bound in BOUNDS.items()]
    both = await asyncio.gather(*(load(site, secret) for secret in issued))
    for name, found in zip(BOUNDS, both, strict=True):
        most, fewest = most_in_a_minute(found), fewest_before_a_refusal(found)
        print(
            f"\n{name}: {sum(one.admitted for one in found)} of {len(found)} admitted; at most {most} within a minute,"
            f" at least {fewest} before a refusal, of {CALLS}; seed {SEED}"
        )
        assert most <= CALLS
        assert fewest >= 0.99 * CALLS


def test_two_replicas(tmp_path: Path) -> None:
    with (
        redis_of_its_own(tmp_path) as redis,
        postgres_of_its_own() as postgres,
        two_replicas(tmp_path, postgres.url, redis.url) as site,
    ):
        asyncio.run(check(site))


def test_one_machine(tmp_path: Path) -> None:
    with one_machine(tmp_path) as site:
        asyncio.run(check(site))
