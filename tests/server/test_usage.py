"""What was used, over HTTP: one's own, and all for those who administer."""

from __future__ import annotations

import json
import sqlite3
import urllib.error
from collections.abc import Iterator
from contextlib import closing

import pytest

from andthen.books.policy import Policy
from andthen.books.store import open_sqlite
from andthen.ledger.records import Budget
from tests.serving import Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("usage")) as running:
        yield running


def keyed(server: Server, secret: str) -> Server:
    return Server(server.url, secret, server.model, server.home, server.process)


@pytest.fixture
def reader(server: Server, request: pytest.FixtureRequest) -> Server:
    """With a key of the test's own, by its name."""
    with closing(open_sqlite(server.home / "andthen.db")) as store:
        budgets = (Budget(window="month", tokens=1_000),)
        return keyed(server, store.create_key(request.node.name[:64], policy=Policy(budgets=budgets)).secret)


@pytest.fixture(scope="module")
def admin(server: Server) -> Server:
    with closing(open_sqlite(server.home / "andthen.db")) as store:
        return keyed(server, store.create_key("boss", admin=True).secret)


def test_a_key_sees_what_it_used_itself_and_what_is_left(server: Server, reader: Server) -> None:
    server.complete(max_tokens=3)
    used = reader.complete(max_tokens=3)["usage"]
    told = json.loads(reader.get("/v4/beta/usage"))
    (day,) = told["data"]
    assert (day["requests"], day["failed"], day["model"]) == (1, 0, server.model)
    assert day["prompt_tokens"] + day["completion_tokens"] == used["total_tokens"]
    assert told["budgets"] == [{
        "window": "month", "limit_micros": None, "spent_micros": 0, "reserved_micros": 0, "limit_tokens": 1_000,
        "spent_tokens": used["total_tokens"], "reserved_tokens": 0,
    }]  # fmt: skip


def test_an_admin_sees_all_keys_and_nobody_else_does(
    server: Server, reader: Server, admin: Server, request: pytest.FixtureRequest
) -> None:
    server.complete(max_tokens=1)
    reader.complete(max_tokens=1)
    names = {row["name"] for row in json.loads(admin.get("/admin/usage?days=2"))["data"]}
    assert {"tests", request.node.name[:64]} <= names
    with pytest.raises(urllib.error.HTTPError) as caught:
        reader.get("/admin/usage")
    assert caught.value.code == 403
    caught.value.close()


def test_a_key_says_of_how_many_days(reader: Server) -> None:
    reader.complete(max_tokens=1)
    assert len(json.loads(reader.get("/v4/beta/usage"))["data"]) == 1
    with closing(sqlite3.connect(reader.home / "andthen.db")) as raw, raw:
        raw.execute("UPDATE requests SET started_at_ms = started_at_ms - 40 * 86400000")
    assert json.loads(reader.get("/v4/beta/usage"))["data"] == []
    assert len(json.loads(reader.get("/v4/beta/usage?days=60"))["data"]) == 1


@pytest.mark.parametrize("query", ["days=0", "days=x", "days=9999", "since=1", "%ff", "days=1&days=2"])
def test_a_query_that_cannot_be_is_refused(server: Server, admin: Server, query: str) -> None:
    for asked, path in ((admin, "/admin/usage"), (server, "/v4/beta/usage")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            asked.get(f"{path}?{query}")
        assert caught.value.code == 400
        caught.value.close()
