"""The options that make a key's policy, and the policy in words. Amounts of money are exact, never floats."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from andthen.books.keys import Key
    from andthen.books.policy import Policy
    from andthen.ledger.records import Budget, Spent

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MICROS = 1_000_000
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SPAN = re.compile(r"(\d{1,6})([smhd])", re.ASCII)

FIELDS = {
    "owner": "owner",
    "tag": "tags",
    "model": "models",
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
    "concurrent": "concurrent_requests",
    "max-tokens": "max_tokens",
    "address": "addresses",
    "budget": "budgets",
}
"""Option → field of the policy."""


class Span(click.ParamType[int]):
    """`45s`, `15m`, `12h` or `30d`, in milliseconds."""

    name = "SPAN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _SPAN.fullmatch(value)
        if found is None:
            self.fail(f"{value!r} is no span of time: write 45s, 15m, 12h or 30d", param, ctx)
        return int(found[1]) * _UNIT_MS[found[2]]


class Moment(click.ParamType[int]):
    """A span from now, a date or a time, UTC where it names no other; in milliseconds since 1970."""

    name = "WHEN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        now_ms = round(datetime.now(UTC).timestamp() * 1000)
        if value == "now":
            return now_ms
        if _SPAN.fullmatch(value):
            return now_ms + Span().convert(value, param, ctx)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time: write 30d, 2027-01-31 or 2027-01-31T12:00Z", param, ctx)
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


class BudgetText(click.ParamType["Budget"]):
    """`day=5.00` in US dollars, or `month=1000000t` in tokens."""

    name = "WINDOW=AMOUNT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Budget:
        from andthen.ledger.records import WINDOWS, Budget

        window, _, amount = value.partition("=")
        tokens = re.fullmatch(r"(\d{1,18})t", amount, re.ASCII)
        micros = _micros(amount)
        if window not in WINDOWS or (tokens is None and micros is None):
            self.fail(
                f"{value!r} is no budget: write day, month or total, then =5.00 for US dollars (to the millionth) or"
                " =1000000t for tokens",
                param,
                ctx,
            )
        if tokens is not None:
            return Budget(window=window, tokens=int(tokens[1]))
        return Budget(window=window, micros=micros)


_OPTIONS = (
    click.option("--owner", metavar="TEXT", help="Whose it is."),
    click.option("--tag", "tags", multiple=True, metavar="TEXT", help="For reports. May be given several times."),
    click.option(
        "--model",
        "models",
        multiple=True,
        metavar="PATTERN",
        help="Models that it may use, such as local/*. May be given several times. [default: all]",
    ),
    click.option("--rpm", type=click.IntRange(0), metavar="N", help="Requests in a minute."),
    click.option("--tpm", type=click.IntRange(0), metavar="N", help="Tokens in a minute."),
    click.option("--concurrent", type=click.IntRange(0), metavar="N", help="Requests at once."),
    click.option("--max-tokens", type=click.IntRange(0), metavar="N", help="The largest max_tokens of a request."),
    click.option(
        "--address",
        "addresses",
        multiple=True,
        metavar="NETWORK",
        help="Where it may be used from, such as 10.0.0.0/8. May be given several times. [default: anywhere]",
    ),
    click.option(
        "--budget",
        "budgets",
        type=BudgetText(),
        multiple=True,
        help="What it may spend: day=5.00 in US dollars or month=1000000t in tokens; also total=. May be given several"
        " times.",
    ),
)


def policy_options(command: _Command) -> _Command:
    """An option for each field of a policy."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def policy_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a policy that options set, of all that a command was given."""
    fields = {"requests_per_minute": "rpm", "tokens_per_minute": "tpm", "concurrent_requests": "concurrent"}
    names = {field: fields.get(field, field) for field in FIELDS.values()}
    found = {field: given[option] for field, option in names.items() if given.get(option) not in (None, ())}
    if "budgets" in found:
        found["budgets"] = _merged(found["budgets"])
    return found


def in_words(policy: Policy) -> list[tuple[str, str]]:
    """What is set of a policy, as option and value."""
    import msgspec

    values = msgspec.structs.asdict(policy) | {"budgets": [_budget(budget) for budget in policy.budgets]}
    told = []
    for option, field in FIELDS.items():
        value = values[field]
        if value not in (None, "", (), []):
            told.append((option, ", ".join(value) if isinstance(value, (tuple, list)) else str(value)))
    return told


def used_in_words(budget: Budget, spent: Spent) -> tuple[str, str]:
    """What of a budget is spent, and held by requests under way, in its present period."""
    parts = []
    if budget.micros is not None:
        parts.append(_used(spent.micros, spent.reserved_micros, budget.micros, _dollars))
    if budget.tokens is not None:
        parts.append(_used(spent.tokens, spent.reserved_tokens, budget.tokens, "{} tokens".format))
    return f"used ({budget.window})", "; ".join(parts)


def _used(spent: int, held: int, bound: int, told: Callable[[int], str]) -> str:
    return f"{told(spent)} of {told(bound)}" + (f", {told(held)} held" if held else "")


def _dollars(micros: int) -> str:
    return f"${Decimal(micros) / _MICROS:.6f}"


def state(key: Key, now_ms: int) -> str:
    """Whether a key is in force, and since or until when."""
    if key.revoked_at_ms is not None:
        return f"revoked {date(key.revoked_at_ms)}"
    if key.expires_at_ms is not None and key.expires_at_ms <= now_ms:
        return f"expired {date(key.expires_at_ms)}"
    if key.disabled_at_ms is not None:
        return f"disabled {date(key.disabled_at_ms)}"
    return "in force" if key.expires_at_ms is None else f"in force until {date(key.expires_at_ms)}"


def date(ms: int) -> str:
    """UTC, to the second."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%SZ}"


def _micros(amount: str) -> int | None:
    try:
        micros = Decimal(amount) * _MICROS if re.fullmatch(r"[\d.]{1,18}", amount, re.ASCII) else None
    except InvalidOperation:
        return None
    return None if micros is None or micros != int(micros) else int(micros)


def _merged(budgets: Sequence[Budget]) -> tuple[Budget, ...]:
    """A window's bounds in money and in tokens, in one budget."""
    from msgspec.structs import replace

    by_window: dict[str, Budget] = {}
    for budget in budgets:
        known = by_window.setdefault(budget.window, budget)
        if known is budget:
            continue
        field = "micros" if budget.micros is not None else "tokens"
        if getattr(known, field) is not None:
            raise click.BadParameter(
                f"two amounts of one kind for {budget.window}: give one in US dollars, one in tokens, or one of each",
                param_hint="--budget",
            )
        by_window[budget.window] = replace(known, **{field: getattr(budget, field)})
    return tuple(by_window.values())


def _budget(budget: Budget) -> str:
    parts = []
    if budget.micros is not None:
        parts.append(f"{budget.window}={Decimal(budget.micros) / _MICROS:.2f}")
    if budget.tokens is not None:
        parts.append(f"{budget.window}={budget.tokens}t")
    return ", ".join(parts)
