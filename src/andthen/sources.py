"""Where text comes from: a source turns a request into events. Knows no HTTP and no key.

Today there is one, the embedded engine in its own process.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from msgspec import Struct

from andthen.contract.errors import EngineRestarted
from andthen.contract.events import Event, Usage
from andthen.contract.limits import Limits
from andthen.contract.request import CompletionRequest
from andthen.engine.client import EngineClient
from andthen.engine.messages import ModelInfo
from andthen.plan.abilities import Abilities, local


class Attempt(Protocol):
    """One try at a request: `async with attempt: async for events in attempt: …`. Leaving the block ends the work,
    and returns when it has ended."""

    @property
    def usage(self) -> Usage | None:
        """What was processed; also after an end before its time, as far as the source could still tell."""

    @property
    def began_s(self) -> float | None:
        """When its turn had come, by `time.monotonic`; None before."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> list[Event]:
        """All events that have come since the last. Raises `AndthenError`."""


class Source(Protocol):
    def open(self, owner: str, model: str, request: CompletionRequest) -> Attempt:
        """Begins the work.

        Args:
            owner: whose turn it is, where several wait.

        Raises:
            AndthenError: it can't begin.
        """


class Deployment(Struct, frozen=True):
    """A model at a source."""

    model: str
    """The whole name, `vendor/model`."""
    fingerprint: str | None
    """What `system_fingerprint` tells."""
    abilities: Abilities
    source: Source


class Local:
    """The source that is the embedded engine."""

    def __init__(self, engine: EngineClient, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._described: Mapping[str, ModelInfo] = {}
        self._deployments: dict[str, Deployment] = {}

    def open(self, owner: str, model: str, request: CompletionRequest) -> Attempt:
        return self._engine.submit(owner, model, request)

    def deployments(self) -> Mapping[str, Deployment]:
        """The engine's models, by whole name.

        Raises:
            EngineRestarted: no engine has told them yet.
        """
        models = self._engine.models
        if models is not self._described:
            self._described = models
            self._deployments = {name: self._deployment(model) for name, model in models.items()}
        if not models:
            raise EngineRestarted("The engine is starting: send the request again.")
        return self._deployments

    def _deployment(self, model: ModelInfo) -> Deployment:
        return Deployment(model.name, model.fingerprint, abilities(model, self._limits), self)


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
