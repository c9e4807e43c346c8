"""What was used: `GET /v4/beta/usage` for the caller's own key, `GET /admin/usage` for all."""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from andthen.books.keys import Key
from andthen.books.store import BooksError, Store
from andthen.books.store.usage import UsageRow
from andthen.contract.errors import BadRequest, InvalidApiKey, LedgerUnavailable
from andthen.contract.usage import DAYS_MAX, BudgetStanding, UsageDay, UsageReply
from andthen.descriptors import or_refusal
from andthen.gateway.context import JSON, RequestContext

ADMIN_USAGE = "/admin/usage"
_DAYS = 31
_DAY_MS = 86_400_000

_Told = TypeVar("_Told")

_REPORTS = ThreadPoolExecutor(1, "reports")
"""Sums over a large ledger take long: whoever asks for many waits for these alone and keeps no other work waiting."""
_encode = msgspec.json.Encoder().encode


class UsageList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[UsageRow]
    """By day, key and model, oldest first."""


async def show_usage(ctx: RequestContext) -> None:
    """Of the caller's own key, as the query says, `?days=31`; and what is left of its budgets."""
    days = _days(ctx.query)
    if ctx.key is None:
        raise InvalidApiKey("No API key was sent: send it as the header `x-api-key` or as a bearer token.")
    await ctx.services.accounts.ledger.catch_up()
    reply = await _ask(ctx.services.store, functools.partial(_own, key=ctx.key, days=days))
    await ctx.reply(200, JSON, _encode(reply))


async def list_usage(ctx: RequestContext) -> None:
    """Of all keys; as the query says, `?days=31`."""
    days = _days(ctx.query)
    await ctx.services.accounts.ledger.catch_up()
    rows = await _ask(ctx.services.store, functools.partial(_all, days=days))
    await ctx.reply(200, JSON, _encode(UsageList(data=rows)))


async def _ask(store: Store, read: Callable[[Store], _Told]) -> _Told:
    try:
        return await asyncio.get_running_loop().run_in_executor(_REPORTS, read, store)
    except BooksError as error:
        raise or_refusal(
            LedgerUnavailable("The ledger can't be read at the moment: send the request again.")
        ) from error


def _own(store: Store, key: Key, days: int) -> UsageReply:
    rows = store.usage(["day", "model"], since_ms=_first_ms(days), key_id=key.id)
    return UsageReply(
        data=[UsageDay(**{name: getattr(row, name) for name in UsageDay.__struct_fields__}) for row in rows],
        budgets=standings(store, key),
    )


def standings(store: Store, key: Key) -> list[BudgetStanding]:
    """Of the key's budgets, in their order. Blocks. Raises `BooksError`."""
    budgets = key.policy.budgets
    return [
        BudgetStanding(
            window=budget.window,
            limit_micros=budget.micros,
            spent_micros=spent.micros,
            reserved_micros=spent.reserved_micros,
            limit_tokens=budget.tokens,
            spent_tokens=spent.tokens,
            reserved_tokens=spent.reserved_tokens,
        )
        for budget, spent in zip(budgets, store.spent(key.id, budgets), strict=True)
    ]


def _all(store: Store, days: int) -> list[UsageRow]:
    return store.usage(["day", "key", "model"], since_ms=_first_ms(days))


def _first_ms(days: int) -> int:
    """When the first of the last so many days began, UTC."""
    return time.time_ns() // 1_000_000 // _DAY_MS * _DAY_MS - (days - 1) * _DAY_MS


def _days(query: bytes) -> int:
    try:
        given = dict(parse_qsl(query.decode(), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=1))
    except ValueError:
        raise BadRequest("The query takes `days` only: send `?days=31`.") from None
    text = given.pop("days", str(_DAYS))
    if given:
        raise BadRequest("The query takes `days` only: send `?days=31`.")
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not 1 <= int(text) <= DAYS_MAX:
        raise BadRequest(f"`days` must be an integer from 1 to {DAYS_MAX}.", param="days")
    return int(text)
