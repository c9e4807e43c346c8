"""One candidate of a request, as its call brings it. Pure.

Its states are a table. A candidate that is done takes what still comes, for the count, and shows none of it.
"""

from __future__ import annotations

import math
from enum import Enum, auto

import msgspec

from andthen.contract.events import FinishReason, Text, Token
from andthen.contract.text import CutText, Offsets, Utf8Decoder, written_bytes


class State(Enum):
    WAITING = auto()
    """Its call has brought nothing of it."""
    OPEN = auto()
    DONE = auto()
    FAILED = auto()
    """Its call ended before it did."""


class Input(Enum):
    TEXT = auto()
    STOP = auto()
    """The text completed a stop sequence."""
    END = auto()
    """Its source says that it has ended."""
    LOSS = auto()
    """Its call failed."""


NEXT: dict[tuple[State, Input], State] = {
    (State.WAITING, Input.TEXT): State.OPEN,
    (State.WAITING, Input.END): State.DONE,
    (State.WAITING, Input.LOSS): State.FAILED,
    (State.OPEN, Input.TEXT): State.OPEN,
    (State.OPEN, Input.STOP): State.DONE,
    (State.OPEN, Input.END): State.DONE,
    (State.OPEN, Input.LOSS): State.FAILED,
    (State.DONE, Input.TEXT): State.DONE,
    (State.DONE, Input.END): State.DONE,
    (State.DONE, Input.LOSS): State.DONE,
    (State.FAILED, Input.TEXT): State.FAILED,
    (State.FAILED, Input.END): State.FAILED,
    (State.FAILED, Input.LOSS): State.FAILED,
}


class Candidate:
    """A candidate.

    Args:
        stops: all stop sequences, also those that its source knows.
        prompt: the text that it follows, where that is known from the start.
        min_tokens: so many tokens complete no stop.
        shows_tokens: `logprobs` were asked.
        keeps_nothing: whatever comes is dropped: `max_tokens` is 0.
    """

    __slots__ = (
        "_begun", "_cut", "_keeps_nothing", "_logprobs", "_min_tokens", "_offsets", "_reported", "_shows_tokens",
        "_stops", "ended", "generated", "reason", "scored", "seen_bytes", "seen_tokens", "state",
    )  # fmt: skip

    def __init__(
        self, stops: tuple[str, ...], *, prompt: str, min_tokens: int, shows_tokens: bool, keeps_nothing: bool
    ) -> None:
        self._stops = stops
        self._min_tokens = min_tokens
        self._shows_tokens = shows_tokens
        self._keeps_nothing = keeps_nothing
        self._logprobs: list[tuple[int, float]] = []
        """Offset and log-probability of each generated token."""
        self._reported = 0
        self.state = State.WAITING
        self.reason: FinishReason = "length"
        """Why it is done, once it is."""
        self.ended = False
        """Its source said that it has ended."""
        self.generated = 0
        """Tokens, as far as its source told them apart."""
        self.seen_bytes = 0
        """UTF-8 bytes of all text that came, shown or not."""
        self.seen_tokens = 0
        """Tokens that came with their texts."""
        self.scored = False
        """Any of its tokens came with a log-probability."""
        self.follow(prompt)

    def follow(self, prompt: str, pieces: bytes | None = None, *, shown: bool = True) -> None:
        """Before anything came: says what it follows.

        Args:
            prompt: its text, without a character that token ids leave incomplete.
            pieces: all its bytes, where they are not just that text's.
            shown: the prompt is echoed, so that a character begun there is completed here.
        """
        before = prompt.encode() if pieces is None else pieces
        self._offsets = Offsets()
        self._offsets.feed(before)
        self._cut = CutText(self._stops, len(prompt))
        decoder = Utf8Decoder()
        decoder.feed(before)
        self._begun = b"" if shown else before[len(before) - decoder.pending :]

    @property
    def done(self) -> bool:
        return self.state is State.DONE

    @property
    def mean_logprob(self) -> float:
        """Per generated token, the stop sequence's own included and what came behind it not; not a number where no
        token was told."""
        end = self._cut.stop_end
        counted = [logprob for offset, logprob in self._logprobs if end is None or offset < end]
        return sum(counted) / len(counted) if counted else math.nan

    def take(self, event: Text) -> bool:
        """Goes on; True if that completes a stop."""
        early = self._min_tokens - self.generated
        self.generated += event.generated
        self.seen_bytes += len(event.text.encode())
        self.seen_tokens += len(event.tokens)
        if self.state is State.DONE:
            return False
        if self.state is not State.OPEN:  # which text leaves as it is: no look-up for each piece
            self.state = NEXT[self.state, Input.TEXT]
        if self._keeps_nothing:
            return False
        for token in event.tokens:
            self._hold(token)
        text = self._own_text(event) if self._begun else event.text
        if early > 0:
            first = _text_of(event, early, text)
            self._cut.pass_over(first)
            text = text[len(first) :]
        if text and self._cut.feed(text):
            self.state = NEXT[self.state, Input.STOP]
            self._cut.finish()
            self.reason = "stop"
        return self.done

    def finish(self, reason: FinishReason, generated: int) -> bool:
        """Its source says that it has ended; True if it was not done before."""
        self.generated += generated
        self.ended = True
        if self.state is not State.DONE:
            stopped = self._cut.finish()
            self.state = NEXT[self.state, Input.END]
            self.reason = "length" if self._keeps_nothing else "stop" if stopped else reason
            return True
        return False

    def lose(self) -> None:
        """Its call failed."""
        self.state = NEXT[self.state, Input.LOSS]

    def say(self) -> tuple[str, tuple[Token, ...], int]:
        """What is new to show since the last time: text, tokens, and how many tokens were generated."""
        text, tokens = self._cut.take()
        fresh, self._reported = self.generated - self._reported, self.generated
        return text, tokens if self._shows_tokens else (), fresh

    def _own_text(self, event: Text) -> str:
        """Without what completes or breaks off a character of a prompt that is not shown. The last token may be an
        end token, which adds no text."""
        begun, self._begun = self._begun, b""
        parts = [written_bytes(token.text) for token in event.tokens]
        for own in (b"".join(parts), b"".join(parts[:-1])):
            if (begun + own).decode(errors="replace") == event.text:
                return own.decode(errors="replace")
        return event.text

    def _hold(self, token: Token) -> None:
        offset = self._offsets.feed(written_bytes(token.text))
        if token.logprob is not None:
            self.scored = True
            self._logprobs.append((offset, token.logprob))
        self._cut.hold(msgspec.structs.replace(token, offset=offset))


def _text_of(event: Text, tokens: int, text: str) -> str:
    """What the first tokens bring of the text; all of it, where they are not told."""
    if event.generated <= tokens or event.generated != len(event.tokens):
        return text
    pieces = b"".join(written_bytes(token.text) for token in event.tokens[:tokens]).decode(errors="ignore")
    return pieces if text.startswith(pieces) else text
