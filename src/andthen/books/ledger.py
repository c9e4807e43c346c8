"""What is written down of a request: an intent before its first upstream byte, a settlement after its last. Pure.

A request has one row, and one row for each exchange with a vendor. What it may cost at worst is reserved with its
intent, and what it did cost takes the reservation's place with its settlement. Money is in whole millionths of a US
dollar.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from andthen.books.policy import Budget
from andthen.contract.events import Counted

EndedBy = Literal["reply", "error", "caller", "lost"]
"""The reply was complete; an error ended it; the caller went away; the process died, and the lease ran out."""


Origin = Literal["model", "cache", "replay"]
"""The reply was made for this request; it is one that the cache had; it is one that was kept under the request's
Idempotency-Key."""


class Tokens(Struct, frozen=True, kw_only=True):
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


class Call(Struct, frozen=True, kw_only=True):
    """One exchange with a vendor, or one attempt of the embedded engine."""

    model: str
    """The whole name of the deployment."""
    status: int
    """HTTP's, 200 for a reply; 0 where none came."""
    tokens: Tokens = Tokens()
    cost_micros: int = 0
    took_ms: int = 0


class Intent(Struct, frozen=True, kw_only=True):
    """A request is about to begin."""

    id: str
    key_id: str
    holder: str
    """The process that answers it: its lease tells whether it lives."""
    model: str
    """As it was asked."""
    started_at_ms: int
    """Milliseconds since 1970, UTC."""
    stream: bool = False
    account: str = ""
    user: str = ""
    reserved_micros: int = 0
    reserved_tokens: int = 0
    """What it may cost at worst."""
    budgets: tuple[Budget, ...] = ()
    """The key's."""


class Settlement(Struct, frozen=True, kw_only=True):
    """A request has ended."""

    intent: Intent
    status: int
    """HTTP's, as told or as it would have been; 499 where the caller went away."""
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


class Bounded(Struct, frozen=True):
    """An intent that a budget has no room for."""

    budget: Budget
    kind: Literal["money", "tokens"]
    spent: int
    """In millionths of a dollar, or tokens, like `reserved`."""
    reserved: int
    needed: int

    @property
    def for_good(self) -> bool:
        """Whether there would be no room even if all that is reserved were given back."""
        bound = self.budget.micros if self.kind == "money" else self.budget.tokens
        return bound is not None and self.spent + self.needed > bound
