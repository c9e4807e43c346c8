"""`andthen prices`: what is known of what the configured models cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from andthen.cli.settings import config_option, settings
from andthen.cli.tables import table

if TYPE_CHECKING:
    from andthen.books.prices import Price
    from andthen.config import Config
    from andthen.contract.listing import ModelPrice

_UNKNOWN = "–"
_NOTE = "US dollars per million tokens; REQUEST: US dollars for each call. – is not known."


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_option
def prices(config_file: Path | None, *, as_json: bool) -> None:
    """Show what the configured models cost now.

    A name that stands for several costs what the one costs that answers. Prices come from [prices] in the settings
    file, else from the table that ships with the package.

    \b
        andthen prices
        andthen prices --json
    """
    config = settings(config_file)
    found = prices_now([*config.engine.models, *config.upstream.listed()], config)
    cards = {name: None if price is None else price.card() for name, price in found.items()}
    if as_json:
        told = [{"model": name, "price": msgspec.to_builtins(card)} for name, card in cards.items()]
        click.echo(json.dumps(told, indent=2))
        return
    rows = [_row(name, card) for name, card in cards.items()]
    head = ["NAME", "PROMPT", "CACHED", "COMPLETION", "REASONING", "REQUEST", "MORE", "SOURCE"]
    click.echo(f"{table(head, rows)}\n\n{_NOTE}")


def prices_now(names: Iterable[str], config: Config) -> dict[str, Price | None]:
    """What configured models cost at this moment; None where that isn't known."""
    from andthen.books.price_table import price_book

    book, now_ms = price_book(config.prices), time.time_ns() // 1_000_000
    return {name: book.price(name, now_ms) for name in names}


def in_words(price: Price | None) -> str:
    """A price in a line."""
    if price is None:
        return "not known"
    card = price.card()
    parts = [f"{card.prompt} for prompts"]
    if card.cached != card.prompt:
        parts.append(f"{card.cached} from the cache")
    parts.append(f"{card.completion} for completions")
    if card.reasoning != card.completion:
        parts.append(f"{card.reasoning} for reasoning")
    per_call = f", {card.request} for each call" if card.request != "0" else ""
    more = f"; {_more(card)}" if _more(card) else ""
    return f"US dollars per million tokens: {', '.join(parts)}{per_call}{more} ({card.source})"


def _row(name: str, card: ModelPrice | None) -> list[str]:
    if card is None:
        return [name, *[_UNKNOWN] * 5, "", ""]
    amounts = [card.prompt, card.cached, card.completion, card.reasoning, card.request]
    return [name, *amounts, _more(card), card.source]


def _more(card: ModelPrice) -> str:
    """What the plain amounts don't say."""
    long = [
        f"{tier.prompt} and {tier.completion} with prompts above {tier.above_tokens:,} tokens"
        for tier in card.long_prompts
    ]
    hours = ["differs by the hour"] if card.other_hours else []
    since = [] if card.valid_from is None else [f"since {datetime.fromtimestamp(card.valid_from, UTC):%Y-%m-%d}"]
    return "; ".join([*long, *hours, *since])
