"""A vendor's error → one of ours. Each language reads its own format and gives here what it found.

The caller is told the vendor's name, its code if vendors are known to use it, and its message, without what may be
secret in it: keys, and whatever it quotes of the prompt.
"""

from __future__ import annotations

import math
import re

from msgspec import Struct

from andthen.contract.errors import (
    AndthenError,
    ContextLengthExceeded,
    ModelNotFound,
    NoCapacity,
    RateLimited,
    UpstreamFailed,
    UpstreamGarbled,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnauthenticated,
)
from andthen.contract.request import CompletionRequest
from andthen.contract.shapes import Prompt
from andthen.wire.base import Headers, Target
from andthen.wire.codes import known
from andthen.wire.masking import MASK, masked, without_parts

_LONGEST_WAIT_S = 86_400
_MESSAGE_CHARACTERS = 300
_READ_CHARACTERS = 1000
"""Of a message, before what is secret is taken out."""
_SORTED_CHARACTERS = 8192
"""Of a message, by which its kind is known."""
_QUOTED_CHARACTERS = 12
"""So many in a row that also stand in a prompt are a quotation."""
_SEARCHED_CHARACTERS = 2**17
"""Of longer prompts nothing is looked for in a message: it is not shown at all."""
_SPENT = "insufficient_quota"
"""OpenAI's code for an account without money, which no waiting cures, with the status of too many requests."""
_KEY_LIKE = re.compile(
    r"(?=[A-Za-z_\-+/=.]*[0-9*])[A-Za-z0-9_\-+/=.*]{24,}|[A-Za-z0-9_\-+/=.*]{40,}|"
    r"\b(?:sk|pk|gsk|xai|nvapi|csk|pplx|fw|tgp|hf|r8|AIza|AKIA)[-_A-Za-z0-9*]*[-_0-9*][-_A-Za-z0-9*]{3,}"
)
_FINGERPRINT = re.compile(r"[!-~]{1,128}")
_ESCAPES = re.compile(r"\\[nrt]")
_CONTEXT = re.compile(
    r"context.{0,10}(length|window|size|limit)|maximum context|too many (input |total )?tokens|prompt is too long|"
    r"input (is )?too long|exceeds? the (maximum|model'?s|available) (number of tokens|context)|"
    r"`inputs` (tokens|must have)",
    re.IGNORECASE,
)


class VendorError(Struct, frozen=True):
    """What a vendor's error says, in HTTP's terms where it says it in others."""

    status: int
    """0 where there is none."""
    code: str = ""
    message: str = ""
    retry_after_s: int | None = None


def failure(error: VendorError, request: CompletionRequest, target: Target) -> AndthenError:
    """The error to raise."""
    code = known(error.code)
    named = ", ".join(part for part in (f"status {error.status}" if error.status else "", code) if part)
    said = redacted(error.message, request, target)
    says = f"{target.vendor} answered {named or 'an error'}" + (f": {said.rstrip('.')}." if said else ".")
    status, begins = error.status, error.message[:_SORTED_CHARACTERS]
    if status in (400, 413, 422) and _CONTEXT.search(f"{error.code.replace('_', ' ')} {begins}"):
        return ContextLengthExceeded(f"{says} Shorten the prompt or lower `max_tokens`.", param="prompt")
    if status in (401, 402, 403, 407) or (status == 429 and error.code == _SPENT):
        return UpstreamUnauthenticated(f"{says} The key that the server has for it is the operator's to mend.")
    if status == 404:
        return ModelNotFound(f"{says} The model may have been renamed or retired there.", param="model")
    if status in (408, 504):
        return UpstreamTimeout(f"{says} It ran out of time: send the request again.")
    if status == 429:
        return RateLimited(f"{says} Wait before the next try.", retry_after_s=error.retry_after_s)
    if status in (503, 529):
        return NoCapacity(f"{says} It is overloaded: wait before the next try.", retry_after_s=error.retry_after_s)
    if 300 <= status < 400:
        return UpstreamRefused(f"{says} Redirects are not followed: the address is the operator's to mend.")
    # 424: what the vendor itself depends on has failed.
    if 400 <= status < 500 and status != 424:
        return UpstreamRefused(f"{says} Another try won't help.")
    return UpstreamFailed(f"{says} Send the request again.", retry_after_s=error.retry_after_s)


def garbled(target: Target, what: str) -> UpstreamGarbled:
    """The reply is not what the language says; `what` goes on from "{vendor}'s reply" and quotes nothing of it."""
    return UpstreamGarbled(f"{target.vendor}'s reply {what}: send the request again.")


def cut_short(target: Target) -> UpstreamGarbled:
    return garbled(target, "ended before it was complete")


def retry_after_s(headers: Headers) -> int | None:
    """Whole seconds of `retry-after-ms` or `retry-after`, rounded up; a date is not read."""
    values = dict(headers)
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(values.get(name, "")) * unit_s
        except ValueError:
            continue
        if 0 <= seconds < math.inf:
            return min(math.ceil(seconds), _LONGEST_WAIT_S)
    return None


def redacted(message: str, request: CompletionRequest, target: Target) -> str:
    """A vendor's message in one line of printable text, without keys and without what it quotes of the request."""
    if sum(map(len, request.prompts)) > _SEARCHED_CHARACTERS:
        return ""
    message = _one_line(_ESCAPES.sub(" ", message[: 2 * _READ_CHARACTERS]))
    if len(message) > _READ_CHARACTERS:
        # A word that is cut might be a secret that is no longer known as one.
        message = message[:_READ_CHARACTERS].rpartition(" ")[0]
    message = without_secrets(message, target)
    message = _KEY_LIKE.sub(lambda found: found[0] if found[0].rstrip(".") in target.model else MASK, message)
    texts = [*map(_as_text, request.prompts), request.suffix or ""]
    if sum(map(len, texts)) > _SEARCHED_CHARACTERS:
        return ""
    return _without_quotes(message, [_one_line(text) for text in texts])[:_MESSAGE_CHARACTERS]


def without_secrets(text: str, target: Target) -> str:
    """A text from upstream without what the operator set as keys."""
    return masked(text, (target.key, *target.secrets))


def shown_fingerprint(told: str, target: Target) -> str | None:
    """A `system_fingerprint` as callers get it; None where it may be something else."""
    return told if _FINGERPRINT.fullmatch(told) and without_secrets(told, target) == told else None


def _as_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else ", ".join(map(str, prompt))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _without_quotes(message: str, texts: list[str]) -> str:
    """Puts an ellipsis for each of the texts, and for longer parts of them: vendors quote the beginning or an end."""
    for text in sorted(texts, key=len, reverse=True):
        if len(text) > 3:
            message = message.replace(text, MASK)
    return without_parts(message, message, "\n".join(texts), _QUOTED_CHARACTERS)
