"""Machines for text that comes in pieces: bytes to characters, stop sequences, token offsets; and best_of's order.

Pure: each machine is fed by its owner and knows nothing of models, requests or time. The engine stands on it, and so
does whatever emulates a parameter for a model that lacks it. Every machine gives the same result for any cut of its
input into pieces.
"""

from __future__ import annotations

import math
import re
from codecs import utf_8_decode
from collections import deque
from collections.abc import Sequence

from andthen.contract.events import Token


class Utf8Decoder:
    """Bytes in, characters out, as soon as they are whole.

    Invalid bytes become U+FFFD exactly where `bytes.decode("utf-8", errors="replace")` over the whole input would put
    them: one for each maximal part of a character (Unicode 16, section 3.9, "U+FFFD Substitution").
    """

    __slots__ = ("_pending", "length")

    def __init__(self) -> None:
        self._pending = b""
        self.length = 0
        """Code points given out so far."""

    @property
    def pending(self) -> int:
        """Bytes (0 to 3) held back because they begin a character."""
        return len(self._pending)

    def feed(self, data: bytes) -> str:
        """Returns the characters that `data` completes."""
        data = self._pending + data
        text, used = utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        if self._pending[:1] == b"\xed" and self._pending[1:] >= b"\xa0":
            # A surrogate's beginning is no character's: CPython waits for its end all the same (run, 3.11.7).
            text += self._pending.decode(errors="replace")
            self._pending = b""
        self.length += len(text)
        return text

    def flush(self) -> str:
        """The end of the input: a character left incomplete becomes one U+FFFD."""
        text = "\ufffd" if self._pending else ""
        self._pending = b""
        self.length += len(text)
        return text

    def copy(self) -> Utf8Decoder:
        """An independent decoder in the same state, for a candidate that goes on from a shared prompt."""
        other = Utf8Decoder()
        other._pending = self._pending
        other.length = self.length
        return other


class Offsets:
    """The offset of each token: code points from the start of the prompt to the character its first byte is in.

    So the tokens of one split character share its offset, also across the border of prompt and completion.
    """

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = Utf8Decoder()

    def feed(self, piece: bytes) -> int:
        """Takes the next token's bytes (none for a token without text) and returns its offset."""
        decoder = self._decoder
        if not decoder.pending or not piece:
            offset = decoder.length
            decoder.feed(piece)
            return offset
        # Only the first byte tells whether the character that was begun goes on or was cut off before this token.
        decoder.feed(piece[:1])
        offset = decoder.length if decoder.pending else decoder.length - 1
        decoder.feed(piece[1:])
        return offset

    def copy(self) -> Offsets:
        """The same state, for a candidate that goes on from a shared prompt."""
        other = Offsets()
        other._decoder = self._decoder.copy()
        return other


