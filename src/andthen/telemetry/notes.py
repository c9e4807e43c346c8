"""What is noted of a completion for telemetry: facts, and none of its text. Knows no OpenTelemetry."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from andthen.contract.events import Event, Exchange, Finished, FinishReason, Usage
from andthen.contract.request import CompletionRequest


class Answerer(Struct, frozen=True):
    """Who may answer."""

    model: str
    """A configured name."""
    provider: str
    host: str = ""
    """Empty of the embedded engine."""
    port: int = 0


class Note(Struct, kw_only=True):
    """One completion, as far as it came. Times are by `time.monotonic`."""

    request: CompletionRequest | None = None
    """What was asked, if it was well-formed and of a model that there is."""
    asked: str = ""
    """The configured name that was asked for."""
    answerer: Answerer | None = None
    """Who answered, or was asked last."""
    first_text_s: float | None = None
    """Seconds from the request's headers to its first generated token."""
    reasons: list[FinishReason] = msgspec.field(default_factory=list)
    """Why candidates ended, in the order in which they did."""
    usage: Usage | None = None
    exchanges: list[tuple[Answerer, Exchange]] = msgspec.field(default_factory=list)

    def look(self, events: list[Event]) -> None:
        """To be called with all events as they come."""
        self.reasons += [event.reason for event in events if isinstance(event, Finished)]


class Ending(Struct, frozen=True, kw_only=True):
    """How a request ended."""

    id: str
    started_s: float
    ended_s: float
    status: int
    code: str
    """Of the error; empty where there was none."""
    traceparent: str
    """The header as it came; empty where there was none."""
