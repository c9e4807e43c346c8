"""Where text comes from: a source turns a request into events. Knows no HTTP and no key.

Here is what every source is, and the embedded engine in its own process; `remote` has the others.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import ClassVar, Protocol, Self

from msgspec import Struct

from andthen.contract.errors import EngineRestarted
from andthen.contract.events import Event, Exchange, Usage
from andthen.contract.limits import Limits
from andthen.contract.request import CompletionRequest
from andthen.engine.client import EngineClient
from andthen.engine.messages import ModelInfo
from andthen.plan.abilities import Abilities, local
from andthen.plan.plan import Plan


class Allowance(Struct):
    """What one request may still do over, whoever does it: so that no retry of a retry makes a storm."""

    retries: int
    due_s: float
    """When it must have ended, by `time.monotonic`."""

    def take(self, after_s: float = 0.0) -> bool:
        """Whether something may be done over `after_s` from now; if so, that counts."""
        if self.retries <= 0 or time.monotonic() + after_s >= self.due_s:
            return False
        self.retries -= 1
        return True


Placed = Callable[[], Awaitable[None]]
"""Returns once the books hold the most that a request may cost. Raises the `AndthenError` that forbids it."""


class Ask(Struct, frozen=True):
    """What is asked of a source."""

    owner: str
    """Whose turn it is, where several wait."""
    model: str
    """The whole name of the source's model."""
    request: CompletionRequest
    plan: Plan
    """What was decided for that model."""
    allowance: Allowance
    has_successor: bool = False
    """Another deployment steps in if this one fails before its first event."""
    placed: Placed | None = None
    """To be awaited before anything is done that may cost; what costs nothing, a connection say, need not wait. None
    where nobody counts."""


class Attempt(Protocol):
    """One try at a request: `async with attempt: async for events in attempt: …`. Leaving the block ends the work,
    and returns when it has ended."""

    @property
    def usage(self) -> Usage | None:
        """What was processed; also after an end before its time, as far as the source could still tell."""

    @property
    def exchanges(self) -> Sequence[Exchange]:
        """What was exchanged for it, once the block was left."""

    @property
    def began_s(self) -> float | None:
        """When its turn had come, by `time.monotonic`; None before."""

    @property
    def fingerprint(self) -> str | None:
        """What `system_fingerprint` tells; settled once events have come."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        """Each time all events that have come since the last. Raises `AndthenError`."""


class Source(Protocol):
    awaits_hold: ClassVar[bool]
    """It awaits `Ask.placed` itself. For others, who opens them has done so."""

    def open(self, ask: Ask) -> Attempt:
        """Begins the work.

        Raises:
            AndthenError: it can't begin.
        """


class Deployment(Struct, frozen=True):
    """A model at a source."""

    model: str
    """The whole name, `vendor/model`."""
    abilities: Abilities
    source: Source
    cools: bool = False
    """After failures it is left in peace for a while."""
    identity: str = ""
    """Another one stands for other texts under the same name: another file, address or dialect."""
    provider: str = "andthen"
    """Who answers, as OpenTelemetry's conventions for generative AI name providers."""
    address: str = ""
    """The base of a server's URLs; empty of the embedded engine."""


class Local:
    """The source that is the embedded engine."""

    awaits_hold: ClassVar[bool] = False

    def __init__(self, engine: EngineClient, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._described: Mapping[str, ModelInfo] = {}
        self._deployments: dict[str, Deployment] = {}

    def open(self, ask: Ask) -> Attempt:
        return self._engine.submit(ask.owner, ask.model, ask.request)

    def deployments(self) -> Mapping[str, Deployment]:
        """The engine's models, by whole name.

        Raises:
            EngineRestarted: no engine has told them yet.
        """
        models = self._engine.models
        if models is not self._described:
            self._described = models
            self._deployments = {name: self._deployment(model) for name, model in models.items()}
        if not models and not self._engine.ready:
            raise EngineRestarted("The engine is starting: send the request again.")
        return self._deployments

    def _deployment(self, model: ModelInfo) -> Deployment:
        return Deployment(model.name, abilities(model, self._limits), self, identity=model.fingerprint)


def abilities(model: ModelInfo, limits: Limits) -> Abilities:
    """The row of a model of the embedded engine."""
    return local(
        model=model.name,
        context=model.context,
        vocab_size=model.vocab_size,
        fill_in_the_middle=model.fill_in_the_middle,
        deterministic=model.deterministic,
        limits=limits,
    )
