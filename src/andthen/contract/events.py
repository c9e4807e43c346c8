"""The one alphabet that everything behind the endpoint speaks.

Every source of text (the embedded engine, each vendor's decoder) yields these four events, numbered by
prompt and candidate; the response is made of nothing else. Errors are raised, never events.

The order within one request: one `PromptScored` for each prompt before any other event of that prompt; then its
candidates' `Text`, freely interleaved; one `Finished` per candidate, after its last `Text`; and one `Usage`, last of
all, also after a cancellation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

FinishReason = Literal["stop", "length", "content_filter"]
Counted = Literal["vendor", "counted", "estimated", "bounded"]
"""Where a number of tokens comes from: reported by the vendor, counted as they came, estimated from their bytes, or the
most that was asked for, because the vendor reported or sent more than the call can have used."""


class Alternative(Struct, frozen=True, array_like=True, gc=False):
    """One entry of a position's top log-probabilities."""

    id: int | None
    """The token's id; None where the source does not tell."""
    text: str
    """The token as it is written in `logprobs`: its text, or `bytes:\\xNN…` where it is not whole UTF-8."""
    logprob: float
    """Natural logarithm of the model's probability before temperature, bias, penalties and truncation."""


class Token(Struct, frozen=True, array_like=True, gc=False):
    """One token of a prompt or of a generated text, as `logprobs` shows it."""

    id: int | None
    text: str
    logprob: float | None
    """None for the first token of the caller's prompt, which nothing precedes."""
    offset: int
    """Unicode code points from the start of the prompt; the tokens of one split character share it."""
    top: tuple[Alternative, ...] | None = None
    """The most probable tokens, best first, always with this token among them (bit-same number); None where
    `logprob` is None, or when the caller asked for chosen tokens only."""


class PromptScored(Struct, frozen=True, array_like=True, tag="prompt"):
    """A prompt was read."""

    prompt: int
    prompt_tokens: int
    """Tokens processed for it, an added BOS and fill-in-the-middle markers included."""
    cached_tokens: int = 0
    """How many of them a prefix cache spared."""
    text: str = ""
    """With `echo`: the prompt's text. A character that the prompt leaves incomplete belongs to the candidates, if there
    are any."""
    tokens: tuple[Token, ...] = ()
    """With `echo` and `logprobs`: the prompt's tokens."""


class Text(Struct, frozen=True, array_like=True, tag="text"):
    """A candidate went on. May carry tokens without text (held back by a split character or a possible stop) or
    text without tokens (no `logprobs` asked)."""

    prompt: int
    candidate: int
    text: str
    tokens: tuple[Token, ...] = ()
    """With `logprobs`: the tokens that belong to this text."""
    generated: int = 0
    """Tokens generated since the candidate's last event: the steps of `completion_tokens`."""


class Finished(Struct, frozen=True, array_like=True, tag="finished"):
    """A candidate is done."""

    prompt: int
    candidate: int
    reason: FinishReason
    generated: int = 0


class Usage(Struct, frozen=True, array_like=True, tag="usage"):
    """What the whole request processed, best_of's losers included. The last event."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    source: Counted = "vendor"


class Exchange(Struct, frozen=True):
    """One call to a model's server, or one job of the embedded engine, for the ledger. No event."""

    status: int
    """HTTP's, 200 for a reply; 0 where none began."""
    usage: Usage
    took_s: float
    began_s: float = 0.0
    """When, by `time.monotonic`."""
    code: str = ""
    """Of the error that it ended with."""


_TRUST: tuple[Counted, ...] = ("vendor", "counted", "estimated", "bounded")


def total(each: Sequence[Usage]) -> Usage:
    """The sum; where its parts come from elsewhere, it is as good as the least of them."""
    cached = [usage.cached_tokens for usage in each if usage.cached_tokens is not None]
    reasoning = [usage.reasoning_tokens for usage in each if usage.reasoning_tokens is not None]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in each),
        completion_tokens=sum(usage.completion_tokens for usage in each),
        cached_tokens=sum(cached) if cached else None,
        reasoning_tokens=sum(reasoning) if reasoning else None,
        source=max((usage.source for usage in each), key=_TRUST.index, default="vendor"),
    )


Event = PromptScored | Text | Finished | Usage


def size(events: Sequence[Event]) -> int:
    """How many events and tokens there are to work on."""
    return len(events) + sum(len(event.tokens) for event in events if isinstance(event, PromptScored | Text))
