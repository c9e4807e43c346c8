"""Limits in Redis: the scripts against the rules in Python, leases, and a Redis that is killed, stalls and comes back.

Tests that only count use the machine's own Redis; those that harm it start one of their own.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from andthen.books import scripts
from andthen.books.limits import WINDOW_MS, Bounds, Grant, KeyLog, Refused, slot_ms
from andthen.contract.errors import LimitsUnavailable, RateLimited
from andthen.redis_link import RedisLink
from tests.books.limiting import REDIS, fresh_prefix, redis_of_its_own, shared, until
from tests.books.test_limiters import dies_with_a_request, fits

KEY = "key_1"
ONE = Bounds(concurrent=1)
FAST = {"timeout_s": 0.25, "lease_s": 0.6}


@pytest.fixture(scope="module")
def client() -> Iterator[redis.Redis]:
    with redis.Redis.from_url(REDIS) as client:
        yield client
        for name in client.scan_iter("andthen-tests:*"):
            client.delete(name)


class ScriptLog:
    """The scripts, with the face of `KeyLog` and a clock that is set by hand."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        prefix = fresh_prefix()
        self._names = [f"{prefix}:{part}" for part in ("log", "slots", "running", "clock")]
        self._spans = [WINDOW_MS, slot_ms(WINDOW_MS), 10**9]

    def take(self, now_ms: int, grant_id: str, bounds: Bounds, tokens: int) -> list[int]:
        most = [-1 if bound is None else bound for bound in (bounds.requests, bounds.tokens, bounds.concurrent)]
        self._client.hset(self._names[3], mapping={"s": now_ms // 1000, "us": now_ms % 1000 * 1000})
        told: list[int] = self._run(scripts.TAKE, grant_id, tokens, *most)
        return told

    def settle(self, grant_id: str, tokens: int) -> None:
        self._run(scripts.SETTLE, grant_id, tokens, 0)

    def forget(self, grant_id: str) -> None:
        self._run(scripts.SETTLE, grant_id, 0, 1)

    def _run(self, script: str, *arguments: int | str) -> Any:
        by_hand = script.replace("redis.call('TIME')", "redis.call('HMGET', KEYS[4], 's', 'us')")
        return self._client.eval(by_hand, 4, *self._names, *self._spans, *arguments)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 25_000),
            st.integers(0, 60),
            st.sampled_from(["", "settle", "forget"]),
            st.integers(0, 60),
        ),
        max_size=25,
    ),
    st.builds(
        Bounds,
        st.one_of(st.none(), st.integers(0, 6)),
        st.one_of(st.none(), st.integers(0, 150)),
        st.one_of(st.none(), st.integers(0, 3)),
    ),
)
def test_the_scripts_and_the_rules_agree(
    client: redis.Redis, steps: list[tuple[int, int, str, int]], bounds: Bounds
) -> None:
    rules, script, now_ms = KeyLog(), ScriptLog(client), 1_700_000_000_000
    running: list[str] = []
    for number, (passed_ms, needed, then, used) in enumerate(steps):
        now_ms += passed_ms
        outcome = rules.take(now_ms, str(number), bounds, needed)
        told = script.take(now_ms, str(number), bounds, needed)
        if isinstance(outcome, Refused):
            kind = ("requests", "tokens", "concurrent").index(outcome.kind) + 1
            standing = outcome.standing
            assert told == [kind, outcome.wait_ms or 0, standing.requests, standing.tokens, standing.reset_ms]
        else:
            assert told == [0, 0, outcome.requests, outcome.tokens, outcome.reset_ms]
            running.append(str(number))
        if then and running:
            ended = running.pop(0)
            for log in (rules, script):
                log.settle(ended, used) if then == "settle" else log.forget(ended)


async def test_nothing_is_left_in_redis_for_good(client: redis.Redis) -> None:
    prefix = fresh_prefix()
    async with shared(prefix=prefix) as limiter:
        grant = await limiter.take(KEY, Bounds(requests=5), 3)
        await limiter.take(KEY, Bounds(requests=5), 3)
        await limiter.settle(grant, 1)
        names = [name.decode() for name in client.scan_iter(f"{prefix}:*")]
        spans_ms = [client.pttl(name) for name in names]
    assert len(names) >= 3
    assert all(0 < span_ms <= 80_000 for span_ms in spans_ms)