def token_text(piece: bytes) -> str:
    r"""A token as `logprobs` writes it: its text, or `bytes:\xNN…` where it is not whole UTF-8, as OpenAI writes it."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


_WRITTEN_BYTES = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")


def written_bytes(text: str) -> bytes:
    """The bytes of a token that `token_text` wrote."""
    if written := _WRITTEN_BYTES.fullmatch(text):
        return bytes.fromhex(written[1].replace("\\x", ""))
    return text.encode(errors="replace")


class StopScanner:
    """Lets text through up to the first stop sequence and drops that and all after it.

    The stop that is complete first wins; of several that end at the same character the longest. So text is cut as soon
    as any stop is there, never later, and never differently for another cut into pieces. An end of the text that may
    be the beginning of a stop is held back until it is decided.
    """

    __slots__ = ("_held", "_passed", "_stops", "end", "matched", "released")

    def __init__(self, stops: Sequence[str]) -> None:
        """Args:
        stops: the stop sequences, none of them empty.
        """
        if not all(stops):
            raise ValueError("a stop sequence is empty")
        self._stops = tuple(stops)
        self._held = ""
        self._passed = 0
        """Code points at the beginning of what is held in which no stop may be complete."""
        self.matched = False
        """A stop was found: nothing more will be released."""
        self.released = 0
        """Code points let through so far; after a match, where the text was cut."""
        self.end: int | None = None
        """After a match, where the stop sequence ends: code points from the beginning."""

    def feed(self, text: str) -> tuple[str, bool]:
        """Returns the text that is decided, and whether a stop was found (now or before)."""
        if self.matched:
            return "", True
        text = self._held + text
        if found := self._find(text):
            self.matched = True
            self.end = self.released + found[0]
        keep = found[1] if found else self._undecided(text)
        self._held = "" if self.matched else text[keep:]
        self._passed = max(0, self._passed - keep)
        self.released += keep
        return text[:keep], self.matched

    def pass_over(self, text: str) -> str:
        """Takes text in which no stop may be complete yet, though one may begin there; returns what is decided."""
        text = self._held + text
        keep = self._undecided(text)
        self._held = text[keep:]
        self._passed = len(self._held)
        self.released += keep
        return text[:keep]

    def flush(self) -> str:
        """The end of the text: what was held back began no stop after all."""
        text, self._held = self._held, ""
        self.released += len(text)
        return text

    def _find(self, text: str) -> tuple[int, int] | None:
        """Where the stop that is complete first ends and begins."""
        found = [
            (start + len(stop), start)
            for stop in self._stops
            if (start := text.find(stop, max(0, self._passed - len(stop) + 1))) >= 0
        ]
        return min(found, default=None)

    def _undecided(self, text: str) -> int:
        """Where the longest end of `text` begins that is the beginning of a stop."""
        keep = len(text)
        for stop in self._stops:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1), keep)
            while start >= 0 and not stop.startswith(text[start:]):
                start = text.find(stop[0], start + 1, keep)
            if start >= 0:
                keep = start
        return keep


class CutText:
    """A candidate's text and tokens as they grow, let through up to the first stop sequence.

    A token goes with the text in which it begins; those that begin behind the cut are dropped.

    Args:
        stops: the stop sequences.
        start: the offset of the text's first character.
    """

    __slots__ = ("_held", "_released", "_scanner", "_start", "_text", "_tokens")

    def __init__(self, stops: Sequence[str], start: int) -> None:
        self._scanner = StopScanner(stops) if stops else None
        self._start = start
        self._released = 0
        self._held: deque[Token] = deque()
        self._text: list[str] = []
        self._tokens: list[Token] = []

    def hold(self, token: Token) -> None:
        """Takes the next token; its text is fed on its own."""
        self._held.append(token)

    def feed(self, text: str) -> bool:
        """Takes the next characters; True if they complete a stop."""
        if self._scanner is None:
            self._release(text)
            return False
        text, stopped = self._scanner.feed(text)
        self._release(text)
        return stopped

    def pass_over(self, text: str) -> None:
        """Takes characters that may begin a stop but complete none."""
        self._release(text if self._scanner is None else self._scanner.pass_over(text))

    def finish(self, rest: str = "") -> bool:
        """Takes the last characters and releases what was held back; True if a stop was found, now or before."""
        stopped = self.stopped or self.feed(rest)
        if not stopped:
            if self._scanner is not None:
                self._release(self._scanner.flush())
            self._tokens += self._held
        self._held.clear()
        return stopped

    @property
    def stopped(self) -> bool:
        return self._scanner is not None and self._scanner.matched

    @property
    def stop_end(self) -> int | None:
        """The offset at which the stop that was found ends."""
        end = self._scanner.end if self._scanner is not None else None
        return None if end is None else self._start + end

    def take(self) -> tuple[str, tuple[Token, ...]]:
        """The text released since the last call and the tokens that start in it."""
        text, tokens = "".join(self._text), tuple(self._tokens)
        self._text.clear()
        self._tokens.clear()
        return text, tokens

    def _release(self, text: str) -> None:
        if not text:
            return
        self._text.append(text)
        self._released += len(text)
        while self._held and self._held[0].offset < self._start + self._released:
            self._tokens.append(self._held.popleft())


def rank(means: Sequence[float]) -> list[int]:
    """The order in which best_of keeps candidates: numbers of `means`, best first, ties to the lower candidate.

    Args:
        means: each candidate's mean log-probability per generated token (the end token counts), in nats. One that is
            not a number ranks last.
    """
    return sorted(range(len(means)), key=lambda i: (math.isnan(means[i]), -means[i], i))
