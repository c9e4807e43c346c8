"""The table of prices that ships: it is whole, and says what genai-prices calculates."""

from __future__ import annotations

import datetime
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

import genai_prices
import pytest
from genai_prices import types as genai

from andthen.books.price_table import price_book, price_table
from andthen.books.prices import Prices
from andthen.vendors.rows import vendors
from checks import prices

ROOT = Path(__file__).parents[2]
BOOK = price_book(Prices(lists=tuple(price_table().vendors)))
NOW = datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC)
MODELS = [
    "anthropic/claude-haiku-5-5",
    "anthropic/claude-opus-5",
    "anthropic/claude-sonnet-4-5-20250929",
    "bedrock/us.anthropic.claude-sonnet-4-6",
    "cohere/command-r-08-2024",
    "deepseek/deepseek-chat",
    "deepseek/deepseek-v4-flash",
    "fireworks/accounts/fireworks/models/kimi-k3",
    "gemini/gemini-3.1-pro-preview",
    "gemini/gemini-3.8-flash",
    "groq/openai/gpt-oss-120b",
    "mistral/mistral-medium-latest",
    "openai/gpt-4o-2024-08-06",
    "openai/gpt-5.4",
    "openai/gpt-6-sol-2026-09-01",
    "openrouter/anthropic/claude-sonnet-4.6",
    "xai/grok-4.6",
    "zai/glm-5.3-flash",
]


def theirs(name: str, at: datetime.datetime, prompt: int, completion: int, cached: int) -> int:
    """Millionths of a dollar by genai-prices' own calculation."""
    prefix, _, model = name.partition("/")
    usage = genai_prices.Usage(
        input_tokens=prompt, output_tokens=completion, **({"cache_read_tokens": cached} if cached else {})
    )
    known = genai_prices.calc_price(
        usage, model, provider_id=prices.SOURCES[prefix].provider, genai_request_timestamp=at
    )
    return int((known.total_price * 1_000_000).to_integral_value(ROUND_CEILING))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("prompt", "completion", "cached"), [(1, 0, 0), (1234, 567, 0), (99_999, 1, 99_998), (300_001, 4321, 12_345)]
)
def test_a_call_costs_what_genai_prices_says(name: str, prompt: int, completion: int, cached: int) -> None:
    for at in (NOW, NOW.replace(hour=2), NOW.replace(hour=20), NOW.replace(month=2), NOW.replace(year=2027)):
        price = BOOK.price(name, int(at.timestamp() * 1000))
        assert price is not None
        assert price.cost_micros(prompt, completion, cached=cached) == theirs(name, at, prompt, completion, cached)


def test_it_is_what_the_locked_genai_prices_makes(capsys: pytest.CaptureFixture[str]) -> None:
    assert prices.main(ROOT / prices.TABLE, write=False) == 0
    assert "fresh" in capsys.readouterr().out


def test_a_stale_table_fails_and_writing_mends_it(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    path.write_bytes((ROOT / prices.TABLE).read_bytes().replace(b'"2.5"', b'"2.6"', 1))
    assert prices.main(path, write=False) == 1
    assert prices.main(path, write=True) == 0
    assert prices.main(path, write=False) == 0


def test_no_table_is_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    assert prices.main(path, write=False) == 1
    assert prices.main(path, write=True) == 0
    assert prices.main(path, write=False) == 0


def test_it_says_where_it_is_from() -> None:
    table = price_table()
    assert table.source == "genai-prices"
    assert table.version.count(".") == 2
    assert table.license.startswith("The MIT License")
    assert datetime.date.fromisoformat(table.date) <= datetime.datetime.now(tz=datetime.UTC).date()


def test_it_names_vendors_that_exist_at_addresses_of_theirs() -> None:
    assert price_table().vendors.keys() <= vendors().keys()
    for prefix, vendor in price_table().vendors.items():
        host = vendors()[prefix].address.split("/")[2].rpartition("}")[2].lstrip("-.")
        assert all(host in pattern for pattern in vendor.addresses) or prefix == "bedrock"


def test_every_price_is_sound() -> None:
    for vendor in price_table().vendors.values():
        for listing in vendor.models:
            assert listing.names
            assert listing.prices
            starts = [price.valid_from_ms for price in listing.prices]
            assert starts == sorted(set(starts))
            for price in listing.prices:
                for rates in (price, *price.tiers, *price.hours):
                    assert all(
                        rate is None or Decimal(0) <= rate <= 10_000
                        for rate in (rates.prompt, rates.completion, rates.cached, rates.cache_write, rates.reasoning)
                    )
                assert not (price.tiers and price.hours)


def test_what_the_vendors_rows_list_has_a_price_where_genai_prices_knows_one() -> None:
    for prefix in price_table().vendors:
        provider = prices.provider_of(prefix)
        for name in vendors()[prefix].listed():
            model = provider.find_model(name)
            known = BOOK.price(f"{prefix}/{name}", int(NOW.timestamp() * 1000)) is not None
            assert known == (model is not None and _has_words(model, prefix)), name


def _has_words(model: genai.ModelInfo, prefix: str) -> bool:
    try:
        return bool(prices.prices_of(model, prefix))
    except prices.Inexpressible:
        return False


@pytest.mark.parametrize(
    ("clause", "wanted"),
    [
        (genai.ClauseEquals(equals="GPT"), ["gpt"]),
        (genai.ClauseStartsWith(starts_with="gpt-"), ["gpt-*"]),
        (genai.ClauseOr(or_=[genai.ClauseEndsWith(ends_with="x"), genai.ClauseContains(contains="y")]), ["*x", "*y*"]),
        (genai.ClauseRegex(regex=r"^gpt-5\.6-\d{2}$"), ["gpt-5.6-[0-9][0-9]"]),
        (genai.ClauseRegex(regex=r"^opus[-@]\d"), ["opus[-@][0-9]*"]),
        (genai.ClauseRegex(regex=r"^(?!.*-tts)"), []),
        (genai.ClauseEquals(equals="odd*"), []),
        (genai.ClauseAnd(and_=[genai.ClauseStartsWith(starts_with="a"), genai.ClauseEndsWith(ends_with="z")]), []),
    ],
)
def test_a_clause_becomes_patterns_or_nothing(clause: object, wanted: list[str]) -> None:
    assert list(prices.patterns(clause)) == wanted


def test_what_has_no_words_is_left_out() -> None:
    by_characters = genai.ModelInfo(
        id="m",
        match=genai.ClauseEquals(equals="m"),
        prices=genai.ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(1), input_mchars=Decimal(1)),
    )
    with pytest.raises(prices.Inexpressible):
        prices.prices_of(by_characters, "openai")
    embedding = genai.ModelInfo(
        id="m", match=genai.ClauseEquals(equals="m"), prices=genai.ModelPrice(input_mtok=Decimal(1))
    )
    with pytest.raises(prices.Inexpressible):
        prices.prices_of(embedding, "openai")
