"""What calls cost: exact, rounded up once for each call, never above what was reserved."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.books.prices import Hours, Listed, Listing, Price, PriceBook, Prices, Rates, Tier

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
_RATE = st.decimals(min_value=0, max_value=1_000_000, places=12)
_PART = st.none() | _RATE
_RATES = {"prompt": _RATE, "completion": _RATE, "cached": _PART, "cache_write": _PART, "reasoning": _PART}
_COUNT = st.integers(min_value=0, max_value=2**62)
_COUNTS = st.tuples(_COUNT, _COUNT, _COUNT, _COUNT, _COUNT)


def _price_of(rates: Rates, request: Decimal | None, tiers: list[Tier], also: list[Rates]) -> Price:
    ascending = tuple(sorted({tier.above: tier for tier in tiers}.values(), key=lambda tier: tier.above))
    return Price(**msgspec.structs.asdict(rates), request=request, tiers=ascending, also=tuple(also))


_PRICE = st.builds(
    _price_of,
    st.builds(Rates, **_RATES),
    _PART,
    st.lists(st.builds(Tier, above=_COUNT, **_RATES), max_size=2),
    st.lists(st.builds(Rates, **_RATES), max_size=2),
)
_FLAT = st.builds(_price_of, st.builds(Rates, **_RATES), st.none(), st.just([]), st.just([]))
"""Nothing for the call itself, and the same for long prompts."""


def price(prompt: str = "2.50", completion: str = "10", **more: str) -> Price:
    return msgspec.convert({"prompt": prompt, "completion": completion, **more}, Price)


def cost(one: Price, counts: tuple[int, int, int, int, int]) -> int:
    prompt, completion, cached, written, thought = counts
    return one.cost_micros(prompt, completion, cached=cached, cache_write=written, reasoning=thought)


def test_a_token_costs_as_many_millionths_as_a_million_cost_dollars() -> None:
    assert price().cost_micros(4, 3) == 40
    assert price().cost_micros(1_000_000, 0) == 2_500_000


def test_a_call_is_rounded_up_once() -> None:
    assert price(prompt="0.1", completion="0.1").cost_micros(1, 1) == 1
    assert price(prompt="0.1", completion="0.1").cost_micros(10, 10) == 2
    assert price(prompt="0.000000000001", completion="0").cost_micros(1, 0) == 1


def test_a_part_costs_what_is_set_for_it_else_what_the_whole_does() -> None:
    one = price(prompt="4", completion="8", cached="1", cache_write="5", reasoning="16")
    assert one.cost_micros(10, 10, cached=3, cache_write=2, reasoning=4) == 5 * 4 + 3 * 1 + 2 * 5 + 6 * 8 + 4 * 16
    assert price(prompt="4", completion="8").cost_micros(10, 10, cached=3, cache_write=2, reasoning=4) == 120


def test_counts_that_cannot_be_are_taken_for_the_nearest_that_can() -> None:
    one = price(prompt="4", completion="8", cached="1", reasoning="16")
    assert one.cost_micros(-5, -5, cached=-1, reasoning=-1) == 0
    assert one.cost_micros(10, 10, cached=99, reasoning=99) == 10 + 160


def test_a_call_may_cost_something_by_itself() -> None:
    assert price(request="0.012").cost_micros(0, 0) == 12_000
    assert price(request="0.012").worst_micros(0, 0) == 12_000


def test_a_long_prompt_makes_every_token_dearer_from_the_token_past_the_bound() -> None:
    one = msgspec.structs.replace(
        price(prompt="1", completion="2"), tiers=(Tier(above=100, prompt=Decimal(3), completion=Decimal(5)),)
    )
    assert (one.cost_micros(100, 1), one.cost_micros(101, 1)) == (102, 308)
    assert (one.worst_micros(100, 1), one.worst_micros(101, 1)) == (102, 308)


@given(_PRICE, _COUNTS)
def test_it_is_exact_but_for_the_rounding(one: Price, counts: tuple[int, int, int, int, int]) -> None:
    prompt, completion, cached, written, thought = counts
    rates: Rates = one
    for tier in one.tiers:
        rates = tier if prompt > tier.above else rates
    read, thought = min(cached, prompt), min(thought, completion)
    written = min(written, prompt - read)
    exact = Fraction(one.request or 0) * 1_000_000
    for count, rate in [
        (prompt - read - written, rates.prompt),
        (read, rates.prompt if rates.cached is None else rates.cached),
        (written, rates.prompt if rates.cache_write is None else rates.cache_write),
        (completion - thought, rates.completion),
        (thought, rates.completion if rates.reasoning is None else rates.reasoning),
    ]:
        exact += count * Fraction(rate)
    assert 0 <= cost(one, counts) - exact < 1


@given(_FLAT, _COUNTS, _COUNTS)
def test_it_is_additive_but_for_one_millionth_a_call(
    one: Price, left: tuple[int, int, int, int, int], right: tuple[int, int, int, int, int]
) -> None:
    def fitting(counts: tuple[int, int, int, int, int]) -> tuple[int, int, int, int, int]:
        prompt, completion, cached, written, thought = counts
        return prompt + cached + written, completion + thought, cached, written, thought

    left, right = fitting(left), fitting(right)
    both = tuple(a + b for a, b in zip(left, right, strict=True))
    whole = cost(one, (both[0], both[1], both[2], both[3], both[4]))
    assert whole <= cost(one, left) + cost(one, right) <= whole + 1


@given(_FLAT, _COUNT, _COUNT, _COUNT, _COUNT)
def test_more_tokens_cost_no_less(one: Price, prompt: int, completion: int, more: int, made: int) -> None:
    assert 0 <= one.cost_micros(prompt, completion) <= one.cost_micros(prompt + more, completion + made)


@given(_PRICE, _COUNTS, _COUNT, _COUNT)
def test_nothing_within_what_was_reserved_costs_more_than_the_worst(
    one: Price, counts: tuple[int, int, int, int, int], spare: int, unmade: int
) -> None:
    assert cost(one, counts) <= one.worst_micros(counts[0] + spare, counts[1] + unmade)


@given(_PRICE, _COUNTS)
def test_the_worst_is_also_that_of_other_hours(one: Price, counts: tuple[int, int, int, int, int]) -> None:
    for rates in one.also:
        then = Price(**msgspec.structs.asdict(rates), request=one.request)
        assert cost(then, counts) <= one.worst_micros(counts[0], counts[1])


@given(_PRICE)
def test_it_goes_through_a_pipe_to_the_digit(one: Price) -> None:
    assert msgspec.json.decode(msgspec.json.encode(one), type=Price) == one


def listed(prompt: str, **more: object) -> Listed:
    return msgspec.convert({"prompt": prompt, "completion": "1", **more}, Listed)


def book(*own: tuple[str, str], shipped: tuple[tuple[str, str], ...] = (), **known_as: str) -> PriceBook:
    listings = [[Listing((name,), (listed(prompt),)) for name, prompt in group] for group in (own, shipped)]
    return PriceBook(Prices(own=tuple(listings[0]), known_as=known_as), listings[1])


def found(one: PriceBook, name: str, at_ms: int = 0) -> str | None:
    price = one.price(name, at_ms)
    return None if price is None else str(price.prompt)


def test_the_most_specific_name_counts() -> None:
    one = book(("*", "1"), ("team/*", "2"), ("team/draft*", "3"), ("team/draft", "4"), ("*/draft-[0-9]", "5"))
    names = ("other/any", "team/any", "team/drafts", "team/draft", "team/draft-1")
    assert [found(one, name) for name in names] == ["1", "2", "3", "4", "3"]
    assert found(book(("team/draft", "1")), "team/other") is None


def test_the_operators_prices_come_before_the_lists() -> None:
    one = book(("team/*", "1"), shipped=(("team/draft", "2"), ("other/draft", "3")))
    assert [found(one, name) for name in ("team/draft", "other/draft")] == ["1", "3"]


def test_lists_know_names_in_upper_and_lower_case() -> None:
    assert found(book(shipped=(("team/draft", "2"),)), "team/Draft") == "2"
    assert found(book(("team/draft", "2")), "team/Draft") is None


def test_a_model_may_be_known_by_another_name_or_by_none() -> None:
    shipped = (("openai/gpt", "2"), ("groq/gpt", "3"))
    one = book(("openai/*", "1"), shipped=shipped, **{"team/draft": "openai/gpt", "groq/": "", "groq/mine": "groq/gpt"})
    assert [found(one, name) for name in ("team/draft", "groq/gpt", "groq/mine")] == ["1", None, "3"]
    assert found(book(shipped=shipped, **{"team/draft": "openai/gpt"}), "team/draft") == "2"


def test_the_last_price_that_is_in_force_counts() -> None:
    prices = (listed("1", valid_from_ms=DAY_MS), listed("2", valid_from_ms=2 * DAY_MS))
    own = (Listing(("team/draft",), prices), Listing(("team/*",), (listed("9"),)))
    one = PriceBook(Prices(own=own))
    assert [found(one, "team/draft", at) for at in (DAY_MS - 1, DAY_MS, 2 * DAY_MS - 1, 2 * DAY_MS)] == [*"9112"]


@pytest.mark.parametrize(
    ("hour", "now", "worst"), [(0, "1", 30), (1, "3", 30), (3, "3", 30), (4, "1", 30), (23, "2", 30)]
)
def test_hours_of_the_day_change_the_price_and_the_worst_is_the_dearest(hour: int, now: str, worst: int) -> None:
    hours = [
        Hours(start_minute=60, end_minute=240, prompt=Decimal(3), completion=Decimal(1)),
        Hours(start_minute=1380, end_minute=0, prompt=Decimal(2), completion=Decimal(1)),
    ]
    one = PriceBook(
        Prices(own=(Listing(("team/draft",), (msgspec.structs.replace(listed("1"), hours=tuple(hours)),)),))
    )
    price = one.price("team/draft", 5 * DAY_MS + hour * HOUR_MS)
    assert price is not None
    assert (str(price.prompt), price.worst_micros(10, 0)) == (now, worst)


def test_a_card_tells_every_amount_in_digits() -> None:
    card = price(prompt="2E-3", completion="10.00", request="0.0120").card()
    assert (card.prompt, card.completion, card.cached, card.reasoning, card.request) == (
        "0.002", "10", "0.002", "10", "0.012",
    )  # fmt: skip
    assert (card.valid_from, card.long_prompts, card.other_hours) == (None, [], [])