async def test_a_lease_is_renewed_for_as_long_as_a_request_runs() -> None:
    prefix = fresh_prefix()
    async with shared(prefix=prefix, lease_s=0.9) as limiter:
        grant = await limiter.take(KEY, ONE, 5)
        await asyncio.sleep(2)
        assert not await fits(limiter, ONE)
        await limiter.settle(grant, 0)
        assert await fits(limiter, ONE)


async def test_what_a_dead_process_ran_is_free_when_its_lease_ends() -> None:
    prefix = fresh_prefix()
    async with shared(prefix=prefix) as limiter:
        died_s = await dies_with_a_request("redis", prefix)
        assert not await fits(limiter, ONE)
        await until(lambda: fits(limiter, ONE), "the lease ran out")
        assert time.monotonic() - died_s < 10
        assert not await fits(limiter, Bounds(requests=2)), "its request stays counted"


async def refused_as_unavailable(limiter: Any) -> bool:
    try:
        await limiter.settle(await limiter.take(KEY, Bounds(requests=1000), 1), 1)
    except LimitsUnavailable:
        return True
    return False


async def is_ok(limiter: Any) -> bool:
    return bool(limiter.state == "ok")


async def test_closed_it_refuses_while_redis_is_gone_and_comes_back_by_itself(tmp_path: Path) -> None:
    missed: list[int] = []
    with redis_of_its_own(tmp_path) as server, capture_logs() as logs:
        async with shared(server.url, prefix="t", gone="closed", on_gone=lambda: missed.append(1), **FAST) as limiter:
            running = await limiter.take(KEY, ONE, 5)
            ending = await limiter.take("key_2", ONE, 5)
            server.kill()
            await until(lambda: refused_as_unavailable(limiter), "it is noticed")
            assert limiter.state == "refusing"
            assert await refused_as_unavailable(limiter)
            assert len(missed) == 2
            await limiter.take(KEY, Bounds(), 5)
            await limiter.settle(ending, 3)
            server.start()
            await until(lambda: is_ok(limiter), "it is back")
            await until(lambda: _full(limiter), "a Redis that forgot all learns what runs")
            assert await fits(limiter, ONE) is False
            await limiter.settle(running, 5)
            assert await fits(limiter, ONE)
    events = [line["event"] for line in logs]
    assert events == ["redis_gone", "redis_back"], "once each"


async def _full(limiter: Any) -> bool:
    return not await fits(limiter, ONE)


async def test_open_it_admits_uncounted_while_redis_is_gone(tmp_path: Path) -> None:
    missed: list[int] = []
    with redis_of_its_own(tmp_path) as server:
        server.kill()
        async with shared(server.url, prefix="t", gone="open", on_gone=lambda: missed.append(1), **FAST) as limiter:
            for _ in range(3):
                grant = await limiter.take(KEY, Bounds(requests=1), 5)
                assert grant.headers() == []
                await limiter.settle(grant, 5)
            assert limiter.state == "uncounted"
            assert len(missed) == 3
            server.start()
            await until(lambda: is_ok(limiter), "it is back")
            assert await fits(limiter, Bounds(requests=1))
            assert not await fits(limiter, Bounds(requests=1))


async def test_a_redis_that_stalls_delays_nobody_for_long(tmp_path: Path) -> None:
    with redis_of_its_own(tmp_path) as server:
        async with shared(server.url, prefix="t", gone="closed", **FAST) as limiter:
            bounds = Bounds(requests=2, concurrent=1)
            assert await fits(limiter, bounds)
            server.signal(signal.SIGSTOP)
            try:
                began_s = time.monotonic()
                with pytest.raises(LimitsUnavailable):
                    await limiter.take(KEY, bounds, 1)
                first_s = time.monotonic() - began_s
                with pytest.raises(LimitsUnavailable):
                    await limiter.take(KEY, bounds, 1)
                assert time.monotonic() - began_s - first_s < 0.1, "once it is known, nobody waits"
                assert first_s < 1
            finally:
                server.signal(signal.SIGCONT)
            await until(lambda: is_ok(limiter), "it is back")
            await until(lambda: fits(limiter, bounds), "what nobody waited for is forgotten", within_s=3)


