"""What a request leaves in the books of a real server, whatever ended it."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from andthen.books.policy import Policy
from andthen.books.store import open_sqlite
from andthen.ledger.records import Budget
from tests import posted
from tests.serving import Server, serving

WAIT_S = 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("ledger")) as running:
        yield running


def key(server: Server, name: str, **policy: Any) -> Server:
    """The server, asked with a key of its own."""
    with closing(open_sqlite(server.home / "andthen.db")) as store:
        return replace_key(server, store.create_key(name, policy=Policy(**policy)).secret)


def replace_key(server: Server, secret: str) -> Server:
    return Server(server.url, secret, server.model, server.home, server.process)


def rows(server: Server, name: str, count: int = 1) -> list[dict[str, Any]]:
    return posted.rows(server.home, count, key=name)


def test_a_reply_has_its_row_by_the_time_it_is_there(server: Server) -> None:
    asked = key(server, "plain")
    reply = asked.complete(prompt="Once upon a time", n=2, max_tokens=8, user="reader-1", seed=1)
    (row,) = rows(server, "plain")
    assert row["id"] == reply["id"]
    assert (row["status"], row["ended_by"], row["model_asked"], row["model_answered"]) == (
        200, "reply", server.model, server.model,
    )  # fmt: skip
    usage = reply["usage"]
    assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (row["user"], row["source"], row["cost_micros"]) == ("reader-1", "counted", 0)
    assert row["first_ms"] <= row["total_ms"]
    assert "n=native" in row["plan"]


def test_nothing_of_prompt_or_completion_is_kept(server: Server) -> None:
    key(server, "private").complete(prompt="A very particular beginning", max_tokens=4)
    (row,) = rows(server, "private")
    assert "particular" not in json.dumps(row)


def test_refused_requests_that_passed_the_key_have_rows_too(server: Server) -> None:
    asked = key(server, "refused", models=("local/*",))
    for fields in ({"temperature": 9}, {"model": "local/none"}, {"model": "openai/x"}):
        with pytest.raises(urllib.error.HTTPError):
            asked.complete(**fields)
    found = rows(server, "refused", 3)
    assert [(row["status"], row["ended_by"]) for row in found] == [(400, "error"), (404, "error"), (404, "error")]
    assert {row["code"] for row in found} == {"invalid_value", "model_not_found"}
    assert {row["model_asked"] for row in found} == {""}, "no name that a caller made up"


def test_a_caller_who_leaves_pays_for_what_was_made_and_no_more(server: Server) -> None:
    asked = key(server, "leaver", budgets=(Budget(window="total", tokens=10_000),))
    body = json.dumps(
        {"model": server.model, "prompt": "Once", "stream": True, "max_tokens": 900, "ignore_eos": True}
    ).encode()
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), WAIT_S) as link:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {asked.key}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        link.sendall(head.encode() + body)
        seen = b""
        while seen.count(b"data: ") < 3:
            seen += link.recv(4096)
    (row,) = rows(server, "leaver")
    assert (row["status"], row["ended_by"]) == (499, "caller")
    assert 3 <= row["completion_tokens"] < 900
    with closing(open_sqlite(server.home / "andthen.db")) as store:
        (spent,) = store.spent(row["key_id"], [Budget(window="total", tokens=10_000)])
    assert (spent.tokens, spent.reserved_tokens) == (row["prompt_tokens"] + row["completion_tokens"], 0)


def test_a_budget_is_kept_to_the_last_token_under_a_race(server: Server) -> None:
    cost = key(server, "measure").complete(prompt=[300, 301], max_tokens=8, ignore_eos=True)["usage"]["total_tokens"]
    asked = key(server, "racer", budgets=(Budget(window="total", tokens=20 * cost),))

    refusals: list[tuple[int, str, str]] = []

    def spend(_: int) -> int:
        done = 0
        while True:
            try:
                asked.complete(prompt=[300, 301], max_tokens=8, ignore_eos=True)
                done += 1
            except urllib.error.HTTPError as error:
                told = json.load(error)["error"]
                refusals.append((error.code, told["type"], told["code"]))
                if error.headers["x-should-retry"] == "false":
                    return done
                time.sleep(0.02)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(spend, range(8))) == 20
    assert set(refusals) == {(429, "budget_error", "budget_exceeded")}
    found = rows(server, "racer", 20 + len(refusals))
    assert sum(row["prompt_tokens"] + row["completion_tokens"] for row in found) == 20 * cost
    assert all(row["status"] in (200, 429) for row in found)


def test_a_model_without_a_price_is_refused_to_a_key_with_a_budget_in_money(tmp_path: Path) -> None:
    settings = """
