"""What one call to a vendor can come to, by what it asks. Pure.

A vendor may be broken or hostile: what it sends beyond these bounds is an error, and what it tells beyond them is not
believed. They are wide, so that no honest reply meets them: servers put templates around a prompt, some go a few tokens
past `max_tokens`, and each writes its JSON in its own way.
"""

from __future__ import annotations

import msgspec

from andthen.contract.events import Usage
from andthen.contract.request import CompletionRequest, worst_prompt_tokens

_TOKENS_MORE = 64
_BYTES_OF_TOKEN = 256
"""Of text, on average. The longest tokens of known vocabularies are runs of some hundred blanks."""
_TEXT_MORE_BYTES = 4096
_REPLY_BYTES = 64 * 2**20
"""Of any reply."""
_REPLY_MORE_BYTES = 2**20
"""What a reply may hold besides: sources, ratings, hidden reasoning, pings."""
_CHUNK_BYTES = 2048
"""Of a token of text in a stream, where each may have a chunk of its own with all that surrounds it."""
_REPLY_VALUES = 2**22
_REPLY_MORE_VALUES = 2**16
_VALUES_OF_TOKEN = 4
_VALUES_SCORED = 16
"""JSON values of a token or an alternative with its log-probability and its bytes, one by one."""
_SCORED_BYTES = 512
"""Of a token or an alternative with its log-probability, its bytes and its escapes."""
_TEMPLATE_TOKENS = 1024
"""What a server may put around a prompt. Seen: 500, of Cohere's preamble; templates of open models have up to that."""
_REASONING_TOKENS = 2**17
"""What a model may reason, for each candidate, where the vendor does not count that in `max_tokens`."""


def most_tokens(request: CompletionRequest) -> int:
    """That a candidate may have."""
    return 2 * request.max_tokens + _TOKENS_MORE


def most_text_bytes(request: CompletionRequest) -> int:
    """Of a candidate's text, in UTF-8."""
    return _BYTES_OF_TOKEN * request.max_tokens + _TEXT_MORE_BYTES


def most_reply_bytes(request: CompletionRequest, *, streams: bool) -> int:
    """Of the reply's body."""
    plain, scored = _tokens(request)
    own_bytes = plain * (_CHUNK_BYTES if streams else _BYTES_OF_TOKEN) + scored * _SCORED_BYTES
    return min(_REPLY_MORE_BYTES + own_bytes, _REPLY_BYTES)


def most_reply_values(request: CompletionRequest) -> int:
    """JSON values of the reply's body, or of an event of a stream."""
    plain, scored = _tokens(request)
    return min(_REPLY_MORE_VALUES + plain * _VALUES_OF_TOKEN + scored * _VALUES_SCORED, _REPLY_VALUES)


def _tokens(request: CompletionRequest) -> tuple[int, int]:
    """Of a reply, echoed prompts included; and those and their alternatives that have log-probabilities."""
    tokens = len(request.prompts) * request.n * most_tokens(request)
    if request.echo:
        tokens += request.n * sum(worst_prompt_tokens(prompt) for prompt in request.prompts)
    is_scored = request.logprobs is not None or request.echo
    return tokens, tokens * (2 + (request.logprobs or 0)) if is_scored else 0


def asked_tokens(request: CompletionRequest) -> int:
    """The tokens that the call may generate, as they are reserved."""
    return len(request.prompts) * max(request.n, request.best_of) * request.max_tokens


def reserved_prompt_tokens(request: CompletionRequest) -> int:
    """The tokens that the call may read, as they are reserved for a vendor."""
    suffix = 0 if request.suffix is None else len(request.prompts) * worst_prompt_tokens(request.suffix)
    return suffix + sum(worst_prompt_tokens(prompt) for prompt in request.prompts)


def bounded(usage: Usage, request: CompletionRequest) -> Usage:
    """What a vendor tells, if the call can have come to that. A count that it can't have come to becomes what is
    reserved for it, and the source is then `bounded`.

    A prompt may be counted for each candidate: some servers make several calls of one.
    """
    candidates = max(request.n, request.best_of)
    reserved, asked = reserved_prompt_tokens(request), asked_tokens(request)
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    reasoning = min(usage.reasoning_tokens or 0, completion)
    if prompt > (1 + candidates) * (reserved + len(request.prompts) * _TEMPLATE_TOKENS):
        prompt = reserved
    sequences = len(request.prompts) * candidates
    if completion - reasoning > sequences * most_tokens(request) or reasoning > sequences * _REASONING_TOKENS:
        completion = asked
    if (prompt, completion) == (usage.prompt_tokens, usage.completion_tokens):
        return usage
    return msgspec.structs.replace(
        usage,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=None if usage.cached_tokens is None else min(usage.cached_tokens, prompt),
        reasoning_tokens=None if usage.reasoning_tokens is None else min(reasoning, completion),
        source="bounded",
    )
