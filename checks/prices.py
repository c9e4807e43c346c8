"""Makes the table of prices that ships, from the package genai-prices (PyPI, MIT), which is needed nowhere else.

`make prices` writes it, `make check` fails where the installed genai-prices says something else. A price that our words
can't express, and a name that we would look up otherwise than genai-prices does, are left out: a model then counts as
one without a price.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import re
import sys
import warnings
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import msgspec
from genai_prices import types as genai
from genai_prices.data import providers

from andthen.books.price_table import FILE_NAME, PriceTable, VendorPrices
from andthen.books.prices import Hours, Listed, Listing, PriceBook, Prices, Rates, Tier
from andthen.vendors.rows import vendors

TABLE = Path("src/andthen/books") / FILE_NAME
PACKAGE = "genai-prices"


class Source(NamedTuple):
    provider: str
    """Its id in genai-prices."""
    addresses: tuple[str, ...] = ()
    """Where its prices hold; none: at the address of the vendor's row."""


# Not here: vendors that genai-prices doesn't have (dashscope, deepinfra, github, nvidia, sambanova), the one whose
# models' names are the operator's (azure), the one whose price is that of whoever it hands a call to (huggingface), and
# servers of one's own.
SOURCES = {
    "anthropic": Source("anthropic"),
    # Its comments name us-east-1 as the region of its prices.
    "bedrock": Source("aws", ("https://bedrock-runtime.us-east-1.amazonaws.com",)),
    "cerebras": Source("cerebras"),
    "cohere": Source("cohere"),
    "deepseek": Source("deepseek"),
    "fireworks": Source("fireworks"),
    "gemini": Source("google"),
    "groq": Source("groq"),
    "mistral": Source("mistral"),
    "moonshot": Source("moonshotai"),
    "openai": Source("openai"),
    "openrouter": Source("openrouter"),
    "perplexity": Source("perplexity"),
    "together": Source("together"),
    # Its comments: these are the global endpoint's; regions may ask a tenth more.
    "vertex": Source("google", ("https://aiplatform.googleapis.com/*",)),
    "xai": Source("x-ai"),
    "zai": Source("zai"),
}

_RATES = {
    "prompt": "input_mtok",
    "completion": "output_mtok",
    "cached": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "reasoning": "output_reasoning_mtok",
}
_REQUESTS = "requests_kcount"
_NEVER_CAUSED = re.compile(r".*(audio|image|video).*|cache_write_1h_mtok|storage_searches_kcount")
"""Units that no completion of a text counts in: it sends and wants text alone, and asks for no tool and no cache."""
_SEARCHES = "web_searches_kcount"
_SEARCHES_UNASKED = ("perplexity",)
"""Where a model searches of itself, and not only when a tool is asked for."""
_REGEX = re.compile(r"\^((?:\\[.-]|\\d(?:\{\d+\})?|\[[^\]^\\]+\]|[\w./:-])+)(\$?)")
_REGEX_PART = re.compile(r"\\d(?:\{(\d+)\})?|\\(.)|(.)", re.DOTALL)
_MAGIC = re.compile(r"[*?\[]")


class Inexpressible(Exception):
    """What genai-prices says has no word here."""


def provider_of(prefix: str) -> genai.Provider:
    return next(provider for provider in providers if provider.id == SOURCES[prefix].provider)


def table(date: str) -> PriceTable:
    """The whole table, in the order of prefixes and of genai-prices' models."""
    return PriceTable(
        source=PACKAGE,
        version=importlib.metadata.version(PACKAGE),
        date=date,
        license=_license(),
        unit="US dollars per million tokens; `request`: US dollars per call",
        vendors={prefix: vendor_prices(prefix) for prefix in sorted(SOURCES)},
    )


def _license() -> str:
    (file,) = (file for file in importlib.metadata.files(PACKAGE) or () if file.name == "LICENSE")
    return " ".join(file.read_text(encoding="utf-8").split())


