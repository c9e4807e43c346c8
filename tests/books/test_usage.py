"""What the ledger adds up to."""

from __future__ import annotations

import pytest

from andthen.books.store import SqlStore
from andthen.ledger.records import Tokens
from tests.ledger.making import NOON_MS, intent, post, settled

DAY_MS = 86_400_000


@pytest.fixture
def store(any_store: SqlStore) -> SqlStore:
    return any_store


def fill(store: SqlStore) -> None:
    requests = [
        intent(1),
        intent(2, key_id="key_b"),
        intent(3, started_at_ms=NOON_MS + DAY_MS),
        intent(4, model="openai/gpt-4o"),
        intent(5, started_at_ms=NOON_MS + DAY_MS),
    ]
    post(store, requests)
    post(store, [
        settled(requests[0]),
        settled(requests[1], ended_by="caller", status=499, cost_micros=7),
        settled(requests[2], tokens=Tokens(prompt=100, cached=90, completion=1, reasoning=1)),
        settled(requests[3], model="azure/gpt-4o"),
    ])  # fmt: skip


def test_sums_are_by_any_of_day_key_and_model(store: SqlStore) -> None:
    fill(store)
    by_day = store.usage(["day"])
    assert [(row.day, row.requests, row.open, row.cost_micros) for row in by_day] == [
        ("2027-01-15", 3, 0, 67), ("2027-01-16", 2, 1, 30),
    ]  # fmt: skip
    assert [(row.key, row.requests, row.failed) for row in store.usage(["key"])] == [("key_a", 4, 0), ("key_b", 1, 1)]
    assert [row.model for row in store.usage(["model"])] == ["azure/gpt-4o", "local/tale"]
    assert len(store.usage(["day", "key", "model"])) == 4
    last = by_day[1]
    assert (last.prompt_tokens, last.cached_tokens, last.completion_tokens, last.reasoning_tokens) == (100, 90, 1, 1)


def test_sums_are_of_a_time_and_a_key(store: SqlStore) -> None:
    fill(store)
    assert [row.requests for row in store.usage(["key"], since_ms=NOON_MS + 1)] == [2]
    assert [row.requests for row in store.usage(["day"], until_ms=NOON_MS + 1)] == [3]
    assert [row.requests for row in store.usage(["day"], key_id="key_b")] == [1]
    assert store.usage(["day"], key_id="key_c") == []
