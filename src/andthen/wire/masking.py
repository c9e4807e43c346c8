"""Takes the secrets that the operator set out of a text that came from upstream. Pure.

A vendor knows the key that it is sent, and may put it anywhere, whole, in part or encoded. What is known here are the
usual encodings. A vendor that means to tell a caller the key can always find another; text that a model generated is
passed on as it is for the same reason.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import quote

import msgspec

MASK = "…"
_LEAST = 4
"""What is shorter is no secret, but a word such as `x`, which a server without keys is given as one."""
_PART_CHARACTERS = 8
"""So many in a row that also stand in a secret are a part of it. Vendors mask keys so that fewer are seen."""
_LOWER = {letter: letter + 32 for letter in range(ord("A"), ord("Z") + 1)}
"""As `lower`, but without a change of any length."""


def masked(text: str, secrets: Iterable[str]) -> str:
    """The text with an ellipsis for each secret and each longer part of one."""
    own = tuple(sorted({part for secret in secrets for part in secret.split() if len(part) >= _LEAST}))
    if not own:
        return text
    forms, everything = _forms(own)
    folded = text.translate(_LOWER)
    for form in forms:
        if len(form) < _PART_CHARACTERS and form in folded:
            text = _replaced(text, folded, form)
            folded = text.translate(_LOWER)
    return without_parts(text, folded, everything, _PART_CHARACTERS)


def without_parts(text: str, folded: str, everything: str, least: int) -> str:
    """The text with an ellipsis for each run of at least so many characters that `everything` has too.

    Args:
        folded: the text as it is compared, of the same length.
    """
    kept: list[str] = []
    at = 0
    while at < len(text):
        end = at + least
        found = everything.find(folded[at:end]) if end <= len(text) else -1
        if found < 0:
            kept.append(text[at])
            at += 1
            continue
        while end < len(text) and everything.startswith(folded[end], found + end - at):
            end += 1
        kept.append(MASK)
        at = end
    return "".join(kept)


def _replaced(text: str, folded: str, form: str) -> str:
    pieces: list[str] = []
    at = 0
    while (found := folded.find(form, at)) >= 0:
        pieces += [text[at:found], MASK]
        at = found + len(form)
    return "".join([*pieces, text[at:]])


@lru_cache(maxsize=16)
def _forms(secrets: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """How the secrets may be written, in lower case; and all of that as one text to search."""
    forms = {form.translate(_LOWER) for secret in secrets for form in _written(secret)}
    longest_first = tuple(sorted(forms, key=len, reverse=True))
    return longest_first, "\n".join(longest_first)


def _written(secret: str) -> Iterable[str]:
    data = secret.encode()
    yield secret
    yield quote(secret, safe="")
    yield msgspec.json.encode(secret).decode()[1:-1]
    yield data.hex()
    # In base64 a text looks otherwise by where it begins; what its neighbours share in is left out.
    for before in range(3):
        written = b64encode(b"\0" * before + data).decode().rstrip("=")
        own = written[(0, 2, 3)[before] : len(written) - (1 if (before + len(data)) % 3 else 0)]
        if len(own) >= _PART_CHARACTERS:
            yield own
            yield own.replace("+", "-").replace("/", "_")
