"""Replies in the layout of OpenAI's text completions, in one piece or as they come, as servers really send them.

Pure. Facts: `openai` 3.54 `types/completion.py`, vLLM `entrypoints/openai/completion`, SGLang 0.5.23
`entrypoints/openai/serving_completions.py`, llama.cpp `tools/server/server-task.cpp`, `together` 3.1 and `fireworks-ai`
1.2 `types/completion*.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from andthen.contract.errors import AndthenError, BadRequest, UpstreamError, by_code
from andthen.contract.events import Alternative, Event, Finished, FinishReason, PromptScored, Text, Token, Usage
from andthen.contract.fields import completion_fields
from andthen.contract.limits import Limits
from andthen.contract.request import CompletionRequest
from andthen.contract.text import token_text
from andthen.wire.base import Refusal, Target
from andthen.wire.deferred import Deferred
from andthen.wire.echoes import Echo, NoBorder, Parts, added_in_front, parted, parted_tokens, unscored_first
from andthen.wire.failures import VendorError, cut_short, failure, garbled, redacted, retry_after_s
from andthen.wire.sse import EventTooLong, ServerSentEvent, SseParser
from andthen.wire.whole import MAX_REPLY_BYTES

Count = Annotated[int, Meta(ge=0, le=2**53)]

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "tool_calls": "stop",
    "function_call": "stop",
    "length": "length",
    "content_filter": "content_filter",
}
_FAILURES = {"abort": 500, "error": 500, "insufficient_system_resource": 503}
"""Reasons to end that are none, as HTTP has them: SGLang's, OpenRouter's and Fireworks', DeepSeek's."""
_STATUSES = {
    "invalid_request_error": 400,
    "validation": 422,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "overloaded": 503,
    "overloaded_error": 503,
    "timeout_error": 504,
}
"""Types of errors that come without a status, in a stream."""
_FIELDS = {field.name for field in completion_fields(Limits())}


def wanted_logprobs(request: CompletionRequest) -> int | None:
    """An echo's tokens are asked for even where nobody wants their numbers: they tell where it ends."""
    return 0 if request.echo and request.logprobs is None else request.logprobs


class _ContentToken(Struct):
    token: str
    logprob: float
    id: int | None = None
    bytes: list[Annotated[int, Meta(ge=0, le=255)]] | None = None
    top_logprobs: list[_ContentToken] | None = None

    def text(self) -> str:
        return self.token if self.bytes is None else token_text(bytes(self.bytes))


class _Logprobs(Struct):
    """Parallel arrays, or (`content`) the layout of chats, which llama-server has here too."""

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | dict[str, float] | None = None
    token_ids: list[int] | None = None
    content: list[_ContentToken] | None = None


class _Delta(Struct):
    content: str | None = None


class _Choice(Struct):
    index: Count | None = None
    text: str | None = None
    delta: _Delta | None = None
    """Beside the text, or in its place: Together's."""
    logprobs: _Logprobs | float | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None

    def whole_text(self) -> str:
        if self.text is not None:
            return self.text
        return (self.delta.content if self.delta is not None else None) or ""


class _PromptDetails(Struct):
    cached_tokens: Count | None = None


class _CompletionDetails(Struct):
    reasoning_tokens: Count | None = None


