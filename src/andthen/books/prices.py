"""What calls cost. Pure: prices and counts of tokens in, money out; no clock, no file, no vendor.

Prices are US dollars per million tokens, which is the same number as millionths of a dollar per token. All arithmetic
is exact; a call's cost is rounded once, up to whole millionths, so that a sum of calls is never below what they cost
and at most one millionth for each call above it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import ROUND_CEILING, Context, Decimal, Inexact
from operator import itemgetter
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from andthen.contract.listing import LongPromptPrices, ModelPrice, TokenPrices

_EXACT = Context(prec=200, traps=[Inexact])
"""More digits than any count times any price has; an operation that would round fails instead."""
_MICROS = Decimal(1_000_000)
_NOTHING = Decimal(0)
_MINUTE_MS = 60_000
_DAY_MINUTES = 1_440
_PATTERN = re.compile(r"[*?\[]")


class Rates(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """US dollars per million tokens, not negative."""

    prompt: Decimal
    completion: Decimal
    cached: Decimal | None = None
    """For tokens of the prompt that the vendor read from its cache; None: as `prompt`."""
    cache_write: Decimal | None = None
    """For tokens of the prompt that it wrote to its cache; None: as `prompt`."""
    reasoning: Decimal | None = None
    """For tokens of the completion that it reasoned with; None: as `completion`."""

    def told(self) -> TokenPrices:
        """As the models routes tell it."""
        return TokenPrices(**_decimals(self))

    def rates(self) -> Rates:
        """Nothing but the rates."""
        return Rates(**{name: getattr(self, name) for name in Rates.__struct_fields__})


class Tier(Rates, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The rates of all tokens of a call whose prompt is long."""

    above: int
    """Tokens of the prompt that must be exceeded."""