[models."team/draft"]
address = "http://127.0.0.1:9/v1"
language = "openai_completions"
"""
    with serving(tmp_path, settings=settings) as server:
        asked = key(server, "money", budgets=(Budget(window="day", micros=5_000_000),))
        with pytest.raises(urllib.error.HTTPError) as caught:
            asked.complete(model="team/draft")
        assert caught.value.code == 403
        assert b"budget in money" in caught.value.read()
        assert asked.complete(max_tokens=2)["usage"]["completion_tokens"] == 2


def test_requests_a_minute_are_counted_and_told(server: Server) -> None:
    asked = key(server, "limited", requests_per_minute=3)
    for _ in range(3):
        asked.complete(max_tokens=1)
    with pytest.raises(urllib.error.HTTPError) as caught:
        asked.complete(max_tokens=1)
    error = caught.value
    assert (error.code, json.load(error)["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 50 <= int(error.headers["retry-after"]) <= 61
    assert error.headers["x-ratelimit-limit-requests"] == "3"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert [row["status"] for row in rows(server, "limited", 4)] == [200, 200, 200, 429]


def test_tokens_that_were_not_needed_make_room_again(server: Server) -> None:
    asked = key(server, "tokens", tokens_per_minute=800)
    for _ in range(4):
        assert asked.complete(prompt="Hi", max_tokens=500, stop=["e"])["choices"][0]["finish_reason"] == "stop"


def test_a_place_among_the_concurrent_is_free_again_when_the_caller_has_left(server: Server) -> None:
    asked = key(server, "one-at-a-time", concurrent_requests=1)
    body = json.dumps({"model": server.model, "prompt": "O", "stream": True, "max_tokens": 900, "ignore_eos": True})
    host, _, port = server.url.removeprefix("http://").partition(":")
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {asked.key}\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), WAIT_S) as link:
        link.sendall((head + body).encode())
        link.recv(100)
        with pytest.raises(urllib.error.HTTPError) as caught:
            asked.complete(max_tokens=1)
        assert caught.value.code == 429
        caught.value.close()
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            asked.complete(max_tokens=1)
            break
        except urllib.error.HTTPError as error:
            error.close()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_refusal_names_no_model_that_the_key_may_not_use(tmp_path: Path) -> None:
    settings = """
[models."team/secret"]
address = "http://127.0.0.1:9/v1"
language = "openai_completions"
takes = { response_format = true }
"""
    with serving(tmp_path, settings=settings) as server:
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.complete(response_format={"type": "json_object"})
        assert b"team/secret" in caught.value.read()
        with pytest.raises(urllib.error.HTTPError) as caught:
            key(server, "narrow", models=("local/*",)).complete(response_format={"type": "json_object"})
        assert b"team/secret" not in caught.value.read()


def test_a_database_that_another_holds_is_waited_for_by_nobody_whose_budget_is_in_memory(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        asked = key(server, "held-up", budgets=(Budget(window="total", tokens=10_000),))
        with ThreadPoolExecutor(1) as pool, closing(sqlite3.connect(server.home / "andthen.db")) as other:
            running = pool.submit(asked.complete, prompt=[300], max_tokens=900, ignore_eos=True)
            deadline = time.monotonic() + WAIT_S
            while not other.execute("SELECT 1 FROM requests WHERE settled_at_ms IS NULL").fetchone():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            other.execute("BEGIN IMMEDIATE")
            replies = [asked.complete(max_tokens=1), running.result(6 * WAIT_S)]
            other.rollback()
        found = {row["id"]: row for row in rows(server, "held-up", 2)}
        assert set(found) == {reply["id"] for reply in replies}
        assert sorted(row["completion_tokens"] for row in found.values()) == [1, 900]
        (key_id,) = {row["key_id"] for row in found.values()}
        with closing(open_sqlite(server.home / "andthen.db")) as store:
            (spent,) = store.spent(key_id, [Budget(window="total", tokens=10_000)])
        assert (spent.tokens, spent.reserved_tokens) == (sum(one["usage"]["total_tokens"] for one in replies), 0)


def test_what_ends_with_the_server_is_settled_before_it_is_gone(tmp_path: Path) -> None:
    with serving(tmp_path, settings="[server]\ndrain_s = 0.2\n") as server:
        asked = key(server, "drained", budgets=(Budget(window="total", tokens=1_000_000),))
        with ThreadPoolExecutor(4) as pool:
            running = [
                pool.submit(asked.complete, prompt=[300 + number], max_tokens=1000, ignore_eos=True)
                for number in range(4)
            ]
            deadline = time.monotonic() + WAIT_S
            with closing(sqlite3.connect(server.home / "andthen.db")) as raw:
                while raw.execute("SELECT count(*) FROM requests").fetchone() != (4,):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            server.process.terminate()
            statuses = sorted(
                200 if (error := one.exception(WAIT_S)) is None else getattr(error, "code", 0) for one in running
            )
            server.process.wait(WAIT_S)
        assert sorted(row["status"] for row in rows(server, "drained", 4)) == statuses
        assert 503 in statuses


@pytest.mark.parametrize("more", [{"parse_special": False}, {"suffix": "."}])
def test_names_of_special_tokens_are_reserved_for_as_they_are_read(server: Server, more: dict[str, Any]) -> None:
    asked = key(server, f"special-{'-'.join(more)}", budgets=(Budget(window="total", tokens=80),))
    with pytest.raises(urllib.error.HTTPError) as caught:
        asked.complete(prompt="<|endoftext|>" * 30, max_tokens=1, **more)
    assert json.load(caught.value)["error"]["code"] == "budget_exceeded"
