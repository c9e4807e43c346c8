"""Who is asked first, and who is left in peace, over time as told."""

from __future__ import annotations

import random
from collections import Counter

from andthen.gateway.circuit_breaker import CircuitBreaker, in_order
from andthen.vendors.settings import Share, UpstreamSettings

SETTINGS = UpstreamSettings(cool_after=3, cool_s=5.0)


def test_a_deployment_cools_down_after_some_failures_in_a_row_and_not_before() -> None:
    breaker = CircuitBreaker()
    for _ in range(2):
        breaker.on_failure(100.0, None, SETTINGS)
    assert breaker.wait_s(100.0) == 0
    breaker.on_failure(100.0, None, SETTINGS)
    assert breaker.wait_s(101.0) == 4.0
    assert breaker.wait_s(105.0) == 0


def test_success_forgets_failures() -> None:
    breaker = CircuitBreaker()
    for _ in range(10):
        breaker.on_failure(0.0, None, SETTINGS)
        breaker.on_success()
    assert breaker.wait_s(0.0) == 0


def test_its_own_retry_after_is_kept_from_the_first_failure_on() -> None:
    breaker = CircuitBreaker()
    breaker.on_failure(0.0, 40, SETTINGS)
    assert breaker.wait_s(1.0) == 39.0


def test_each_further_failure_doubles_the_pause_up_to_a_minute() -> None:
    breaker, now_s, pauses = CircuitBreaker(), 0.0, []
    for _ in range(9):
        breaker.on_failure(now_s, None, SETTINGS)
        pauses.append(breaker.wait_s(now_s))
        now_s += pauses[-1]
    assert pauses == [0, 0, 5, 10, 20, 40, 60, 60, 60]


def test_one_request_probes_what_has_cooled_and_the_others_wait_for_what_it_finds() -> None:
    breaker = CircuitBreaker()
    breaker.on_failure(0.0, 10, SETTINGS)
    assert breaker.wait_s(10.0) == 0
    breaker.on_request(10.0)
    assert breaker.wait_s(11.0) > 0
    breaker.on_reply(10.0)
    assert breaker.wait_s(11.0) == 0


def test_a_probe_whose_caller_left_lets_the_next_one_through() -> None:
    breaker = CircuitBreaker()
    breaker.on_failure(0.0, 10, SETTINGS)
    breaker.on_request(10.0)
    breaker.on_end(10.0)
    assert breaker.wait_s(11.0) == 0


def test_the_end_of_another_request_lets_nobody_through_beside_the_probe() -> None:
    breaker = CircuitBreaker()
    breaker.on_request(-5.0)
    breaker.on_failure(0.0, 10, SETTINGS)
    breaker.on_request(10.0)
    breaker.on_end(-5.0)
    assert breaker.wait_s(11.0) > 0


def test_a_reply_to_a_request_from_before_the_failure_does_not_end_the_pause_that_was_asked_for() -> None:
    breaker = CircuitBreaker()
    breaker.on_request(-1.0)
    breaker.on_failure(0.0, 40, SETTINGS)
    breaker.on_reply(-1.0)
    breaker.on_success()
    assert breaker.wait_s(1.0) == 39.0


def test_a_probe_is_decided_when_its_reply_begins_and_a_reply_that_then_breaks_still_counts() -> None:
    breaker = CircuitBreaker()
    for _ in range(3):
        breaker.on_failure(0.0, None, SETTINGS)
    breaker.on_request(5.0)
    breaker.on_reply(5.0)
    assert breaker.wait_s(5.0) == 0
    breaker.on_failure(6.0, None, SETTINGS)
    assert breaker.wait_s(6.0) == 10


def test_however_long_it_asks_to_be_left_in_peace_it_is_probed_within_an_hour() -> None:
    breaker = CircuitBreaker()
    breaker.on_failure(0.0, 10**9, SETTINGS)
    assert breaker.wait_s(0.0) == 3600


def test_a_probe_that_tells_nothing_is_given_up_on() -> None:
    breaker = CircuitBreaker()
    breaker.on_failure(0.0, 10, SETTINGS)
    breaker.on_request(10.0)
    assert breaker.wait_s(3600.0) == 0


def test_order_comes_before_weight_and_weight_is_a_share() -> None:
    draw = random.Random(1).random
    shares = (Share(model="a/1", weight=3), Share(model="b/1"), Share(model="c/1", weight=100, order=1))
    orders = [[share.model for share in in_order(shares, draw)] for _ in range(4000)]
    assert all(order[2] == "c/1" for order in orders)
    firsts = Counter(order[0] for order in orders)
    assert 0.72 < firsts["a/1"] / 4000 < 0.78
