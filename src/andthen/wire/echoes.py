"""Where a prompt ends that a server gave back in one piece with what follows. Pure.

Servers that echo a prompt with its log-probabilities join both in one text and one list of tokens. The border is found
by what is known of either side, and never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from andthen.contract.events import Token
from andthen.contract.shapes import Prompt
from andthen.contract.text import Utf8Decoder, written_bytes

_UNREADABLE = "\ufffd"


class NoBorder(ValueError):
    """It can't be told where the prompt ends."""


class Echo(Struct, frozen=True):
    """One choice, as it came."""

    prompt: Prompt
    text: str
    """The prompt's and what follows, in one."""
    tokens: tuple[Token, ...]
    """Likewise, perhaps with a token for the document's start in front, which the server added."""
    prompt_tokens: int | None
    """How many tokens the server says that the prompt has, its own token for the start included."""


class Parts(Struct, frozen=True):
    """The same choice, in its parts."""

    prompt_text: str
    prompt_tokens: tuple[Token, ...]
    """The caller's own, the first without a number."""
    text: str
    tokens: tuple[Token, ...]
    read: int
    """Tokens of the prompt, a server's own included."""


def parted(echo: Echo) -> Parts:
    """Raises NoBorder."""
    if isinstance(echo.prompt, str):
        if not echo.text.startswith(echo.prompt):
            raise NoBorder
        return parted_tokens(echo, echo.text[len(echo.prompt) :])
    count = len(echo.prompt)
    if count > len(echo.tokens):
        raise NoBorder
    own = tuple(replace(token, id=own) for token, own in zip(echo.tokens, echo.prompt, strict=False))
    at = _text_border(echo.text, [token.text for token in echo.tokens], count)
    return Parts(echo.text[:at], unscored_first(own), echo.text[at:], echo.tokens[count:], count)


def parted_tokens(echo: Echo, text: str) -> Parts:
    """For a prompt of text, where the text that follows it is known. Raises NoBorder."""
    prompt = str(echo.prompt)
    count, added = _token_border(prompt, echo)
    return Parts(prompt, unscored_first(echo.tokens[added:count]), text, echo.tokens[count:], count)


def unscored_first(tokens: Sequence[Token]) -> tuple[Token, ...]:
    """Nothing precedes the caller's first token, though a token of the server's own may."""
    return (replace(tokens[0], logprob=None, top=None), *tokens[1:]) if tokens else ()


def added_in_front(prompt: str, tokens: Sequence[Token]) -> int:
    """How many of a prompt's tokens the server added before the caller's own: 1 or 0."""
    if not tokens or tokens[0].logprob is not None:
        return 0
    pieces = [written_bytes(token.text) for token in tokens]
    for added in (0, 1):
        if b"".join(pieces[added:]) == prompt.encode():
            return added
    texts = [_squeezed(token.text) for token in tokens]
    for added in (0, 1):
        if "".join(texts[added:]) == _squeezed(prompt):
            return added
    return 0 if texts[0] and _UNREADABLE not in texts[0] and _squeezed(prompt).startswith(texts[0]) else 1


def _token_border(prompt: str, echo: Echo) -> tuple[int, int]:
    """How many tokens are the prompt's, and how many of these the server added in front."""
    told = echo.prompt_tokens
    found: set[tuple[int, int]] = set()
    may_be_added = bool(echo.tokens) and echo.tokens[0].logprob is None
    for added in (0, 1) if may_be_added else (0,):
        if (run := _run(prompt.encode(), echo.tokens[added:])) is not None:
            found.add((added + run, added))
    if not prompt and may_be_added:
        return 1, 1
    if len(found) == 1:
        return found.pop()
    agreeing = [one for one in found if told in (one[0], one[0] + 1 - one[1])]
    if len(agreeing) == 1:
        return agreeing[0]
    if found or told is None or told > len(echo.tokens):
        raise NoBorder
    return told, added_in_front(prompt, echo.tokens[:told])


def _run(wanted: bytes, tokens: Sequence[Token]) -> int | None:
    """How many tokens from the first on spell out `wanted`, the fewest; None where they spell something else."""
    at = 0
    for count, token in enumerate(tokens):
        if at == len(wanted):
            return count
        piece = written_bytes(token.text)
        if not wanted.startswith(piece, at):
            return None
        at += len(piece)
    return len(tokens) if at == len(wanted) else None


def _text_border(text: str, pieces: Sequence[str], count: int) -> int:
    """Where the text of the first `count` tokens ends. A character that they leave incomplete is not theirs."""
    if count == len(pieces):
        return len(text)
    before = Utf8Decoder().feed(b"".join(map(written_bytes, pieces[:count])))
    if not any(_UNREADABLE in piece for piece in pieces[:count]) and text.startswith(before):
        return len(before)
    try:
        return _squeezed_border(text, pieces[:count])
    except NoBorder:
        return _border_from_behind(text, pieces, count)


def _squeezed_border(text: str, pieces: Sequence[str]) -> int:
    """The same where the tokens' own texts lack their blanks, as those of SentencePiece do when each stands alone."""
    at = 0
    for letter in _squeezed("".join(pieces)):
        while at < len(text) and text[at].isspace():
            at += 1
        if letter == _UNREADABLE or not text.startswith(letter, at):
            raise NoBorder
        at += 1
    blanks = _blanks_behind(pieces[-1])
    if not text.startswith(blanks, at):
        raise NoBorder
    return at + len(blanks)


def _border_from_behind(text: str, pieces: Sequence[str], count: int) -> int:
    """The same by what follows. Blanks between, that neither side's tokens show, begin the latter."""
    after = b"".join(map(written_bytes, pieces[count:])).decode(errors="replace")
    if not after or _UNREADABLE in after or not text.endswith(after):
        raise NoBorder
    before = text[: len(text) - len(after)].rstrip() + _blanks_behind(pieces[count - 1])
    if not text.startswith(before):
        raise NoBorder
    return len(before)


def _blanks_behind(piece: str) -> str:
    return piece[len(piece.rstrip()) :]


def _squeezed(text: str) -> str:
    return "".join(text.replace("\u2581", " ").split())
