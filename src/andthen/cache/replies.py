"""Which replies may be given again, to what, and how one is written down. Pure: time comes in.

What stands behind the endpoint sees of a request its `CompletionRequest` alone. So all of that goes into the name of
its reply, but for the fields in `UNDECIDING`, together with who answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from andthen.contract.events import Event, Finished, PromptScored, Text, Usage
from andthen.contract.request import CompletionRequest

UNDECIDING = {
    "model": "",
    "stream": False,
    "include_usage": False,
    "continuous_usage_stats": False,
    "user": None,
    "ignored": (),
}
"""Fields of a request that decide nothing of its text, each with the value that all are given. `model` is the name that
was asked for: who answers is told besides."""

_SAID_NOTHING = frozenset({"model", "stream", "stream_options", "user"})
"""The same among the names of `given`."""

_encode = msgspec.msgpack.Encoder().encode


class Answerer(Struct, frozen=True, array_like=True):
    """Who answers."""

    software: str
    """Our version: a text is made by its code too."""
    model: str
    """The whole name of the deployment's model."""
    identity: str
    """What else decides its texts, such as the model file's hash."""


class Kept(Struct, frozen=True, array_like=True):
    """A reply, as it is stored."""

    made_at_s: float
    """Unix time."""
    fingerprint: str | None
    """Its `system_fingerprint`."""
    batches: tuple[tuple[Event, ...], ...]
    """All events, of a request that cost nothing."""

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch]


_decode = msgspec.msgpack.Decoder(Kept).decode


def is_settled(request: CompletionRequest, *, deterministic: bool) -> bool:
    """Whether a reply that was given once is as good as one made anew.

    At temperature 0 the top token is asked for; where a vendor can't promise the same each time, what it said once is
    still one of its answers. A seed settles the text where the model keeps it.

    Args:
        deterministic: the model's row says that a seed gives the same bytes.
    """
    return request.temperature == 0 or (request.seed is not None and deterministic)


def subject(request: CompletionRequest, answerer: Answerer) -> bytes:
    """The same bytes for two requests if, and only if, the one's reply is the other's. To be digested: they hold the
    prompt."""
    given = tuple(name for name in request.given if name not in _SAID_NOTHING)
    biases = dict(sorted(request.logit_bias.items()))
    return _encode((answerer, replace(request, given=given, logit_bias=biases, **UNDECIDING)))


class Recorder:
    """Writes a reply down while it is made.

    Args:
        most_bytes: a reply that takes more is not kept.
    """

    def __init__(self, request: CompletionRequest, most_bytes: int) -> None:
        self._unfinished = len(request.prompts) * request.n
        self._room = most_bytes
        self._batches: list[Raw] = []
        self._ended = False

    def feed(self, events: Sequence[Event]) -> None:
        """The next events."""
        for event in events:
            self._unfinished -= isinstance(event, Finished)
            self._ended = self._ended or isinstance(event, Usage)
        if self._room <= 0:
            return
        batch = _encode([_at_no_cost(event) for event in events])
        self._room -= len(batch)
        if self._room > 0:
            self._batches.append(Raw(batch))
        else:
            self._batches.clear()

    def kept(self, made_at_s: float, fingerprint: str | None) -> bytes | None:
        """What to store, once the events have ended; None where the reply is too large or not whole."""
        if self._unfinished or not self._ended or self._room <= 0:
            return None
        return _encode((made_at_s, fingerprint, self._batches))


def read(kept: bytes) -> Kept | None:
    """What `Recorder.kept` wrote; None for anything else."""
    try:
        return _decode(kept)
    except msgspec.MsgspecError:
        return None


def _at_no_cost(event: Event) -> Event:
    """The same, where nothing was processed for it."""
    match event:
        case PromptScored():
            return replace(event, prompt_tokens=0, cached_tokens=0)
        case Text() | Finished():
            return replace(event, generated=0)
        case Usage():
            return Usage(0, 0)