def vendor_prices(prefix: str) -> VendorPrices:
    provider, row = provider_of(prefix), vendors()[prefix]
    listings: list[tuple[genai.ModelInfo, Listing]] = []
    for model in provider.models:
        names = dict.fromkeys([model.id.lower(), *patterns(model.match)])
        names |= dict.fromkeys(name.lower() for name in row.listed() if _same(provider, name, model))
        exact = [name for name in names if not _MAGIC.search(name)]
        fitting = [name for name in names if name not in exact or _same(provider, name, model)]
        try:
            listings.append((model, Listing(tuple(fitting), prices_of(model, prefix))))
        except Inexpressible:
            listings.append((model, Listing(tuple(fitting), ())))
    kept = _agreeing(provider, row.listed(), listings)
    return VendorPrices(
        addresses=SOURCES[prefix].addresses or (row.address,),
        models=tuple(listing for listing in kept if listing.names and listing.prices),
    )


def _same(provider: genai.Provider, name: str, model: genai.ModelInfo) -> bool:
    return provider.find_model(name) is model


def _agreeing(
    provider: genai.Provider, more: list[str], listings: list[tuple[genai.ModelInfo, Listing]]
) -> list[Listing]:
    """Without the patterns by which some name that is known would get another model's price than genai-prices gives
    it, or one where that gives none. Where a price has no words, its names still stand in the way of wider ones."""
    prices = {model.id: listing.prices for model, listing in listings}
    names = [(name, place) for place, (_, listing) in enumerate(listings) for name in listing.names]
    known = dict.fromkeys(
        [name for name, _ in names if not _MAGIC.search(name)]
        + [model.id.lower() for model, _ in listings]
        + [name.lower() for name in more]
    )
    book = _marked(names)
    for name in known:
        model = provider.find_model(name)
        wanted = prices[model.id] if model is not None else ()
        while (mark := book.price(f"v/{name}", 0)) is not None:
            place, _, pattern = mark.source.partition(" ")
            if listings[int(place)][1].prices == wanted:
                break
            names.remove((pattern, int(place)))
            book = _marked(names)
    return [
        Listing(tuple(name for name, at in names if at == place), listing.prices)
        for place, (_, listing) in enumerate(listings)
    ]


def _marked(names: list[tuple[str, int]]) -> PriceBook:
    """Our own look-up, which tells as the price's source by which of the names it was found."""
    free = Listed(prompt=Decimal(0), completion=Decimal(0))
    return PriceBook(
        Prices(
            own=tuple(
                Listing((f"v/{name}",), (msgspec.structs.replace(free, source=f"{place} {name}"),))
                for name, place in names
            )
        )
    )


def patterns(clause: object) -> Iterator[str]:
    """Names and patterns of them which a clause takes; of what has none of our form, nothing."""
    match clause:
        case genai.ClauseEquals(equals=text) if not _MAGIC.search(text):
            yield text.lower()
        case genai.ClauseStartsWith(starts_with=text) if not _MAGIC.search(text):
            yield f"{text.lower()}*"
        case genai.ClauseEndsWith(ends_with=text) if not _MAGIC.search(text):
            yield f"*{text.lower()}"
        case genai.ClauseContains(contains=text) if not _MAGIC.search(text):
            yield f"*{text.lower()}*"
        case genai.ClauseRegex(regex=regex) if found := _REGEX.fullmatch(regex):
            yield "".join(_of_regex(found[1])).lower() + ("" if found[2] else "*")
        case genai.ClauseOr(or_=clauses):
            for one in clauses:
                yield from patterns(one)


def _of_regex(regex: str) -> Iterator[str]:
    for part in _REGEX_PART.finditer(regex):
        if part[2] or part[3]:
            yield part[2] or part[3]
        else:
            yield "[0-9]" * int(part[1] or 1)


