"""Which characters: token ids and their bytes → text and the entries of `logprobs`.

Pure. A prompt's text ends where its candidates' begins; both may meet inside a character.
"""

from __future__ import annotations

from collections.abc import Sequence

from andthen.contract.events import Alternative, Token
from andthen.contract.text import CutText, Offsets, Utf8Decoder, token_text


class PromptText:
    """A prompt as its caller sees it.

    Args:
        caller: the caller's string, or None for a prompt of token ids.
        tokens: the caller's tokens, without a BOS that the server added.
        pieces: the vocabulary's bytes, by token id.
    """

    def __init__(self, caller: str | None, tokens: Sequence[int], pieces: Sequence[bytes]) -> None:
        parts = [pieces[token] for token in tokens]
        whole = b"".join(parts) if caller is None else caller.encode()
        if caller is not None and parts and b"".join(parts) == b" " + whole:
            parts[0] = parts[0][1:]  # a tokenizer's own space before the first word is not the caller's
        self._tokens = tokens
        self._parts = parts
        self.decoder = Utf8Decoder()
        self.text = self.decoder.feed(whole)
        """Without a character that token ids leave incomplete."""
        self.offsets = Offsets()
        self.offsets.feed(whole)
        self._pieces = pieces

    def entries(self, scored: Sequence[tuple[float, tuple[Alternative, ...] | None]]) -> tuple[Token, ...]:
        """The `logprobs` entries of the prompt: the first without a value, the others with those of `scored`."""
        offsets = Offsets()
        values: list[tuple[float | None, tuple[Alternative, ...] | None]] = [(None, None), *scored]
        del values[len(self._tokens) :]  # the start of a document has no first token
        return tuple(
            Token(token, token_text(self._pieces[token]), logprob, min(offsets.feed(part), len(self.text)), top)
            for token, part, (logprob, top) in zip(self._tokens, self._parts, values, strict=True)
        )


class CandidateText:
    """One candidate's text as it grows: characters as they become whole, held back where a stop may have begun.

    Args:
        prompt: what it follows.
        stops: the stop sequences.
        echo: the prompt is shown, so that a character begun there is completed here.
        with_tokens: entries for `logprobs` are wanted.
        min_tokens: so many tokens complete no stop (as in vLLM, `v1/engine/detokenizer.py`).
    """

    def __init__(
        self, prompt: PromptText, stops: tuple[str, ...], *, echo: bool, with_tokens: bool, min_tokens: int = 0
    ) -> None:
        self._decoder = prompt.decoder.copy() if echo else Utf8Decoder()
        self._cut = CutText(stops, len(prompt.text))
        self._early_tokens = min_tokens
        self._offsets = prompt.offsets.copy() if with_tokens else None

    def feed(self, id: int, piece: bytes, logprob: float, top: tuple[Alternative, ...] | None) -> bool:
        """Takes a token; True if it completes a stop."""
        if self._offsets is not None:
            self._cut.hold(Token(id, token_text(piece), logprob, self._offsets.feed(piece), top))
        text = self._decoder.feed(piece)
        if self._early_tokens:
            self._early_tokens -= 1
            self._cut.pass_over(text)
            return False
        return self._cut.feed(text)

    def feed_end(self, id: int, piece: bytes, logprob: float, top: tuple[Alternative, ...] | None) -> None:
        """Takes the token that ended the text: an entry, but no text."""
        if self._offsets is not None:
            self._cut.hold(Token(id, token_text(piece), logprob, self._offsets.feed(b""), top))

    def finish(self) -> bool:
        """No more tokens come: releases what was held back; True if its last characters complete a stop."""
        return self._cut.finish(self._decoder.flush())

    def take(self) -> tuple[str, tuple[Token, ...]]:
        """The text released since the last call and the tokens that start in it."""
        return self._cut.take()
