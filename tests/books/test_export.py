"""The ledger's rows as they leave the house."""

from __future__ import annotations

import pytest

from andthen.books.store import SqlStore, export
from andthen.books.store.export import columns
from andthen.books.store.schema import CALLS, REQUESTS
from andthen.ledger.records import Call
from tests.books.test_usage import fill
from tests.ledger.making import NOON_MS, intent, post, settled


@pytest.fixture
def store(any_store: SqlStore) -> SqlStore:
    return any_store


def test_every_column_is_there_with_moments_and_money_that_all_can_read(store: SqlStore) -> None:
    one = intent("ü", stream=True, user="=1+1", started_at_ms=NOON_MS + 50)
    post(store, [one])
    post(store, [settled(one, cost_micros=1_234_567, queue_ms=3)])
    (row,) = store.export("requests")
    assert list(row) == columns("requests")
    assert len(row) == len(REQUESTS.columns)
    told = ("id", "started_at", "settled_at", "stream", "user", "cost_usd", "reserved_usd", "queue_ms", "first_ms")
    assert [row[name] for name in told] == [
        "cmpl-ü", "2027-01-15T12:00:00.050Z", "2027-01-15T12:00:00.005Z", True, "=1+1", "1.234567", "0.000100", 3, None,
    ]  # fmt: skip
    assert isinstance(row["prompt_tokens"], int)


def test_a_request_under_way_has_no_end(store: SqlStore) -> None:
    post(store, [intent(1)])
    assert [row["settled_at"] for row in store.export("requests")] == [None]


def test_calls_are_told_with_their_request(store: SqlStore) -> None:
    for number in (2, 1):
        one = intent(number, started_at_ms=NOON_MS - number)
        calls = tuple(Call(model=f"openai/{turn}", status=200, cost_micros=turn) for turn in range(2))
        post(store, [settled(one, calls=calls)])
    found = list(store.export("calls"))
    assert list(found[0]) == columns("calls")
    assert len(found[0]) == len(CALLS.columns)
    assert [(row["request_id"], row["number"], row["model"], row["cost_usd"]) for row in found] == [
        ("cmpl-2", 0, "openai/0", "0.000000"), ("cmpl-2", 1, "openai/1", "0.000001"),
        ("cmpl-1", 0, "openai/0", "0.000000"), ("cmpl-1", 1, "openai/1", "0.000001"),
    ]  # fmt: skip


def test_they_are_of_a_time_and_a_key(store: SqlStore) -> None:
    fill(store)
    assert len(list(store.export("requests"))) == 5
    assert [row["id"] for row in store.export("requests", since_ms=NOON_MS + 1)] == ["cmpl-3", "cmpl-5"]
    assert [row["id"] for row in store.export("requests", until_ms=NOON_MS + 1, key_id="key_b")] == ["cmpl-2"]
    assert [row["request_id"] for row in store.export("calls", key_id="key_b")] == ["cmpl-2"]


@pytest.mark.parametrize("page_requests", [1, 2, 3, 7])
def test_pages_leave_no_row_out_and_tell_none_twice(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, page_requests: int
) -> None:
    """Rows that began in the same millisecond too."""
    monkeypatch.setattr(export, "_PAGE_REQUESTS", page_requests)
    began = [intent(number, started_at_ms=NOON_MS + number // 4) for number in range(10)]
    post(store, [settled(one, calls=settled(one).calls * 2) for one in reversed(began)])
    assert [row["id"] for row in store.export("requests")] == [one.id for one in began]
    calls = [(row["request_id"], row["number"]) for row in store.export("calls")]
    assert calls == [(one.id, number) for one in began for number in range(2)]


def test_who_reads_slowly_holds_no_writer_up(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_PAGE_REQUESTS", 1)
    post(store, [settled(intent(number)) for number in range(3)])
    reading = store.export("requests")
    next(reading)
    assert store.remove_old("requests", NOON_MS + 1, most=2) == 2
    assert [row["id"] for row in reading] == ["cmpl-2"]
