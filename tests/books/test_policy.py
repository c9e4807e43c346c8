"""What a policy allows, and which policies there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.books.policy import LIST_MAX, UNBOUNDED, BadPolicy, Policy, check_policy
from andthen.ledger.records import Budget


@pytest.mark.parametrize(
    ("patterns", "name", "allowed"),
    [
        ((), "openai/gpt-4o", True),
        (("openai/*",), "openai/gpt-4o", True),
        (("openai/*",), "hub/openai/gpt-4o", False),
        (("local/tale",), "local/tale2", False),
        (("local/tale",), "local/Tale", False),
        (("a/*", "*/b"), "c/d/b", True),
        (("local/[st]*",), "local/tale", True),
        (("",), "local/tale", False),
    ],
)
def test_models_are_allowed_by_patterns_of_whole_names(patterns: tuple[str, ...], name: str, allowed: bool) -> None:
    assert Policy(models=patterns).allows_model(name) is allowed


@pytest.mark.parametrize(
    ("networks", "address", "allowed"),
    [
        ((), "", True),
        (("10.0.0.0/8",), "10.1.2.3", True),
        (("10.0.0.1/8",), "10.1.2.3", True),
        (("10.0.0.0/8",), "11.0.0.1", False),
        (("10.0.0.0/8",), "::ffff:10.1.2.3", True),
        (("10.0.0.0/8",), "::1", False),
        (("::1", "fe80::/10"), "fe80::1", True),
        (("0.0.0.0/0",), "::1", False),
        (("127.0.0.1",), "", False),
        (("127.0.0.1",), "localhost", False),
        (("127.0.0.1",), "127.0.0.1, 10.0.0.1", False),
    ],
)
def test_addresses_are_allowed_by_networks(networks: tuple[str, ...], address: str, allowed: bool) -> None:
    assert Policy(addresses=networks).allows_address(address) is allowed


@given(st.text())
def test_no_address_is_an_error(address: str) -> None:
    assert UNBOUNDED.allows_address(address)
    assert not Policy(addresses=("203.0.113.7",)).allows_address(address)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (Policy(owner="a\nb"), "owner"),
        (Policy(owner="x" * 257), "owner"),
        (Policy(tags=("",)), "tags"),
        (Policy(tags=("a",) * (LIST_MAX + 1)), "tags"),
        (Policy(models=("\x1b[31m",)), "models"),
        (Policy(addresses=("10.0.0.0/33",)), "addresses"),
        (Policy(addresses=("localhost",)), "addresses"),
        (Policy(budgets=(Budget(window="day"),)), "budgets"),
        (Policy(budgets=(Budget(window="day", micros=1), Budget(window="day", tokens=1))), "budgets"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_at_its_field(policy: Policy, field: str) -> None:
    with pytest.raises(BadPolicy, match=f"^{field}: ") as caught:
        check_policy(policy)
    assert caught.value.field == field


def test_every_bound_may_be_zero() -> None:
    bounded = Policy(
        requests_per_minute=0, tokens_per_minute=0, concurrent_requests=0, max_tokens=0,
        budgets=(Budget(window="total", micros=0, tokens=0),),
    )  # fmt: skip
    assert check_policy(bounded) is bounded
