"""What a key has used, as its own route tells it. Knows no ledger."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

DAYS_MAX = 3660
"""Of how many days the sums are told at most."""


class UsageDay(Struct, kw_only=True):
    """The requests of one day to one model."""

    day: str
    """Of their beginning, UTC: `2026-11-23`."""
    model: str
    """That answered, else as it was asked."""
    requests: int
    failed: int
    """Those whose reply was an error, or was left by its caller."""
    open: int
    """Those under way, which the other sums lack."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cost_micros: int
    """Millionths of a US dollar."""


class BudgetStanding(Struct, kw_only=True):
    """One of the key's budgets in its present period."""

    window: Literal["day", "month", "total"]
    limit_micros: int | None
    """Millionths of a US dollar; null: not bounded in money."""
    spent_micros: int
    reserved_micros: int
    """Held by requests under way."""
    limit_tokens: int | None
    spent_tokens: int
    reserved_tokens: int


class UsageReply(Struct, kw_only=True):
    object: Literal["usage"] = "usage"
    data: list[UsageDay]
    """As many days as were asked for, oldest first."""
    budgets: list[BudgetStanding]