class _Usage(Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: Count | None = None
    """DeepSeek's."""

    def event(self) -> Usage:
        prompt, completion = self.prompt_tokens_details, self.completion_tokens_details
        cached = prompt.cached_tokens if prompt is not None else None
        return Usage(
            self.prompt_tokens or 0,
            self.completion_tokens or 0,
            self.prompt_cache_hit_tokens if cached is None else cached,
            completion.reasoning_tokens if completion is not None else None,
        )


class _StreamedToken(Struct):
    """Together's, beside the choices of a chunk."""

    id: int
    text: str
    logprob: float | None = None


class _Body(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    token: _StreamedToken | None = None
    prompt: Raw = Raw()
    error: Raw = Raw()
    object: str | None = None
    system_fingerprint: str | None = None


class _EchoedPrompt(Struct):
    text: str = ""
    logprobs: _Logprobs | None = None


class _ErrorBody(Struct):
    """Everything that servers call an error's parts; `error` is the whole of it, a text, or absent."""

    error: Raw = Raw()
    message: str | None = None
    type: str | None = None
    error_type: str | None = None
    code: str | int | None = None
    detail: Raw = Raw()


def said(body: bytes | Raw) -> VendorError:
    """Raises msgspec.MsgspecError where it is no error's JSON."""
    told = msgspec.json.decode(body, type=_ErrorBody | str)
    if isinstance(told, str):
        return VendorError(0, message=told)
    kind = told.type or told.error_type or ""
    if (inner := bytes(told.error)) and inner != b"null":
        within = said(inner)
        return VendorError(
            within.status or _STATUSES.get(kind, 0), within.code or kind, within.message or told.message or ""
        )
    status = told.code if isinstance(told.code, int) and 400 <= told.code < 600 else _STATUSES.get(kind, 0)
    detail = bytes(told.detail).decode(errors="replace")
    return VendorError(status, told.code if isinstance(told.code, str) else kind, told.message or detail)


def refused(refusal: Refusal, request: CompletionRequest, target: Target) -> AndthenError:
    """The error to raise for a reply with another status than 200, whatever its body."""
    try:
        told = said(refusal.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        told = VendorError(0)
    return failure(
        VendorError(refusal.status, told.code, told.message, retry_after_s(refusal.headers)), request, target
    )


class _ContractError(Struct):
    message: str
    code: str
    param: str | None = None


class _ContractErrorBody(Struct):
    error: _ContractError


def told_on(body: bytes, request: CompletionRequest, target: Target, *, wait_s: int | None) -> AndthenError | None:
    """The error of another server of this contract, as it said it: what is the caller's to mend, and what went wrong
    behind it. None of all else: that is between the two servers.

    Args:
        wait_s: after which another try may succeed, if it was told.
    """
    try:
        own = msgspec.json.decode(body, type=_ContractErrorBody).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    kind = by_code(own.code)
    if not issubclass(kind, BadRequest | UpstreamError):
        return None
    # A token id that it names is no secret, and all that tells the caller which one is wrong.
    texts = tuple(prompt for prompt in request.prompts if isinstance(prompt, str))
    message = redacted(own.message, msgspec.structs.replace(request, prompts=texts), target)
    return kind(message, param=own.param if own.param in _FIELDS else None, retry_after_s=wait_s)


def _read(data: bytes, request: CompletionRequest, target: Target) -> _Body:
    """Raises the error that it tells, and UpstreamGarbled."""
    try:
        body = msgspec.json.decode(data, type=_Body)
        if bytes(body.error) not in (b"", b"null") or body.object == "error":
            raise failure(said(data), request, target)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise garbled(target, "is not the JSON that a completion is") from None
    return body


def _tokens(choice: _Choice, wanted: int | None, target: Target) -> list[Token]:
    """A choice's tokens; none where none were asked.

    Raises:
        UpstreamGarbled: the arrays are not parallel, or lack the alternatives that were asked.
    """
    told = choice.logprobs
    if wanted is None or not isinstance(told, _Logprobs):
        return []
    if told.content is not None:
        return [_from_content(token, wanted) for token in told.content]
    texts, logprobs, tops = told.tokens or [], told.token_logprobs or [], told.top_logprobs or []
    if isinstance(tops, dict):
        tops = [tops]
    ids: Sequence[int | None] = told.token_ids or [*(choice.prompt_token_ids or ()), *(choice.token_ids or ())]
    ids = ids if len(ids) == len(texts) else [None] * len(texts)
    if len(logprobs) != len(texts) or (wanted > 0 and len(tops) != len(texts)):
        raise garbled(target, "has log-probabilities that do not match its tokens")
    return [
        Token(own_id, text, logprob, 0, _top(own_id, text, logprob, tops[i]) if wanted > 0 else None)
        for i, (own_id, text, logprob) in enumerate(zip(ids, texts, logprobs, strict=True))
    ]


def _top(
    own_id: int | None, text: str, logprob: float | None, told: dict[str, float] | None
) -> tuple[Alternative, ...] | None:
    """A position's alternatives, best first, the token's own number among them whatever the server says of its text."""
    if logprob is None:
        return None
    known = {**(told or {}), text: logprob}
    entries = [Alternative(own_id if name == text else None, name, value) for name, value in known.items()]
    return tuple(sorted(entries, key=lambda entry: -entry.logprob))


def _from_content(token: _ContentToken, wanted: int) -> Token:
    text = token.text()
    if wanted == 0:
        return Token(token.id, text, token.logprob, 0)
    own = Alternative(token.id, text, token.logprob)
    others = [
        Alternative(other.id, other.text(), other.logprob)
        for other in token.top_logprobs or ()
        if (other.id, other.text()) != (token.id, text)
    ]
    return Token(token.id, text, token.logprob, 0, tuple(sorted([own, *others], key=lambda entry: -entry.logprob)))


class _Reader:
    """What both decoders do."""

    def __init__(self, request: CompletionRequest, target: Target) -> None:
        self._request = request
        self._target = target
        self._choices = len(request.prompts) * request.n
        self.fingerprint: str | None = None

    def _place(self, choice: _Choice, position: int) -> tuple[int, int]:
        """The prompt and the candidate of a choice; some servers leave the index out."""
        index = position if choice.index is None else choice.index
        if index >= self._choices:
            raise garbled(self._target, "has more choices than were asked")
        return divmod(index, self._request.n)

    def _reason(self, told: str) -> FinishReason:
        if (reason := _REASONS.get(told)) is not None:
            return reason
        if (status := _FAILURES.get(told)) is not None:
            raise failure(VendorError(status, told, "The text was ended early"), self._request, self._target)
        raise garbled(self._target, "ends for a reason that is not known")


class Whole(_Reader):
    """A reply in one piece.

    Args:
        apart: echoed prompts come in a list of their own.
        instead: of echoed prompts only the tokens come.
    """

    def __init__(self, request: CompletionRequest, target: Target, *, apart: bool, instead: bool) -> None:
        super().__init__(request, target)
        self._apart = apart
        self._instead = instead
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Event]:
        self._data.append(data)
        self._size += len(data)
        if self._size > MAX_REPLY_BYTES:
            raise garbled(self._target, "is longer than any reply can be")
        return []

    def end(self) -> list[Event]:
        data = b"".join(self._data)
        if not data.strip():
            raise cut_short(self._target)
        body = _read(data, self._request, self._target)
        self.fingerprint = body.system_fingerprint
        choices: dict[tuple[int, int], _Choice] = {}
        for position, choice in enumerate(body.choices or ()):
            choices[self._place(choice, position)] = choice
        if len(choices) != self._choices or len(body.choices or ()) != self._choices:
            raise garbled(self._target, "has fewer choices than were asked")
        events: list[Event] = []
        for place in sorted(choices):
            events += self._choice(place, choices[place], body)
        return events if body.usage is None else [*events, body.usage.event()]

    def _choice(self, place: tuple[int, int], choice: _Choice, body: _Body) -> list[Event]:
        prompt, candidate = place
        events: list[Event] = []
        text, tokens = choice.whole_text(), tuple(_tokens(choice, self._wanted, self._target))
        if self._request.echo:
            parts = self._parted(prompt, choice, tokens, body)
            text, tokens = parts.text, parts.tokens
            if candidate == 0:
                events.append(self._scored(prompt, parts, body))
        reason = self._reason(choice.finish_reason or "")
        if text or tokens:
            events.append(Text(prompt, candidate, text, tokens, len(tokens)))
        return [*events, Finished(prompt, candidate, reason)]

    @property
    def _wanted(self) -> int | None:
        return wanted_logprobs(self._request)

    def _parted(self, prompt: int, choice: _Choice, tokens: tuple[Token, ...], body: _Body) -> Parts:
        own = self._request.prompts[prompt]
        try:
            if self._apart:
                return self._parted_apart(prompt, choice, tokens, body)
            echo = Echo(own, choice.whole_text(), tokens, self._prompt_tokens(choice, body))
            return parted_tokens(echo, echo.text) if self._instead else parted(echo)
        except NoBorder:
            raise garbled(self._target, "does not show where the prompt ends") from None

    def _parted_apart(self, prompt: int, choice: _Choice, tokens: tuple[Token, ...], body: _Body) -> Parts:
        try:
            echoed = msgspec.json.decode(body.prompt, type=list[_EchoedPrompt])[prompt]
        except (msgspec.MsgspecError, IndexError):
            raise NoBorder from None
        own = str(self._request.prompts[prompt])
        read = tuple(_tokens(_Choice(logprobs=echoed.logprobs), self._wanted, self._target))
        if echoed.text != own or (own and not read):
            raise NoBorder
        front = read[added_in_front(own, read) :]
        return Parts(own, unscored_first(front), choice.whole_text(), tokens, len(read))

    def _prompt_tokens(self, choice: _Choice, body: _Body) -> int | None:
        if choice.prompt_token_ids is not None:
            return len(choice.prompt_token_ids)
        alone = len(self._request.prompts) == 1 and body.usage is not None
        return body.usage.prompt_tokens if alone and body.usage is not None else None

    def _scored(self, prompt: int, parts: Parts, body: _Body) -> PromptScored:
        usage = body.usage.event() if body.usage is not None and len(self._request.prompts) == 1 else None
        return PromptScored(
            prompt,
            prompt_tokens=usage.prompt_tokens if usage is not None else parts.read,
            cached_tokens=(usage.cached_tokens or 0) if usage is not None else 0,
            text=parts.prompt_text,
            tokens=parts.prompt_tokens,
        )


class Streamed(_Reader):
    """A reply as it comes.

    Args:
        totals: the usage that a chunk tells is that of the whole reply so far, not of the chunk's choice.
        tells_on: errors are those of this contract.
    """

    def __init__(
        self, request: CompletionRequest, target: Target, *, totals: bool = False, tells_on: bool = False
    ) -> None:
        super().__init__(request, target)
        self._totals = totals
        self._tells_on = tells_on
        self._sse = SseParser()
        self._deferred = Deferred()
        self._finished: set[tuple[int, int]] = set()
        self._counted = 0
        self._scored = 0
        """Prompts whose tokens were told."""
        self._usage: Usage | None = None
        self._done = False

    def feed(self, data: bytes) -> list[Event]:
        return self._deferred.collect(self._frame(frame) for frame in self._frames(data))

    def end(self) -> list[Event]:
        self._deferred.settle()
        if not self._done or len(self._finished) < self._choices:
            raise cut_short(self._target)
        return [] if self._usage is None else [self._usage]

    def _frames(self, data: bytes) -> Iterator[ServerSentEvent]:
        try:
            yield from self._sse.feed(data)
        except EventTooLong:
            raise garbled(self._target, "has a chunk that is longer than any can be") from None

    def _frame(self, frame: ServerSentEvent) -> list[Event]:
        if self._done:
            return []
        if frame.data.strip() == b"[DONE]":
            self._done = True
            return []
        if frame.name == "error":
            raise self._error(frame.data)
        body = _read(frame.data, self._request, self._target)
        self.fingerprint = body.system_fingerprint or self.fingerprint
        choices, counted = body.choices or [], 0
        events: list[Event] = []
        if body.usage is not None:
            before, self._usage = self._usage, body.usage.event()
            if self._totals and choices:
                events += self._read_so_far(before, self._usage)
            if len(choices) == 1 and (self._totals or self._choices == 1):
                counted = max(0, self._usage.completion_tokens - self._counted)
        for position, choice in enumerate(choices):
            events += self._choice(position, choice, body, counted)
        return events

    def _read_so_far(self, before: Usage | None, usage: Usage) -> Iterator[Event]:
        """What a chunk's usage says of prompts. Which of them was read is not told, and only the sum is shown."""
        tokens = usage.prompt_tokens - (before.prompt_tokens if before is not None else 0)
        cached = (usage.cached_tokens or 0) - ((before.cached_tokens or 0) if before is not None else 0)
        if tokens > 0 and self._scored < len(self._request.prompts):
            yield PromptScored(self._scored, prompt_tokens=tokens, cached_tokens=max(0, cached))
            self._scored += 1

    def _choice(self, position: int, choice: _Choice, body: _Body, counted: int) -> list[Event]:
        place = self._place(choice, position)
        text, tokens = choice.whole_text(), self._chunk_tokens(choice, body)
        if place in self._finished:
            if text or tokens:
                raise garbled(self._target, "goes on after its end")
            return []
        generated = counted or len(tokens)
        self._counted += generated
        events: list[Event] = [Text(*place, text, tokens, generated)] if text or tokens or generated else []
        if choice.finish_reason:
            self._finished.add(place)
            events.append(Finished(*place, self._reason(choice.finish_reason)))
        return events

    def _chunk_tokens(self, choice: _Choice, body: _Body) -> tuple[Token, ...]:
        if body.token is None or isinstance(choice.logprobs, _Logprobs):
            return tuple(_tokens(choice, self._request.logprobs, self._target))
        if self._request.logprobs is None or body.token.logprob is None:
            return ()
        return (Token(body.token.id, body.token.text, body.token.logprob, 0),)

    def _error(self, data: bytes) -> AndthenError:
        if self._tells_on and (error := told_on(data, self._request, self._target, wait_s=None)) is not None:
            return error
        try:
            return failure(said(data), self._request, self._target)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return garbled(self._target, "tells an error that is not JSON")