class Hours(Rates, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The rates at some hours of each day, UTC."""

    start_minute: int
    end_minute: int
    """The first minute that is not in it any more; past midnight where it is below `start_minute`."""

    def holds(self, at_ms: int) -> bool:
        minute = at_ms // _MINUTE_MS % _DAY_MINUTES
        if self.end_minute < self.start_minute:
            return minute >= self.start_minute or minute < self.end_minute
        return self.start_minute <= minute < self.end_minute


class Price(Rates, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a call to a model costs at one moment."""

    request: Decimal | None = None
    """US dollars for each call; None: nothing."""
    tiers: tuple[Tier, ...] = ()
    """By `above`, ascending."""
    also: tuple[Rates, ...] = ()
    """The rates of other hours of the day, for what may be billed later than it was reserved."""
    valid_from_ms: int = 0
    """Unix time in milliseconds."""
    source: str = ""
    """Where it was read, and when."""

    def cost_micros(
        self, prompt: int, completion: int, *, cached: int = 0, cache_write: int = 0, reasoning: int = 0
    ) -> int:
        """What one call costs, in millionths of a US dollar, rounded up.

        A count that is negative, or of a part that is greater than its whole, is taken for the nearest that is not.

        Args:
            prompt: all tokens of the prompt; `cached` and `cache_write` are parts of them.
            completion: all tokens that were made; `reasoning` is a part of them.
        """
        prompt, completion = max(0, prompt), max(0, completion)
        read = min(max(0, cached), prompt)
        written = min(max(0, cache_write), prompt - read)
        thought = min(max(0, reasoning), completion)
        rates = self._rates(prompt)
        return self._micros(
            (prompt - read - written, rates.prompt),
            (read, _or(rates.cached, rates.prompt)),
            (written, _or(rates.cache_write, rates.prompt)),
            (completion - thought, rates.completion),
            (thought, _or(rates.reasoning, rates.completion)),
        )

    def worst_micros(self, prompt: int, completion: int) -> int:
        """The most that one call of at most so many tokens can cost, in millionths of a US dollar: every token of the
        dearest kind, at the dearest rates that such a prompt or another hour of the day can meet."""
        prompt, completion = max(0, prompt), max(0, completion)
        return max(
            self._micros((prompt, _dearest_prompt(rates)), (completion, _dearest_completion(rates)))
            for rates in (self, *self.also, *(tier for tier in self.tiers if prompt > tier.above))
        )

    def card(self) -> ModelPrice:
        """As the models routes tell it."""
        return ModelPrice(
            **_decimals(self),
            request=_decimal(self.request or _NOTHING),
            long_prompts=[LongPromptPrices(above_tokens=tier.above, **_decimals(tier)) for tier in self.tiers],
            other_hours=[rates.told() for rates in self.also],
            valid_from=self.valid_from_ms // 1000 or None,
            source=self.source,
        )

    def _rates(self, prompt: int) -> Rates:
        found: Rates = self
        for tier in self.tiers:
            if prompt > tier.above:
                found = tier
        return found

    def _micros(self, *parts: tuple[int, Decimal]) -> int:
        total = _EXACT.multiply(self.request or _NOTHING, _MICROS)
        for count, rate in parts:
            total = _EXACT.fma(Decimal(count), rate, total)
        return int(total.to_integral_value(ROUND_CEILING))


class Listed(Price, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A price as a list has it: from a day on, with what differs at some hours."""

    hours: tuple[Hours, ...] = ()
    """The last that holds counts. Only where there are no tiers."""

    def at(self, at_ms: int) -> Price:
        """As it is at that moment."""
        if not self.hours:
            return self
        now = next((hours for hours in reversed(self.hours) if hours.holds(at_ms)), None)
        also = tuple(one.rates() for one in (self, *self.hours) if one is not now)
        rates = self if now is None else now
        own = {name: getattr(rates, name) for name in Rates.__struct_fields__}
        return replace(self, **own, also=also, hours=())


class Listing(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The prices of some models."""

    names: tuple[str, ...]
    """Whole names or patterns of them (`*`, `?`, `[…]`)."""
    prices: tuple[Listed, ...]
    """By `valid_from_ms`, ascending."""

    def at(self, at_ms: int) -> Price | None:
        found = None
        for price in self.prices:
            if price.valid_from_ms <= at_ms:
                found = price
        return None if found is None else found.at(at_ms)


class Prices(Struct, frozen=True, kw_only=True):
    """What is set about prices. Plain data, for a pipe."""

    own: tuple[Listing, ...] = ()
    """The operator's, which come first; upper and lower case differ in them."""
    lists: tuple[str, ...] = ()
    """Prefixes of the vendors whose lists in the table that ships come next."""
    last: tuple[Listing, ...] = ()
    """What counts where neither knows a price."""
    known_as: dict[str, str] = {}
    """Whole name → the whole name by which lists know the model, empty where by none. `vendor/` stands for all of a
    vendor's models that aren't named. What isn't in here lists know by its own name."""


class _Pattern(NamedTuple):
    rank: tuple[int, str]
    """The least is the most specific: by how many characters stand for themselves, then by the alphabet."""
    regex: re.Pattern[str]
    listing: Listing


class _Index:
    """Listings by name: an exact one first, then the pattern with most characters of its own."""

    def __init__(self, listings: Iterable[Listing]) -> None:
        self._exact: dict[str, Listing] = {}
        self._patterns: dict[str, list[_Pattern]] = {}
        for listing in listings:
            for name in listing.names:
                if _PATTERN.search(name):
                    self._patterns.setdefault(_vendor(name), []).append(_pattern(name, listing))
                else:
                    self._exact[name] = listing
        for patterns in self._patterns.values():
            patterns.sort(key=_rank)

    def fitting(self, name: str) -> Iterator[Listing]:
        if (exact := self._exact.get(name)) is not None:
            yield exact
        ranked = self._patterns.get(_vendor(name), [])
        if anywhere := self._patterns.get("", []):
            ranked = sorted([*ranked, *anywhere], key=_rank)
        for pattern in ranked:
            if pattern.regex.match(name):
                yield pattern.listing


class PriceBook:
    """Finds a model's price."""

    def __init__(self, prices: Prices, shipped: Iterable[Listing] = ()) -> None:
        """Args:
        shipped: the vendors' lists; names in lower case, which fit names in any.
        """
        self._own = _Index(prices.own)
        self._shipped = _Index(shipped)
        self._last = _Index(prices.last)
        self._known_as: Mapping[str, str] = prices.known_as

    def price(self, model: str, at_ms: int) -> Price | None:
        """The price of a deployment by its whole name at a Unix time in milliseconds; None where it isn't known.

        The operator's prices come first, by the name and then by the name that lists know the model by; then the
        lists. Of those that fit, the most specific that is in force by then.
        """
        listed = self._known_as.get(model, self._known_as.get(f"{_vendor(model)}/", model))
        lookups = [(self._own, model)]
        if listed:
            lookups += [(self._own, listed), (self._shipped, listed.lower())]
        for index, name in (*lookups, (self._last, model)):
            for listing in index.fitting(name):
                if (price := listing.at(at_ms)) is not None:
                    return price
        return None


def _vendor(pattern: str) -> str:
    """What a name or a pattern begins with up to the slash; empty where that is no plain text."""
    vendor, slash, _ = pattern.partition("/")
    return "" if not slash or _PATTERN.search(vendor) else vendor


def _pattern(text: str, listing: Listing) -> _Pattern:
    literal = len(re.sub(r"\[[^]]*\]|[*?]", "", text))
    return _Pattern((-literal, text), re.compile(fnmatch.translate(text)), listing)


_rank = itemgetter(0)


def _or(rate: Decimal | None, other: Decimal) -> Decimal:
    return other if rate is None else rate


def _dearest_prompt(rates: Rates) -> Decimal:
    return max(rates.prompt, _or(rates.cached, _NOTHING), _or(rates.cache_write, _NOTHING))


def _dearest_completion(rates: Rates) -> Decimal:
    return max(rates.completion, _or(rates.reasoning, _NOTHING))


def _decimals(rates: Rates) -> dict[str, str]:
    return {
        "prompt": _decimal(rates.prompt),
        "completion": _decimal(rates.completion),
        "cached": _decimal(_or(rates.cached, rates.prompt)),
        "cache_write": _decimal(_or(rates.cache_write, rates.prompt)),
        "reasoning": _decimal(_or(rates.reasoning, rates.completion)),
    }


def _decimal(amount: Decimal) -> str:
    """In digits, without an exponent and without zeros at the end."""
    digits = f"{amount:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
