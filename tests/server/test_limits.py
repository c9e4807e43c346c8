"""The limits of a key that several processes serve: the workers of one machine, and replicas with a Redis."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from andthen.books.policy import Policy
from andthen.books.store import open_sqlite
from tests.books.limiting import free_port, redis_of_its_own
from tests.server.running import Answer, Running, read_all, running

LIMIT = 40


def new_key(database: Path, policy: Policy) -> str:
    with closing(open_sqlite(database)) as store:
        return store.create_key("limited", policy=policy).secret


def ask(server: Running, secret: str) -> Answer:
    body = {"model": "local/count", "prompt": "go", "max_tokens": 1}
    return server.ask("POST", "/v1/completions", body, x_api_key=secret)


def limits(server: Running) -> str:
    return str(server.ask("GET", "/readyz").json["limits"])


def check_exact(servers: list[Running], secret: str) -> None:
    """Twice as many as may are asked for at once, and just those that may are answered."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: ask(servers[number % len(servers)], secret), range(2 * LIMIT)))
    statuses = [answer.status for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (LIMIT, LIMIT)
    left = sorted(int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers if answer.status == 200)
    assert left == list(range(LIMIT))


def open_requests(server: Running) -> float:
    metrics = server.ask("GET", "/metrics").body.decode()
    return sum(float(value) for value in re.findall(r"^andthen_open_requests(?:\{.*\})? (\S+)$", metrics, re.MULTILINE))


def test_workers_count_together_and_a_killed_one_leaves_nothing_taken(tmp_path: Path) -> None:
    with running(tmp_path / "home", "workers = 2\ndrain_s = 0.5") as server:
        server.until(lambda: len(server.events("serving")) == 2, "both serve")
        assert limits(server) == "ok"
        secret = new_key(server.home / "andthen.db", Policy(requests_per_minute=LIMIT + 1, concurrent_requests=20))
        server.until(lambda: ask(server, secret).status == 200, "the key is known")
        check_exact([server], secret)

        with closing(open_sqlite(server.home / "andthen.db")) as store:
            alone = store.create_key("alone", policy=Policy(concurrent_requests=1)).secret
        server.until(lambda: ask(server, alone).status == 200, "the key is known")
        server.key = alone
        with server.sent("hold") as waiting:
            # Asked any sooner, this one might be first, and the other refused.
            server.until(lambda: open_requests(server) >= 2, "it is under way, beside the question")
            server.until(lambda: ask(server, alone).status == 429, "it has the only place")
            for place in ("worker-0", "worker-1"):
                os.kill(server.pid(place), signal.SIGKILL)
            assert read_all(waiting) == b""
        server.until(lambda: len(server.events("serving")) == 4, "both are back")
        server.until(lambda: ask(server, alone).status == 200, "its place is free again")


def test_replicas_count_together_in_redis(tmp_path: Path) -> None:
    port, database = free_port(), tmp_path / "shared.db"
    secret = new_key(database, Policy(requests_per_minute=LIMIT))
    settings = f'drain_s = 0.5\n[books]\ndatabase = "{database}"\nredis = "redis://127.0.0.1:{port}/0"'
    with (
        redis_of_its_own(tmp_path, port) as redis,
        running(tmp_path / "one", settings) as one,
        running(tmp_path / "other", settings) as other,
    ):
        check_exact([one, other], secret)
        redis.kill()
        one.until(lambda: ask(one, secret).status == 503, "it is noticed")
        answer = ask(one, secret)
        assert answer.code == "limits_unavailable"
        assert answer.headers["x-should-retry"] == "true"
        assert one.ask("GET", "/readyz").json == {"status": "ok", "limits": "refusing", "ledger": "ok"}
        assert (
            'andthen_uncounted_requests_total{answer="refused"}'
            in one.ask("GET", "/metrics", x_api_key=secret).body.decode()
        )
        redis.start()
        one.until(lambda: limits(one) == "ok", "it is back")
        assert ask(one, secret).status == 200, "a Redis that forgot all begins a new minute"


def test_redis_may_be_gone_from_the_start_and_come_later(tmp_path: Path) -> None:
    port = free_port()
    settings = f'drain_s = 0.5\n[books]\nredis = "redis://:passw0rd@127.0.0.1:{port}/0"\nredis_gone = "open"'
    with running(tmp_path / "home", settings) as server:
        secret = new_key(server.home / "andthen.db", Policy(requests_per_minute=1))
        server.until(lambda: ask(server, secret).status == 200, "the key is known")
        assert [ask(server, secret).status for _ in range(2)] == [200, 200]
        assert limits(server) == "uncounted"
        with redis_of_its_own(tmp_path, port, "--requirepass", "passw0rd"):
            server.until(lambda: limits(server) == "ok", "Redis is there")
            assert [ask(server, secret).status for _ in range(2)] == [200, 429]
        assert "passw0rd" not in server.log
        assert server.stop() == 0
