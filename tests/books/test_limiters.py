"""One battery over the homes of the limits: in memory, in the hub, and in a real Redis."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from andthen.books.limits import Bounds, Grant, Limiter
from andthen.contract.errors import BadRequest, RateLimited
from tests.books.limiting import HOMES, two, until

KEY = "key_1"
WINDOW_MS = 1000
CLIENTS = 64
LIMIT = 50
TOKENS = 7

each_home = pytest.mark.parametrize("home", HOMES)
Admitted = list[tuple[float, float]]
"""When a take was begun and when it was answered, in seconds."""


async def fits(limiter: Limiter, bounds: Bounds, tokens: int = 0) -> bool:
    """Whether a request is admitted; if it is, it is over at once."""
    try:
        await limiter.settle(await limiter.take(KEY, bounds, tokens), tokens)
    except RateLimited:
        return False
    return True


async def _ask_until(limiter: Limiter, end_s: float, asked: list[tuple[str, Bounds, int, Admitted]]) -> None:
    for key_id, bounds, tokens, admitted in itertools.cycle(asked):
        began_s = time.monotonic()
        if began_s >= end_s:
            return
        try:
            grant = await limiter.take(key_id, bounds, tokens)
        except RateLimited:
            await asyncio.sleep(0.08)
        else:
            admitted.append((began_s, time.monotonic()))
            await limiter.settle(grant, tokens)


@each_home
async def test_of_64_that_ask_two_replicas_none_is_one_too_many_and_none_too_few(home: str, tmp_path: Path) -> None:
    requests: Admitted = []
    tokens: Admitted = []
    asked = [
        ("key_r", Bounds(requests=LIMIT), 0, requests),
        ("key_t", Bounds(tokens=LIMIT * TOKENS), TOKENS, tokens),
    ]
    async with two(home, tmp_path, WINDOW_MS) as limiters:
        end_s = time.monotonic() + 2.6 * WINDOW_MS / 1000
        takers = (_ask_until(limiters[number % 2], end_s, asked) for number in range(CLIENTS))
        await asyncio.gather(*takers)
    for admitted in (requests, tokens):
        assert len(admitted) >= 0.99 * 3 * LIMIT, "of three windows that were begun"
        admitted.sort()
        for first, last in zip(admitted, admitted[LIMIT:], strict=False):
            assert last[1] - first[0] >= WINDOW_MS / 1000, "so many and one more fell into one window"


@each_home
async def test_replicas_share_requests_tokens_and_running_ones(home: str, tmp_path: Path) -> None:
    async with two(home, tmp_path) as (one, other):
        bounds = Bounds(requests=3, tokens=100, concurrent=2)
        first = await one.take(KEY, bounds, 10)
        second = await other.take(KEY, bounds, 20)
        assert first.standing is not None
        assert second.standing is not None
        assert (first.standing.requests, first.standing.tokens) == (1, 10)
        assert (second.standing.requests, second.standing.tokens) == (2, 30)
        with pytest.raises(RateLimited, match="2 requests at once"):
            await one.take(KEY, bounds, 1)
        await other.settle(second, 5)
        await one.settle(first, 10)
        with pytest.raises(RateLimited, match="100 tokens a minute and has 85 left") as refusal:
            await other.take(KEY, bounds, 86)
        assert 59 <= (refusal.value.retry_after_s or 0) <= 61
        third = await one.take(KEY, bounds, 85)
        await one.settle(third, 0)
        with pytest.raises(RateLimited, match="3 requests a minute") as refusal:
            await other.take(KEY, bounds, 1)
        assert ("x-ratelimit-remaining-requests", "0") in refusal.value.headers
        assert await fits(other, Bounds(requests=4)), "a bound that is raised holds at once"


@each_home
async def test_keys_do_not_share(home: str, tmp_path: Path) -> None:
    async with two(home, tmp_path) as (one, other):
        bounds = Bounds(concurrent=1)
        await one.take("key_a", bounds, 1)
        await other.take("key_b", bounds, 1)
        with pytest.raises(RateLimited):
            await other.take("key_a", bounds, 1)


@each_home
async def test_a_settlement_counts_once_however_often_it_is_told(home: str, tmp_path: Path) -> None:
    async with two(home, tmp_path) as (one, other):
        bounds = Bounds(tokens=100)
        grant = await one.take(KEY, bounds, 60)
        for _ in range(3):
            await one.settle(grant, 30)
        later = await one.take(KEY, bounds, 1)
        assert later.standing is not None
        assert later.standing.tokens == 31
        assert not await fits(other, bounds, 70)


@each_home
async def test_a_cancelled_take_has_counted_nothing(home: str, tmp_path: Path) -> None:
    async with two(home, tmp_path) as (one, other):
        bounds = Bounds(requests=1, tokens=10, concurrent=1)
        for turns in range(12):
            asking = asyncio.create_task(one.take(KEY, bounds, 10))
            for _ in range(turns if home != "memory" else 0):
                await asyncio.sleep(0)
            asking.cancel()
            try:
                grant: Grant | None = await asking
            except (asyncio.CancelledError, RateLimited):
                grant = None
            assert grant is None or turns > 2, "it was quicker than the cancellation"
            if grant is not None:
                break

        async def free() -> bool:
            try:
                await other.take(KEY, bounds, 10)
            except RateLimited:
                return False
            return True

        if grant is None:
            await until(free, "what was cancelled is forgotten", within_s=2)


@each_home
async def test_a_cancelled_settlement_settles(home: str, tmp_path: Path) -> None:
    async with two(home, tmp_path) as (one, other):
        bounds = Bounds(tokens=10, concurrent=1)
        grant = await one.take(KEY, bounds, 10)
        settling = asyncio.create_task(one.settle(grant, 4))
        await asyncio.sleep(0)
        settling.cancel()
        await asyncio.wait([settling])
        await until(lambda: fits(other, bounds, 6), "the slot is free, and the tokens that were not used", within_s=2)


@each_home
async def test_keys_without_bounds_ask_nobody(home: str, tmp_path: Path) -> None:
    async with two(home, tmp_path) as (one, _):
        grant = await one.take(KEY, Bounds(), 10**9)
        assert grant == Grant("", KEY)
        await one.settle(grant, 5)
        assert one.state == "ok"


@each_home
async def test_what_can_never_fit_is_told_so(home: str, tmp_path: Path) -> None:
    async with two(home, tmp_path) as (one, _):
        with pytest.raises(BadRequest, match="may use 5 a minute"):
            await one.take(KEY, Bounds(tokens=5), 6)
        for bounds in (Bounds(requests=0), Bounds(concurrent=0)):
            with pytest.raises(RateLimited):
                await one.take(KEY, bounds, 0)


@each_home
async def test_bounds_and_tokens_may_be_as_large_as_a_policy_takes_them(home: str, tmp_path: Path) -> None:
    async with two(home, tmp_path) as (one, _):
        grant = await one.take(KEY, Bounds(2**62, 2**62, 2**62), 2**40)
        await one.settle(grant, 3)
        assert await fits(one, Bounds(2**62, 2**62, 2**62), 2**40)


DYING = """
import asyncio, sys
from andthen.books.hub import HubLimiter
from andthen.books.limits import Bounds
from tests.books.limiting import shared

async def main():
    kind, place = sys.argv[1:]
    async with (HubLimiter(place) if kind == "hub" else shared(prefix=place, lease_s=0.6)) as limiter:
        await limiter.take("key_1", Bounds(concurrent=1), 0)
        print("running", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def dies_with_a_request(kind: str, place: str) -> float:
    """A process that runs one is killed; when, by `time.monotonic`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DYING, kind, place, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"running\n"
    process.kill()
    await process.wait()
    return time.monotonic()