async def test_a_crowd_that_asks_at_once_is_no_sign_of_a_redis_that_is_gone() -> None:
    async with shared(prefix=fresh_prefix(), gone="closed", timeout_s=0.5) as limiter:
        taking = (limiter.take(KEY, Bounds(requests=1000), 1) for _ in range(600))
        grants = await asyncio.gather(*taking)
        assert limiter.state == "ok"
        assert max(grant.standing.requests for grant in grants if grant.standing) == 600


async def test_a_crowd_finds_a_redis_that_forgot_the_scripts_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    with redis_of_its_own(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        async with shared(server.url, prefix="t", gone="closed", timeout_s=2.0) as limiter:
            client.script_flush()
            bounds = Bounds(requests=40)
            taken = await asyncio.gather(*(limiter.take(KEY, bounds, 1) for _ in range(60)), return_exceptions=True)
            assert limiter.state == "ok"
    standings = [one.standing.requests for one in taken if isinstance(one, Grant) and one.standing]
    assert sorted(standings) == list(range(1, 41))
    assert sum(isinstance(one, RateLimited) for one in taken) == 20


async def test_a_fault_of_our_own_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def faulty(*_: object) -> None:
        raise ZeroDivisionError

    async with shared(prefix=fresh_prefix(), gone="closed") as limiter:
        with monkeypatch.context() as patched:
            patched.setattr(RedisLink, "execute", faulty)
            async with asyncio.timeout(5):
                taken = await asyncio.gather(*(limiter.take(KEY, ONE, 1) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in taken] == [ZeroDivisionError] * 3
        await limiter.take(KEY, ONE, 1)


async def test_a_redis_that_runs_no_scripts_counts_as_gone_and_is_told_once(tmp_path: Path) -> None:
    with redis_of_its_own(tmp_path) as server, capture_logs() as logs:
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("ACL", "SETUSER", "default", "-@scripting")
        async with shared(server.url, prefix="t", gone="open", **FAST) as limiter:
            for _ in range(3):
                await limiter.take(KEY, ONE, 1)
                await asyncio.sleep(0.15)
            assert limiter.state == "uncounted"
    assert [line["event"] for line in logs] == ["redis_gone"]


async def test_a_restart_that_nobody_saw_costs_nobody_a_request(tmp_path: Path) -> None:
    with redis_of_its_own(tmp_path) as server, capture_logs() as logs:
        async with shared(server.url, prefix="t") as limiter:
            bounds = Bounds(requests=100)
            for grant in await asyncio.gather(*(limiter.take(KEY, bounds, 1) for _ in range(20))):
                await limiter.settle(grant, 1)
            server.kill()
            server.start()
            await asyncio.sleep(0.1)
            await limiter.take(KEY, bounds, 1)
    assert logs == []


async def test_a_settlement_that_redis_missed_is_told_when_it_is_back(tmp_path: Path) -> None:
    with redis_of_its_own(tmp_path) as server:
        async with shared(server.url, prefix="t", gone="closed", **FAST) as limiter:
            grant = await limiter.take(KEY, Bounds(tokens=10), 10)
            server.signal(signal.SIGSTOP)
            try:
                await limiter.settle(grant, 4)
                assert limiter.state == "refusing"
            finally:
                server.signal(signal.SIGCONT)
            await until(lambda: is_ok(limiter), "it is back")
            await until(lambda: fits(limiter, Bounds(tokens=10), 6), "what was not used is free")


async def test_no_password_is_told_and_a_wrong_one_is_no_crash() -> None:
    secret = "s3cret-of-the-house"
    with capture_logs() as logs:
        async with shared(f"redis://me:{secret}@127.0.0.1:6379/0", prefix=fresh_prefix(), gone="closed") as limiter:
            with pytest.raises(LimitsUnavailable) as refusal:
                await limiter.take(KEY, ONE, 1)
            assert limiter.state == "refusing"
    assert logs
    assert secret not in f"{logs}{refusal.value.message}{limiter!r}"


async def test_a_redis_that_takes_no_writes_counts_as_gone(tmp_path: Path) -> None:
    with redis_of_its_own(tmp_path) as server:
        server.kill()
        server.start("--maxmemory", "1b")
        async with shared(server.url, prefix="t", gone="closed", **FAST) as limiter:
            assert limiter.state == "refusing"
            with pytest.raises(LimitsUnavailable):
                await limiter.take(KEY, Bounds(requests=1), 1)
