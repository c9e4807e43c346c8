"""Events → the completion's JSON, or its server-sent events. Also how errors are written.

Both machines take the events of one request in their order (see `events`); candidates are already those to show,
0 to n−1, best first. Knows no clock and draws no ids: `Head` comes from outside. The structs named in the OpenAPI
document are what is encoded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from andthen.contract.errors import AndthenError, InternalError
from andthen.contract.events import Event, Finished, FinishReason, PromptScored, Text, Token, Usage
from andthen.contract.request import CompletionRequest

DONE = b"data: [DONE]\n\n"
"""Ends a stream for the clients that expect it."""
COMMENT = b": \n\n"
"""Keeps a silent stream open."""

# JSON has no −∞ and no NaN; vLLM writes an impossible token the same way. First in `max`, so that NaN loses.
_LOWEST_LOGPROB = -9999.0


class Head(Struct, frozen=True):
    """What is the same in every chunk of one reply."""

    id: str
    """`cmpl-…`."""
    created: int
    """Unix time in seconds."""
    model: str
    """The whole name of the model that answers."""
    system_fingerprint: str | None


class Logprobs(Struct):
    """Log-probabilities of tokens, in parallel arrays: natural logarithms, before temperature, bias, penalties and
    truncation."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class Choice(Struct):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChunkChoice(Struct):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class PromptTokensDetails(Struct):
    cached_tokens: int


class CompletionTokensDetails(Struct):
    reasoning_tokens: int


class CompletionUsage(Struct):
    """What was processed, candidates that best_of dropped included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class CompletionReply(Struct):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    system_fingerprint: str | None
    usage: CompletionUsage


class CompletionChunk(Struct):
    """One `data:` of a stream. `usage` is only there when `stream_options` asks for it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str | None
    usage: CompletionUsage | UnsetType | None = UNSET


class ErrorDetail(Struct):
    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(Struct):
    error: ErrorDetail


_encode = msgspec.json.Encoder().encode


def error_body(error: AndthenError) -> bytes:
    return _encode(ErrorReply(ErrorDetail(error.message, error.type, error.param, error.code)))


def error_frame(error: AndthenError) -> bytes:
    """An error after the first byte of a stream. The connection must then be cut, not ended."""
    return b"event: error\ndata: " + error_body(error) + b"\n\n"


class Completion:
    """Folds the events into one reply."""

    def __init__(self, request: CompletionRequest) -> None:
        self._request = request
        choices = len(request.prompts) * request.n
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._tokens: list[list[Token]] = [[] for _ in range(choices)]
        self._reasons: list[FinishReason | None] = [None] * choices
        self._usage: Usage | None = None
        self.tokens = 0
        """Of all choices, that are to be written."""

    def feed(self, event: Event) -> None:
        n = self._request.n
        match event:
            case Text():
                index = event.prompt * n + event.candidate
                self._texts[index].append(event.text)
                self._tokens[index] += event.tokens
                self.tokens += len(event.tokens)
            case Finished():
                self._reasons[event.prompt * n + event.candidate] = event.reason
            case PromptScored() if self._request.echo:
                for index in range(event.prompt * n, event.prompt * n + n):
                    self._texts[index].append(event.text)
                    self._tokens[index] += event.tokens
                    self.tokens += len(event.tokens)
            case Usage():
                self._usage = event

    def body(self, head: Head) -> bytes:
        """The reply, once all events are in.

        Raises:
            InternalError: the events ended early.
        """
        if self._usage is None:
            raise InternalError("The model's work ended without its usage: send the request again.")
        choices = [self._choice(index, reason) for index, reason in enumerate(self._reasons)]
        return _encode(
            CompletionReply(
                head.id, "text_completion", head.created, head.model, choices, head.system_fingerprint,
                _usage(self._usage),
            )
        )  # fmt: skip

    def _choice(self, index: int, reason: FinishReason | None) -> Choice:
        if reason is None:
            raise InternalError(f"The model's work ended without finishing choice {index}: send the request again.")
        return Choice(index, "".join(self._texts[index]), _logprobs(self._tokens[index], self._request), reason)


class Stream:
    """Turns each event into the frames to send for it."""

    def __init__(self, request: CompletionRequest, head: Head) -> None:
        self._request = request
        self._head = head
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0

    def frames(self, events: Iterable[Event]) -> bytes:
        """Those for some events, in their order."""
        return b"".join(map(self.feed, events))

    def feed(self, event: Event) -> bytes:
        """The frames for one event; empty where it shows nothing."""
        request = self._request
        match event:
            case Text():
                self._completion_tokens += event.generated
                if not (event.text or event.tokens or (request.continuous_usage_stats and event.generated)):
                    return b""
                index = event.prompt * request.n + event.candidate
                return self._frame([ChunkChoice(index, event.text, _logprobs(event.tokens, request), None)])
            case Finished():
                self._completion_tokens += event.generated
                index = event.prompt * request.n + event.candidate
                return self._frame([ChunkChoice(index, "", _logprobs((), request), event.reason)])
            case PromptScored():
                self._prompt_tokens += event.prompt_tokens
                self._cached_tokens += event.cached_tokens
                if not request.echo or not (event.text or event.tokens):
                    return b""
                first, logprobs = event.prompt * request.n, _logprobs(event.tokens, request)
                choices = (ChunkChoice(first + j, event.text, logprobs, None) for j in range(request.n))
                return b"".join([self._frame([choice]) for choice in choices])
            case Usage():
                return self._frame([], _usage(event)) if request.include_usage else b""

    def _frame(self, choices: list[ChunkChoice], usage: CompletionUsage | UnsetType | None = UNSET) -> bytes:
        request, head = self._request, self._head
        if usage is UNSET:
            if request.continuous_usage_stats:
                usage = _usage(Usage(self._prompt_tokens, self._completion_tokens, self._cached_tokens))
            elif request.include_usage:
                usage = None
        chunk = CompletionChunk(
            head.id, "text_completion", head.created, head.model, choices, head.system_fingerprint, usage
        )
        return b"data: " + _encode(chunk) + b"\n\n"


def _usage(usage: Usage) -> CompletionUsage:
    cached, reasoning = usage.cached_tokens, usage.reasoning_tokens
    return CompletionUsage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        UNSET if cached is None else PromptTokensDetails(cached),
        UNSET if reasoning is None else CompletionTokensDetails(reasoning),
    )


def _logprobs(tokens: Iterable[Token], request: CompletionRequest) -> Logprobs | None:
    """The arrays for these tokens, empty ones for none; None where the request has no `logprobs`."""
    if request.logprobs is None:
        return None
    as_ids = request.return_tokens_as_token_ids
    return Logprobs(
        [_written(token.id, token.text) if as_ids else token.text for token in tokens],
        [None if token.logprob is None else max(_LOWEST_LOGPROB, token.logprob) for token in tokens],
        [_top(token, as_ids) for token in tokens] if request.logprobs else None,
        [token.offset for token in tokens],
    )


def _top(token: Token, as_ids: bool) -> dict[str, float] | None:
    """A position's alternatives by their text. Of two ids with one text the token's own value stays, else the
    higher: they come best first."""
    if token.top is None or token.logprob is None:
        return None
    top: dict[str, float] = {}
    for other in token.top:
        top.setdefault(_written(other.id, other.text) if as_ids else other.text, max(_LOWEST_LOGPROB, other.logprob))
    top[_written(token.id, token.text) if as_ids else token.text] = max(_LOWEST_LOGPROB, token.logprob)
    return top


def _written(token_id: int | None, text: str) -> str:
    return text if token_id is None else f"token_id:{token_id}"
