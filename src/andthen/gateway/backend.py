"""What answers a request: backends, the deployments that stand on them, and attempts. Knows no HTTP and no key."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from andthen.contract.events import Event, Exchange, Usage
from andthen.contract.request import CompletionRequest
from andthen.plan.abilities import Abilities
from andthen.plan.plan import Plan, PlanCache

Receiver = Callable[[list[Event]], None]
"""Takes events as they come, synchronously. What it raises ends the attempt."""


class RetryBudget(Struct):
    """The retries that one request may still make, wherever they happen: a retry inside a retry spends the same budget.

    Attributes:
        retries: how many are left.
        deadline_s: when the request must have ended, by `time.monotonic`.
    """

    retries: int
    deadline_s: float

    def take(self, after_s: float = 0.0) -> bool:
        """Spends one retry, to be made `after_s` from now. False if none is left or the deadline comes first."""
        if self.retries <= 0 or time.monotonic() + after_s >= self.deadline_s:
            return False
        self.retries -= 1
        return True


class BackendRequest(Struct, frozen=True):
    """What a backend is asked for.

    Attributes:
        owner: id of the API key; the embedded engine shares its capacity fairly between owners.
        model: full name of the deployment's model.
        plan: how this model takes the request.
        has_fallback: another deployment is tried if this one fails before its first event.
    """

    owner: str
    model: str
    request: CompletionRequest
    plan: Plan
    retry_budget: RetryBudget
    has_fallback: bool = False


class Attempt(Protocol):
    """One attempt at a request by one backend."""

    @property
    def usage(self) -> Usage | None:
        """What was processed, as far as it is known; complete once `run` has returned or raised."""

    @property
    def exchanges(self) -> Sequence[Exchange]:
        """The calls that were made; complete once `run` has returned or raised."""

    @property
    def began_s(self) -> float | None:
        """When the model began to work on it, by `time.monotonic`; None before."""

    @property
    def fingerprint(self) -> str | None:
        """The reply's `system_fingerprint`, known once events have come."""

    async def run(self, receiver: Receiver) -> None:
        """Does the work and gives `receiver` the events as they come. Returns or raises after the work has ended, also
        when it is cancelled.

        Raises:
            AndthenError: the work failed.
        """

    def pause(self) -> None:
        """Brings no more events until `resume`, apart from those that have been read already."""

    def resume(self) -> None: ...


class Backend(Protocol):
    def attempt(self, request: BackendRequest) -> Attempt:
        """Prepares an attempt; nothing is sent before it runs."""


class Deployment(Struct, frozen=True):
    """A model on a backend.

    Attributes:
        model: full name, `vendor/model`.
        label: name in metrics and the log; of a model that no configuration names `VENDOR/*`, since callers choose
            those names.
        has_breaker: repeated failures open its circuit breaker.
        identity: differs between deployments that may give different texts under one name: other files, addresses or
            dialects.
        provider: who answers, as OpenTelemetry's conventions for generative AI name providers.
        address: base URL of a server; empty for the embedded engine.
    """

    model: str
    abilities: Abilities
    backend: Backend
    plans: PlanCache
    label: str
    has_breaker: bool = False
    identity: str = ""
    provider: str = "andthen"
    address: str = ""
