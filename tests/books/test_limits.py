"""The rules of limits alone, at times of the test's own choice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.books.limits import (
    SLOTS,
    WINDOW_MS,
    Bounds,
    Counts,
    Grant,
    KeyLog,
    Refused,
    Standing,
    check_possible,
    limited,
)
from andthen.books.policy import Policy
from andthen.contract.errors import BadRequest, RateLimited
from tests.books.limiting import PlainModel

STEPS = st.lists(
    st.tuples(
        st.integers(0, 30_000),  # milliseconds that pass
        st.integers(0, 60),  # tokens that it may need
        st.one_of(st.none(), st.integers(0, 60)),  # what an earlier one did need
    ),
    max_size=60,
)


@given(STEPS, st.integers(0, 6), st.integers(0, 150))
def test_none_is_one_too_many_and_none_waits_a_slot_longer_than_it_must(
    steps: list[tuple[int, int, int | None]], requests: int, tokens: int
) -> None:
    log, model, bounds = KeyLog(), PlainModel(WINDOW_MS), Bounds(requests, tokens)
    now_ms, running = 0, []
    for number, (passed_ms, needed, used) in enumerate(steps):
        now_ms += passed_ms
        outcome = log.take(now_ms, str(number), bounds, needed)
        if isinstance(outcome, Standing):
            assert model.fits(now_ms, requests, tokens, needed)
            running.append((str(number), model.admit(now_ms, needed), needed))
        else:
            assert not model.fits(now_ms, requests, tokens, needed, model.slack_ms)
        if used is not None and running:
            grant_id, admitted, reserved = running.pop(0)
            log.settle(grant_id, min(used, reserved))
            model.settle(admitted, min(used, reserved))


@given(STEPS, st.integers(1, 6), st.integers(60, 150))
def test_whoever_waits_as_long_as_told_is_admitted_and_no_sooner(
    steps: list[tuple[int, int, int | None]], requests: int, tokens: int
) -> None:
    log, bounds, now_ms = KeyLog(), Bounds(requests, tokens), 0
    for number, (passed_ms, needed, _) in enumerate(steps):
        now_ms += passed_ms
        outcome = log.take(now_ms, str(number), bounds, needed)
        if isinstance(outcome, Refused):
            assert outcome.wait_ms is not None
            if outcome.wait_ms > 1:
                sooner = log.take(now_ms + outcome.wait_ms - 1, f"{number} sooner", bounds, needed)
                assert isinstance(sooner, Refused)
            now_ms += outcome.wait_ms
            assert isinstance(log.take(now_ms, str(number), bounds, needed), Standing)


def test_at_most_one_in_a_hundred_is_too_few_where_a_key_asks_all_the_time() -> None:
    log, bounds, admitted = KeyLog(), Bounds(requests=50), 0
    for now_ms in range(0, 20 * WINDOW_MS, 7):
        admitted += isinstance(log.take(now_ms, str(now_ms), bounds, 0), Standing)
    assert 0.99 * 20 * 50 <= admitted <= 20 * 50


def test_a_log_is_no_longer_than_its_slots() -> None:
    log = KeyLog()
    for now_ms in range(0, 3 * WINDOW_MS, 10):
        log.take(now_ms, str(now_ms), Bounds(requests=10**9), 1)
        log.settle(str(now_ms), 1)
    assert len(log._slots) <= SLOTS + 1
    assert not log._running


def test_a_key_that_does_nothing_any_more_takes_no_room() -> None:
    counts = Counts()
    for number in range(100):
        counts.take(number, "g", f"key_{number}", Bounds(requests=1), 0)
        if log := counts.log(f"key_{number}"):
            log.settle("g", 0)
    counts.take(3 * WINDOW_MS, "g", "key_new", Bounds(requests=1), 0)
    assert len(counts) == 1


def test_a_settlement_keeps_the_requests_time_and_frees_what_it_did_not_use() -> None:
    log, bounds = KeyLog(), Bounds(tokens=100)
    assert isinstance(log.take(0, "a", bounds, 90), Standing)
    refused = log.take(1000, "b", bounds, 50)
    assert isinstance(refused, Refused)
    assert (refused.kind, refused.wait_ms, refused.standing.tokens) == ("tokens", WINDOW_MS + 100 - 1000, 90)
    log.settle("a", 50)
    assert isinstance(log.take(1000, "b", bounds, 50), Standing)
    log.settle("b", 50)
    assert isinstance(log.take(WINDOW_MS + 100, "c", bounds, 50), Standing), "the first has slid out"
    assert isinstance(log.take(WINDOW_MS + 100, "d", bounds, 1), Refused), "the second has not"


def test_a_settlement_after_the_window_changes_nothing() -> None:
    log, bounds = KeyLog(), Bounds(tokens=100, concurrent=1)
    log.take(0, "a", bounds, 90)
    assert isinstance(log.take(2 * WINDOW_MS, "b", bounds, 100), Refused), "it still runs"
    log.settle("a", 10)
    assert isinstance(log.take(2 * WINDOW_MS, "b", bounds, 100), Standing)


def test_concurrent_requests_end_by_settling_forgetting_and_releasing() -> None:
    log, bounds = KeyLog(), Bounds(concurrent=1, tokens=10)
    ends: list[Callable[[], None]] = [
        lambda: log.settle("g", 0),
        lambda: log.forget("g"),
        lambda: log.release("g"),
    ]
    for end in ends:
        assert isinstance(log.take(0, "g", bounds, 3), Standing)
        refused = log.take(0, "h", bounds, 3)
        assert isinstance(refused, Refused)
        assert (refused.kind, refused.wait_ms) == ("concurrent", None)
        end()
    standing = log.take(0, "g", bounds, 0)
    assert isinstance(standing, Standing)
    assert (standing.requests, standing.tokens) == (3, 3), "the forgotten one left nothing, the released one its all"


def test_headers_tell_of_what_is_bounded_in_the_forms_of_openai() -> None:
    grant = Grant("1", "key", Bounds(requests=60, tokens=1000), Standing(1, 200, 60_000))
    assert grant.headers() == [
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "59"),
        ("x-ratelimit-reset-requests", "1m0s"),
        ("x-ratelimit-limit-tokens", "1000"),
        ("x-ratelimit-remaining-tokens", "800"),
        ("x-ratelimit-reset-tokens", "1m0s"),
    ]
    assert Grant("", "key").headers() == []
    assert Grant("1", "key", Bounds(concurrent=1), Standing(1, 200, 1)).headers() == []


@pytest.mark.parametrize(
    ("reset_ms", "told"), [(0, "0s"), (7, "7ms"), (1000, "1s"), (59_999, "59.999s"), (60_100, "1m0.1s")]
)
def test_durations_are_as_openai_writes_them(reset_ms: int, told: str) -> None:
    headers = Grant("1", "key", Bounds(requests=1), Standing(1, 0, reset_ms)).headers()
    assert headers[-1] == ("x-ratelimit-reset-requests", told)


def test_a_refusal_tells_which_bound_how_long_and_the_standing() -> None:
    error = limited(Bounds(tokens=100), Refused("tokens", 12_345, Standing(3, 90, 50_000)), 40)
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 13, "never too soon"
    assert "100 tokens a minute" in error.message
    assert "10 left" in error.message
    assert ("x-ratelimit-remaining-tokens", "10") in error.headers
    running = limited(Bounds(concurrent=2), Refused("concurrent", None, Standing(2, 0, 0)), 1)
    assert running.retry_after_s == RateLimited.usual_retry_after_s
    assert "2 requests at once" in running.message


def test_what_no_wait_makes_room_for_is_the_requests_own_fault() -> None:
    check_possible(Bounds(tokens=100), 100)
    with pytest.raises(BadRequest, match="may use 100 a minute") as refusal:
        check_possible(Bounds(tokens=100), 101)
    assert refusal.value.param == "max_tokens"
    assert not refusal.value.retryable


def test_bounds_come_from_the_policy() -> None:
    policy = Policy(requests_per_minute=1, tokens_per_minute=2, concurrent_requests=3)
    assert Bounds.of(policy) == Bounds(1, 2, 3)
    assert Bounds.of(Policy()).unbounded
    assert not Bounds(concurrent=0).unbounded
