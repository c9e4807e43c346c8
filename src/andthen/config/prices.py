"""What models cost: the operator's own prices, and of the table that ships what holds for the configured models."""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal

import msgspec
from msgspec import Struct
from msgspec.structs import fields, replace

from andthen.books.price_table import price_table
from andthen.books.prices import Listed, Listing, Prices
from andthen.config.file import SettingsFile
from andthen.config.local_models import LOCAL
from andthen.config.values import near
from andthen.vendors.rows import vendors
from andthen.vendors.settings import Remote, Upstream

SECTION = "prices"

_AMOUNT = 'an amount from 0 to 1000000 with at most 12 decimals, such as "0.20"'
_LARGEST = Decimal(1_000_000)
_DECIMALS = 12
_DIGITS = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_PATTERN = re.compile(r"[*?\[]")
_FREE = Listing(
    (f"{LOCAL}*",), (Listed(prompt=Decimal(0), completion=Decimal(0), source="computed here, at no price unless set"),)
)


class PricesTable(Struct, frozen=True, kw_only=True, rename={"since": "from"}):
    """What calls to a model cost, where the table that ships doesn't know it or knows it otherwise: by the whole name
    of a model, or a pattern (`*`, `?`, `[…]`) of such names; the most specific counts. In US dollars per million
    tokens. Several tables for one name (`[[prices."VENDOR/NAME"]]`) tell prices by their dates."""

    prompt: str | float
    """For each million tokens of prompts."""
    completion: str | float
    """For each million tokens that are made."""
    cached: str | float | None = None
    """For tokens of prompts that the vendor reads from its cache. Unset: as `prompt`."""
    cache_write: str | float | None = None
    """For tokens of prompts that it writes to its cache. Unset: as `prompt`."""
    reasoning: str | float | None = None
    """For tokens that the model reasons with. Unset: as `completion`."""
    request: str | float | None = None
    """For each call, whatever its tokens: US dollars."""
    since: datetime.date | None = None
    """The day, in UTC, from which this is the price. Unset: always."""


_NAMES = {field.encode_name: field.required for field in fields(PricesTable)}
_FROM = "from"


def prices(file: SettingsFile, upstream: Upstream, local: Collection[str]) -> Prices:
    """All that is known of what the configured models cost.

    Raises:
        ConfigError
    """
    own = []
    for name in file.tables(SECTION, '[prices."VENDOR/NAME"]'):
        _check_name(name, file, upstream, local)
        own.append(Listing((name,), tuple(_listed(name, file))))
    remotes = [*upstream.vendors.values(), *upstream.models.values()]
    lists = dict.fromkeys(remote.prefix for remote in remotes if _listed_there(remote))
    return Prices(own=tuple(own), lists=tuple(lists), last=(_FREE,), known_as=dict(_known_as(upstream)))


def _known_as(upstream: Upstream) -> Iterator[tuple[str, str]]:
    """Models by the names that lists know them by; those that stand where the vendor's list doesn't hold, by none."""
    for name, remote in upstream.models.items():
        yield name, f"{remote.prefix}/{remote.model}" if _listed_there(remote) else ""
    for prefix, vendor in upstream.vendors.items():
        if not _listed_there(vendor):
            yield f"{prefix}/", ""


def _listed_there(remote: Remote) -> bool:
    vendor = price_table().vendors.get(remote.prefix)
    return vendor is not None and vendor.holds_at(remote.address)


def _check_name(name: str, file: SettingsFile, upstream: Upstream, local: Collection[str]) -> None:
    label = f'[prices."{name}"]'
    if name in upstream.routes:
        stands_for = ", ".join(share.model for share in upstream.routes[name])
        raise file.error(
            (SECTION, name), f"{label} has no price of its own: it costs what the model does that answers: {stands_for}"
        )
    prefix, slash, model = name.partition("/")
    if not (prefix and model) and not (_PATTERN.search(name) and not slash):
        raise file.error((SECTION, name), f'{label}: a price is for vendor/model, such as [prices."openai/gpt-4o"]')
    named = {*local, *file.tables("models", "")}  # also those that are switched off for a while
    known = {LOCAL.rstrip("/"), *vendors(), *file.tables("vendors", ""), *(one.partition("/")[0] for one in named)}
    unknown = not _PATTERN.search(prefix) and prefix not in known
    if unknown or (name.startswith(LOCAL) and not _PATTERN.search(name) and name not in named):
        raise file.error((SECTION, name), f"{label} is no model that is configured. {near(name, named | known)}")


def _listed(name: str, file: SettingsFile) -> Iterator[Listed]:
    """A name's prices by their dates."""
    found = file.exact((SECTION, name))
    tables = found if isinstance(found, list) else [found]
    label = f'[prices."{name}"]' if not isinstance(found, list) else f'[[prices."{name}"]]'
    read: dict[int, Listed] = {}
    for place, table in enumerate(tables):
        keys = (SECTION, name, place) if isinstance(found, list) else (SECTION, name)
        price = _price(table, keys, label, file)
        if price.valid_from_ms in read:
            raise file.error(keys, f"{label} has the same `from` as another for this name: give each a day of its own")
        read[price.valid_from_ms] = price
    for start in sorted(read):
        yield read[start]


def _price(table: object, keys: tuple[str | int, ...], label: str, file: SettingsFile) -> Listed:
    if not isinstance(table, dict):
        raise file.error(keys, f"`{keys[1]}` is a table: write {label}, its prices below")
    for key in table:
        if key not in _NAMES:
            raise file.error([*keys, key], f"{label} has no setting `{key}`. {near(key, _NAMES)}")
    for key, required in _NAMES.items():
        if required and key not in table:
            raise file.error(keys, f'{label} lacks `{key}`: write {_AMOUNT}; "0" where it costs nothing')
    given = [key for key in table if key != _FROM]
    amounts = {key: _amount(table[key], [*keys, key], f"{label} {key}", file) for key in given}
    start_ms = _from_ms(table, keys, label, file)
    return replace(msgspec.convert(amounts, Listed), valid_from_ms=start_ms, source=f"set in {file.path}")


def _amount(value: object, keys: list[str | int], label: str, file: SettingsFile) -> Decimal:
    amount = _decimal(value)
    if amount is None or not 0 <= amount <= _LARGEST:
        raise file.error(keys, f"{label} must be {_AMOUNT}. Change or remove the line")
    return amount


def _decimal(value: object) -> Decimal | None:
    """What is written, to the digit; None where that is no amount."""
    written = isinstance(value, str) and _DIGITS.fullmatch(value) is not None
    if isinstance(value, str | int) and (written or type(value) is int):
        value = Decimal(value)
    if not isinstance(value, Decimal) or not value.is_finite():
        return None
    exponent = value.as_tuple().exponent
    return value if isinstance(exponent, int) and -exponent <= _DECIMALS else None


def _from_ms(table: Mapping[str, object], keys: tuple[str | int, ...], label: str, file: SettingsFile) -> int:
    day = table.get(_FROM)
    if day is None:
        return 0
    if type(day) is not datetime.date or day.year < 1970:
        raise file.error([*keys, _FROM], f"{label} from must be a day, such as 2026-12-01. Change or remove the line")
    return int(datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()) * 1000
