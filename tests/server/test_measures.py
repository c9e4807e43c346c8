"""What `/metrics` tells of completions: how long they waited, how fast they went, and what was our own."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.running import Running, read_all, read_until, running

TIMES = ("queue", "first_text", "between_texts", "overhead")
MODEL = {"model": "local/count"}


def told(server: Running, name: str, **labels: str) -> float:
    """The value of one sample; 0 where nothing was measured yet."""
    page = server.ask("GET", "/metrics").body.decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())


def counts(server: Running) -> dict[str, int]:
    return {name: int(told(server, f"andthen_{name}_seconds_count", **MODEL)) for name in TIMES}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "home", "workers = 2\ndrain_s = 0.5") as server:
        server.until(lambda: len(server.events("serving")) == 2, "both serve")
        yield server


@contextmanager
def halted(server: Running, place: str) -> Iterator[None]:
    """The other worker does all the work."""
    os.kill(server.pid(place), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid(place), signal.SIGCONT)


def test_the_workers_times_are_one_sum(server: Running) -> None:
    assert told(server, "andthen_workers") == 2
    assert counts(server) == dict.fromkeys(TIMES, 0)
    for place, stream in (("worker-0", False), ("worker-1", True)):
        with halted(server, place):
            assert server.complete("slow", stream=stream, max_tokens=4).status == 200
    server.until(lambda: counts(server)["overhead"] == 2, "both are counted")
    assert counts(server) == {"queue": 2, "first_text": 2, "between_texts": 6, "overhead": 2}
    seconds = {name: told(server, f"andthen_{name}_seconds_sum", **MODEL) for name in TIMES}
    total_s = told(server, "andthen_request_seconds_sum", route="completions")
    assert 0 < seconds["queue"] < seconds["first_text"]
    assert seconds["first_text"] + seconds["between_texts"] < total_s
    assert 0 < seconds["overhead"] < total_s
    assert told(server, "andthen_between_texts_seconds_bucket", le="+Inf", **MODEL) == 6


def test_no_wait_for_the_engine_or_the_client_is_our_own(server: Running) -> None:
    body = b'{"model": "local/count", "prompt": "late 1", "max_tokens": 2}'
    with server.connect() as client:
        client.sendall(
            b"POST /v4/beta/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
            b"x-api-key: %s\r\ncontent-length: %d\r\n\r\n" % (server.key.encode(), len(body))
        )
        server.until(lambda: told(server, "andthen_open_requests") == 2, "the request is begun")
        time.sleep(0.5)
        client.sendall(body)
        assert b" 200 " in read_all(client)
    server.until(lambda: counts(server)["overhead"] == 1, "it is counted")
    total_s = told(server, "andthen_request_seconds_sum", route="completions")
    assert told(server, "andthen_overhead_seconds_sum", **MODEL) < total_s - 1.4


def test_a_client_that_leaves_ends_the_wait(server: Running) -> None:
    with server.sent("late 1", stream=True, max_tokens=1000) as client:
        read_until(client, b'" 2"')
    server.until(lambda: counts(server)["overhead"] == 1, "it is counted")
    assert told(server, "andthen_requests_total", route="completions", status="499") == 1
    total_s = told(server, "andthen_request_seconds_sum", route="completions")
    assert told(server, "andthen_overhead_seconds_sum", **MODEL) < total_s - 1


def test_what_never_had_a_turn_has_no_times(server: Running) -> None:
    assert server.complete("go", model="local/unknown").status == 404
    assert server.complete("refuse").status == 503
    server.until(lambda: counts(server)["overhead"] == 1, "it is counted")
    assert counts(server) == {"queue": 0, "first_text": 0, "between_texts": 0, "overhead": 1}


def test_a_ledger_that_cannot_be_written_is_told_and_so_is_its_return(server: Running) -> None:
    def state() -> tuple[object, float]:
        return server.ask("GET", "/readyz").json["ledger"], told(server, "andthen_ledger_healthy")

    assert state() == ("ok", 1)
    with closing(sqlite3.connect(server.home / "andthen.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        server.until(lambda: state() == ("unavailable", 0), "it is noticed")
        other.rollback()
        server.until(lambda: state() == ("ok", 1), "it is back")
