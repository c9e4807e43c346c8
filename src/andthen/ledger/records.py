"""What the ledger records of a request: an intent before its first upstream byte, a settlement after its last. Pure.

A request has one row, and one row for each call to a vendor. The most that it may cost is reserved with its intent; its
settlement puts what it did cost in place of that. Money is in whole millionths of a US dollar.

`Intent` and `Settlement` are also what a journal holds, as MessagePack arrays: a journal outlives an upgrade, so new
fields go to the end and have a default.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from msgspec import Meta, Struct

from andthen.contract.events import Counted

Window = Literal["day", "month", "total"]
"""A calendar day or month, UTC, or all time."""
WINDOWS: tuple[Window, ...] = ("day", "month", "total")

EndedBy = Literal["reply", "error", "caller", "lost"]
"""The reply was complete; an error ended it; the caller went away; the process died, and the lease ran out."""


Origin = Literal["model", "cache", "replay"]
"""The reply was made for this request; it is one that the cache had; it is one that was kept under the request's
Idempotency-Key."""

Count = Annotated[int, Meta(ge=0, le=2**62)]


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What may be spent in a window; the smaller of two bounds that are both set decides."""

    window: Window
    micros: Count | None = None
    """Millionths of a US dollar."""
    tokens: Count | None = None
    """Prompt and completion tokens together."""


class Spent(NamedTuple):
    """Of one key in one period: millionths of a dollar, and tokens."""

    micros: int = 0
    reserved_micros: int = 0
    tokens: int = 0
    reserved_tokens: int = 0

    def plus(self, other: Spent) -> Spent:
        return Spent(*(one + more for one, more in zip(self, other, strict=True)))


class Tokens(Struct, frozen=True, kw_only=True, array_like=True):
    """What was processed."""

    prompt: int = 0
    cached: int = 0
    """Of the prompt, from a vendor's or the engine's cache."""
    completion: int = 0
    """Generated, best_of's losers and hidden reasoning included."""
    reasoning: int = 0
    source: Counted = "vendor"

    @property
    def total(self) -> int:
        return self.prompt + self.completion


class Call(Struct, frozen=True, kw_only=True, array_like=True):
    """One call to a vendor, or one attempt of the embedded engine."""

    model: str
    """The whole name of the deployment."""
    status: int
    """HTTP's, 200 for a reply; 0 where none came."""
    tokens: Tokens = Tokens()
    cost_micros: int = 0
    took_ms: int = 0


class Intent(Struct, frozen=True, kw_only=True, array_like=True, tag=1):
    """A request is about to begin."""

    id: str
    key_id: str
    lease_owner: str
    """The process that answers it: its lease tells whether it lives."""
    model: str
    """As the request named it."""
    started_at_ms: int
    """Milliseconds since 1970, UTC."""
    stream: bool = False
    account: str = ""
    user: str = ""
    reserved_micros: int = 0
    reserved_tokens: int = 0
    """The most that it may cost."""
    budgets: tuple[Budget, ...] = ()
    """The key's."""
    budget_owner: str = ""
    """Who reserved it out of its allotments; empty where nothing was reserved."""


class Settlement(Struct, frozen=True, kw_only=True, array_like=True, tag=2):
    """A request has ended. It has the whole intent, so it can be posted without one."""

    intent: Intent
    status: int
    """HTTP's, as sent or as it would have been; 499 where the caller went away."""
    ended_by: EndedBy
    settled_at_ms: int
    code: str = ""
    """The error's."""
    model: str = ""
    """The deployment that answered, or was asked last."""
    tokens: Tokens = Tokens()
    cost_micros: int = 0
    price: str = ""
    """The price that was used, as text."""
    plan: str = ""
    origin: Origin = "model"
    retries: int = 0
    queue_ms: int | None = None
    first_ms: int | None = None
    total_ms: int = 0
    calls: tuple[Call, ...] = ()

    @property
    def is_free(self) -> bool:
        """The request cost nothing."""
        return not (self.cost_micros or self.tokens.total)


Record = Intent | Settlement


class Shortfall(Struct, frozen=True):
    """A budget without room for a request."""

    budget: Budget
    kind: Literal["money", "tokens"]
    spent: int
    """In millionths of a dollar, or tokens, like `reserved`."""
    reserved: int
    """For requests under way, and allotted to other machines."""
    needed: int

    @property
    def for_good(self) -> bool:
        """There would be no room even if all that is reserved were given back."""
        bound = self.budget.micros if self.kind == "money" else self.budget.tokens
        return bound is not None and self.spent + self.needed > bound
