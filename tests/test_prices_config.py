"""Prices in the settings: to the digit, by name and day, over the table that ships."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from andthen.books.price_table import price_book, price_table
from andthen.books.prices import Price
from andthen.config import ConfigError, load

NOW_MS = int(datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC).timestamp()) * 1000
DAY_MS = 86_400_000
SERVER = 'address = "http://127.0.0.1:9/v1"\nlanguage = "openai_completions"\n'
TEAM = f'[models."team/draft"]\n{SERVER}'


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"ANDTHEN_HOME": str(tmp_path)}


def price(environ: dict[str, str], text: str, name: str, at_ms: int = NOW_MS) -> Price | None:
    (Path(environ["ANDTHEN_HOME"]) / "andthen.toml").write_text(text)
    return price_book(load(environ).prices).price(name, at_ms)


def amounts(found: Price | None) -> tuple[str, str] | None:
    return None if found is None else (str(found.prompt), str(found.completion))


def test_the_embedded_engine_costs_nothing_unless_a_price_is_set(environ: dict[str, str]) -> None:
    assert amounts(price(environ, "", "local/tale")) == ("0", "0")
    text = '[prices."local/tale"]\nprompt = 0.01\ncompletion = "0.02"\n'
    assert amounts(price(environ, text, "local/tale")) == ("0.01", "0.02")


def test_a_server_of_ones_own_has_no_price_until_one_is_set(environ: dict[str, str]) -> None:
    assert price(environ, TEAM, "team/draft") is None
    found = price(environ, f'{TEAM}[prices."team/draft"]\nprompt = 1\ncompletion = 2\n', "team/draft")
    assert amounts(found) == ("1", "2")
    assert found is not None
    assert found.source == f"set in {environ['ANDTHEN_HOME']}/andthen.toml"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('"0.20"', "0.20"),
        ("0.1", "0.1"),
        ("0.30000000001", "0.30000000001"),
        ("1234.123456789012", "1234.123456789012"),
        ("3", "3"),
        ("2e-3", "0.002"),
        ("1_000.5", "1000.5"),
        ('"1000000"', "1000000"),
    ],
)
def test_amounts_are_read_to_the_digit(environ: dict[str, str], written: str, read: str) -> None:
    text = f'{TEAM}[prices."team/draft"]\nprompt = {written}\ncompletion = 0\n'
    assert amounts(price(environ, text, "team/draft")) == (read, "0")


@pytest.mark.parametrize(
    "written",
    ["-1", '"-1"', "true", "nan", "inf", '"1e3"', '""', '"1,5"', "1000000.1", "0.0000000000001", "[1]", "2026-12-01"],
)
def test_what_is_no_amount_is_an_error_with_its_line(environ: dict[str, str], written: str) -> None:
    text = f'{TEAM}[prices."team/draft"]\ncompletion = 0\nprompt = {written}\n'
    with pytest.raises(ConfigError, match=r'line 6: \[prices."team/draft"\] prompt must be an amount from 0'):
        price(environ, text, "team/draft")


def test_prices_have_days_from_which_they_hold(environ: dict[str, str]) -> None:
    head = '[[prices."team/draft"]]\ncompletion = 0\n'
    text = f"{TEAM}{head}prompt = 3\nfrom = 2026-12-01\n{head}prompt = 2\nfrom = 2026-11-22\n"
    december = int(datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC).timestamp()) * 1000
    days = (NOW_MS - 2 * DAY_MS, NOW_MS, december - 1, december)
    found = [amounts(price(environ, text, "team/draft", day)) for day in days]
    assert found == [None, ("2", "0"), ("2", "0"), ("3", "0")]
    with pytest.raises(ConfigError, match=r"line 8: .* has the same `from` as another"):
        price(environ, text.replace("12-01", "11-22"), "team/draft")
    with pytest.raises(ConfigError, match=r'line 7: \[\[prices."team/draft"\]\] from must be a day, such as'):
        price(environ, text.replace("2026-12-01", '"2026-12-01"'), "team/draft")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[prices."team/draft"]\nprompt = 1\n', 'line 4: [prices."team/draft"] lacks `completion`'),
        ('[prices."team/draft"]\nprompts = 1\n', "line 5: [prices.\"team/draft\"] has no setting `prompts`. Did"),
        ('[prices]\n"team/draft" = 1\n', "line 5: `team/draft` is a table: write"),
        ("prices = 1\n", 'holds a table for each: write [prices."VENDOR/NAME"]'),
        ('[prices.draft]\nprompt = 1\n', "line 4: [prices.\"draft\"]: a price is for vendor/model"),
        ('[prices."tema/draft"]\nprompt = 1\n', 'line 4: [prices."tema/draft"] is no model that is configured. Did'),
        ('[prices."local/none"]\nprompt = 1\n', 'line 4: [prices."local/none"] is no model that is configured'),
    ],
)  # fmt: skip
def test_a_mistake_names_its_line_and_the_remedy(environ: dict[str, str], text: str, message: str) -> None:
    whole = f"{text}{TEAM}" if text.startswith("prices") else f"{TEAM}{text}"
    with pytest.raises(ConfigError) as caught:
        price(environ, whole, "team/draft")
    assert message in str(caught.value)


def test_the_price_of_a_model_that_is_switched_off_may_stay(environ: dict[str, str]) -> None:
    text = '[models."team/draft"]\nenabled = false\n[prices."team/draft"]\nprompt = 1\ncompletion = 1\n'
    assert amounts(price(environ, text, "team/draft")) == ("1", "1")


def test_a_name_for_others_has_no_price_of_its_own(environ: dict[str, str]) -> None:
    text = f'{TEAM}[models."team/any"]\nalias = "team/draft"\n[prices."team/any"]\nprompt = 1\ncompletion = 1\n'
    with pytest.raises(ConfigError, match="costs what the model does that answers: team/draft"):
        price(environ, text, "team/any")


def test_a_vendors_list_holds_where_the_vendor_is(environ: dict[str, str]) -> None:
    environ |= {"OPENAI_API_KEY": "k", "GROQ_API_KEY": "k"}
    assert amounts(price(environ, "", "openai/gpt-4o")) == ("2.5", "10")
    assert price(environ, "", "openai/no-such-model") is None
    found = price(environ, "", "openai/gpt-4o")
    assert found is not None
    assert found.source == price_table().origin
    elsewhere = '[vendors.openai]\naddress = "https://eu.api.openai.com/v1"\n'
    assert price(environ, elsewhere, "openai/gpt-4o") is None
    assert price(environ, elsewhere, "groq/llama-3.1-8b-instant") is not None


def test_a_model_of_a_vendor_under_another_name_costs_what_the_vendor_asks(environ: dict[str, str]) -> None:
    environ |= {"OPENAI_API_KEY": "k"}
    text = '[models."team/chat"]\nvendor = "openai"\nmodel = "gpt-4o"\n'
    assert amounts(price(environ, text, "team/chat")) == ("2.5", "10")
    assert price(environ, f'{text}address = "http://127.0.0.1:9/v1"\nkey = "k"\n', "team/chat") is None
    dearer = '[prices."openai/*"]\nprompt = 9\ncompletion = 9\n'
    assert amounts(price(environ, text + dearer, "team/chat")) == ("9", "9")


def test_prices_of_a_region_hold_in_that_region(environ: dict[str, str]) -> None:
    environ |= {"AWS_ACCESS_KEY_ID": "i", "AWS_SECRET_ACCESS_KEY": "k"}
    name = "bedrock/amazon.nova-lite-v1:0"
    assert amounts(price(environ | {"AWS_REGION": "us-east-1"}, "", name)) == ("0.06", "0.24")
    assert price(environ | {"AWS_REGION": "eu-west-1"}, "", name) is None
    environ |= {"VERTEX_ACCESS_TOKEN": "k", "VERTEX_PROJECT": "p", "VERTEX_LOCATION": "europe-west1"}
    assert price(environ, "", "vertex/gemini-3.8-flash") is None
    everywhere = '[vendors.vertex]\naddress = "https://aiplatform.googleapis.com/v1/projects/p/locations/global/publishers/google"'
    assert price(environ, everywhere, "vertex/gemini-3.8-flash") is not None