def prices_of(model: genai.ModelInfo, prefix: str) -> tuple[Listed, ...]:
    """A model's prices by their dates. Raises `Inexpressible`."""
    dated: dict[int, Listed] = {}
    hours: list[Hours] = []
    conditions = model.prices if isinstance(model.prices, list) else [genai.ConditionalPrice(prices=model.prices)]
    for condition in conditions:
        price = _price(condition.prices, prefix)
        match condition.constraint:
            case genai.TimeOfDateConstraint(start_time=start, end_time=end):
                if price.tiers or price.request or {start.utcoffset(), end.utcoffset()} - {None, datetime.timedelta()}:
                    raise Inexpressible
                rates = msgspec.structs.asdict(price.rates())
                hours.append(Hours(start_minute=_minute(start), end_minute=_minute(end), **rates))
                continue
            case genai.StartDateConstraint(start_date=start):
                day = datetime.datetime(start.year, start.month, start.day, tzinfo=datetime.UTC)
                from_ms = int(day.timestamp()) * 1000
            case _:
                from_ms = 0
        if hours or (dated and from_ms <= max(dated)):  # a later one hides an earlier one: not so here
            raise Inexpressible
        dated[from_ms] = msgspec.structs.replace(price, valid_from_ms=from_ms)
    if hours and any(price.tiers for price in dated.values()):
        raise Inexpressible
    return tuple(msgspec.structs.replace(price, hours=tuple(hours)) for price in dated.values())


def _minute(time: datetime.time) -> int:
    return time.hour * 60 + time.minute


def _price(price: genai.ModelPrice, prefix: str) -> Listed:
    units = {unit: value for unit, value in price.__dict__.items() if value is not None}
    request = units.pop(_REQUESTS, None)
    for unit in [unit for unit in units if _NEVER_CAUSED.fullmatch(unit)]:
        del units[unit]
    if prefix not in _SEARCHES_UNASKED:
        units.pop(_SEARCHES, None)
    if isinstance(request, genai.TieredPrices) or units.keys() - _RATES.values():
        raise Inexpressible
    if not {_RATES["prompt"], _RATES["completion"]} <= units.keys():
        raise Inexpressible
    starts = sorted({tier.start for value in units.values() for tier in getattr(value, "tiers", ())})
    return Listed(
        **msgspec.structs.asdict(_rates(units, 0)),
        request=None if request is None else request / 1000,
        tiers=tuple(Tier(above=start, **msgspec.structs.asdict(_rates(units, start + 1))) for start in starts),
    )


def _rates(units: dict[str, Decimal | genai.TieredPrices], prompt: int) -> Rates:
    """The rates of a call with so many tokens in its prompt."""
    found: dict[str, Decimal] = {}
    for name, unit in _RATES.items():
        value = units.get(unit)
        if isinstance(value, genai.TieredPrices):
            value = next((tier.price for tier in reversed(value.tiers) if prompt > tier.start), value.base)
        if value is not None:
            found[name] = value
    return Rates(**found)


def written(made: PriceTable) -> bytes:
    """The file: a line for each model, so that a change shows which."""
    head = msgspec.to_builtins(made)
    lines = []
    for prefix, vendor in made.vendors.items():
        models = ",\n".join(f"        {msgspec.json.encode(model).decode()}" for model in vendor.models)
        addresses = msgspec.json.encode(vendor.addresses).decode()
        lines.append(
            f'    "{prefix}": {{\n      "addresses": {addresses},\n      "models": [\n{models}\n      ]\n    }}'
        )
    facts = "".join(
        f'  "{name}": {msgspec.json.encode(head[name]).decode()},\n'
        for name in PriceTable.__struct_fields__
        if name != "vendors"
    )
    every = ",\n".join(lines)
    return f'{{\n{facts}  "vendors": {{\n{every}\n  }}\n}}\n'.encode()


def main(path: Path, *, write: bool) -> int:
    warnings.simplefilter("error")
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    there = path.read_bytes() if path.exists() else b""
    try:
        made = table(msgspec.json.decode(there, type=PriceTable).date)
    except msgspec.DecodeError:
        made = table(today)
    if there == written(made):
        print(f"{path}: fresh")
        return 0
    if not write:
        print(f"{path}: not what {PACKAGE} {made.version} says; run `make prices`")
        return 1
    path.write_bytes(written(msgspec.structs.replace(made, date=today)))
    print(f"{path}: written, {sum(len(vendor.models) for vendor in made.vendors.values())} models")
    return 0


if __name__ == "__main__":
    sys.exit(main(TABLE, write="--write" in sys.argv[1:]))
