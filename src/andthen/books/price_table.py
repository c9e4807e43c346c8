"""The table of prices that ships with the package: `prices.json`, made by `make prices`. Reads that one file."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from andthen.books.prices import Listing, PriceBook, Prices

FILE_NAME = "prices.json"


class VendorPrices(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a vendor asks for its models, by their own names in lower case."""

    addresses: tuple[str, ...]
    """Patterns of the addresses where it asks that; elsewhere, as in another region, it may ask more."""
    models: tuple[Listing, ...]

    def holds_at(self, address: str) -> bool:
        """Whether the list is that of a server with this address."""
        return any(fnmatch.fnmatchcase(address.rstrip("/"), pattern) for pattern in self.addresses)


class PriceTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    source: str
    """What it was made from."""
    version: str
    date: str
    """The day on which it was made: `2026-11-23`."""
    license: str
    """That of what it was made from."""
    unit: str
    vendors: dict[str, VendorPrices]
    """By the prefix of the vendor's row."""

    @property
    def origin(self) -> str:
        """Source, version and date in a few words."""
        return f"{self.source} {self.version}, {self.date}"


@cache
def price_table() -> PriceTable:
    """The table as it ships."""
    return msgspec.json.decode((resources.files(__package__) / FILE_NAME).read_bytes(), type=PriceTable)


def price_book(prices: Prices) -> PriceBook:
    """What finds a model's price, by the settings and the table."""
    return PriceBook(prices, _listings(prices.lists))


def _listings(prefixes: Iterable[str]) -> Iterator[Listing]:
    """The vendors' lists by whole names, each price with where it comes from."""
    for prefix in prefixes:
        for listing in price_table().vendors[prefix].models:
            yield Listing(
                tuple(f"{prefix}/{name}" for name in listing.names),
                tuple(replace(price, source=price_table().origin) for price in listing.prices),
            )
