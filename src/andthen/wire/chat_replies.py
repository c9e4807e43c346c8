"""Replies in the chat layout, whole or as server-sent events. Several languages share it: OpenAI's, Mistral's.

Read from: PyPI `openai` 3.54.0, `types/chat/chat_completion.py` and `chat_completion_chunk.py`; `mistralai` 3.7.0,
`client/models/{chatcompletionchoice,completionchunk,chatcompletionresponsetokenlogprobstopk}.py`; `groq` 1.7.0,
`types/chat/chat_completion_chunk.py` (`x_groq`); `openrouter` 1.3.84, `components/chatstreamchunk.py`; November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from andthen.contract.errors import AndthenError, UpstreamRefused
from andthen.contract.events import Alternative, Event, Finished, FinishReason, Text, Token, Usage
from andthen.contract.request import CompletionRequest
from andthen.contract.text import token_text
from andthen.wire.base import Refusal, Target
from andthen.wire.failures import VendorError, cut_short, failure, garbled, retry_after_s
from andthen.wire.sse import EventTooLong, ServerSentEvent, SseParser
from andthen.wire.whole import MAX_REPLY_BYTES

_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "tool_calls": "stop",
    "function_call": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "content_filter": "content_filter",
    "sensitive": "content_filter",
}
_FAILURES = frozenset({"error", "abort", "insufficient_system_resource", "network_error"})
_STATUS_OF_CODE: Mapping[str, int] = {
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "insufficient_quota": 429,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": 503,
    "service_unavailable": 503,
}

Count = Annotated[int, Meta(ge=0)]
_Byte = Annotated[int, Meta(ge=0, le=255)]


class _Part(Struct, frozen=True):
    """One block of a content that comes as a list; one that is not text has no `text`."""

    type: str = "text"
    text: str | None = None


class _Delta(Struct, frozen=True):
    content: str | list[_Part] | None = None
    refusal: str | None = None


_EMPTY = _Delta()


class _TopLogprob(Struct, frozen=True, gc=False):
    token: str
    logprob: float
    bytes: list[_Byte] | None = None
    token_id: int | None = None


class _TokenLogprob(_TopLogprob, frozen=True, gc=False):
    top_logprobs: list[_TopLogprob] | None = None


class _Logprobs(Struct, frozen=True):
    content: list[Raw] | None = None
    """Read one by one: all of a long reply at once would take seconds in which nothing else runs."""


class _Choice(Struct, frozen=True):
    index: Count | None = None
    message: _Delta | None = None
    """Of a whole reply."""
    delta: _Delta | None = None
    """Of a chunk."""
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _PromptDetails(Struct, frozen=True):
    cached_tokens: Count | None = None


class _CompletionDetails(Struct, frozen=True):
    reasoning_tokens: Count | None = None


class _Usage(Struct, frozen=True):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    cached_tokens: Count | None = None
    reasoning_tokens: Count | None = None
    prompt_cache_hit_tokens: Count | None = None


class _XGroq(Struct, frozen=True):
    usage: _Usage | None = None
    error: str | None = None


_NO_GROQ = _XGroq()


class _Reply(Struct, frozen=True):
    """A whole reply, or one chunk of a stream."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    system_fingerprint: str | None = None
    x_groq: _XGroq | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Reply).decode
_decode_token = msgspec.json.Decoder(_TokenLogprob).decode


_THOUGHT_OPENS, _THOUGHT_CLOSES = "<think>", "</think>"


class Thoughts:
    """Leaves out the reasoning that a text begins with, between `<think>` and `</think>`."""

    __slots__ = ("_held", "_is_over")

    def __init__(self) -> None:
        self._held = ""
        self._is_over = False

    def feed(self, text: str) -> str:
        """Returns the text that is decided to be none of it."""
        if self._is_over:
            return text
        held = (self._held + text).lstrip()
        if held.startswith(_THOUGHT_OPENS):
            _, closes, after = held.partition(_THOUGHT_CLOSES)
            self._is_over = bool(closes)
            # Of an open thought only what may be the beginning of its end is kept.
            self._held = "" if closes else _THOUGHT_OPENS + held[len(_THOUGHT_OPENS) :][1 - len(_THOUGHT_CLOSES) :]
            return after
        held, self._held = self._held + text, ""
        if _THOUGHT_OPENS.startswith(held.lstrip()):
            self._held = held
            return ""
        self._is_over = True
        return held

    def flush(self) -> str:
        """The end of the text: what was held back began no thought after all; an open one is left out."""
        held, self._held = self._held, ""
        return "" if held.lstrip().startswith(_THOUGHT_OPENS) else held


class ChatDecoder:
    """Reads one reply. A stream is complete at `[DONE]`, or (`marked` false) at its end, once all candidates are.

    With `aloud` a text may begin with reasoning in tags, which is left out; not together with log-probabilities.
    """

    def __init__(
        self, request: CompletionRequest, target: Target, *, streams: bool, marked: bool = True, aloud: bool = False
    ) -> None:
        self._request = request
        self._target = target
        self._parser = SseParser() if streams else None
        self._marked = marked
        self._body = bytearray()
        self._open = set(range(request.n))
        self._texts: set[int] = set()
        self._scored: set[int] = set()
        self._refused: set[int] = set()
        self._thoughts = {candidate: Thoughts() for candidate in self._open} if aloud else {}
        self._usage: Usage | None = None
        self._done = False
        self._broken: AndthenError | None = None
        self.fingerprint: str | None = None

    def feed(self, data: bytes) -> list[Event]:
        if self._parser is None:
            self._body += data
            if len(self._body) > MAX_REPLY_BYTES:
                raise garbled(self._target, "is too long")
            return []
        if self._broken:
            raise self._broken
        events: list[Event] = []
        try:
            for event in self._parser.feed(data):
                if not self._done:
                    events += self._chunk(event)
        except EventTooLong:
            self._broken = garbled(self._target, "has an event that is too long")
        except AndthenError as error:
            # What came before it is passed on first, however the bytes were cut.
            self._broken = error
        if self._broken and not events:
            raise self._broken
        return events

    def end(self) -> list[Event]:
        if self._broken:
            raise self._broken
        if self._parser is None:
            return [*self._reply(bytes(self._body)), *self._complete()]
        if self._done:
            return []
        if self._marked:
            raise cut_short(self._target)
        return self._complete()

    def _chunk(self, event: ServerSentEvent) -> list[Event]:
        if event.data.strip() == b"[DONE]":
            self._done = True
            return self._complete()
        if event.name == "error":
            raise self._failed(said(event.data) or VendorError(0))
        return self._reply(event.data)

    def _complete(self) -> list[Event]:
        if self._open:
            raise cut_short(self._target)
        return [self._usage] if self._usage else []

    def _reply(self, data: bytes) -> list[Event]:
        try:
            reply = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if error := said(data):
                raise self._failed(error) from None
            raise garbled(self._target, "is not what the language says") from None
        groq = reply.x_groq or _NO_GROQ
        if reply.error or groq.error:
            raise self._failed(said(data) or VendorError(0, message=groq.error or ""))
        if reply.choices is None and reply.usage is None and (error := said(data)) and error.message:
            raise self._failed(error)
        if usage := reply.usage or groq.usage:
            self._usage = _usage(usage) or self._usage
        self.fingerprint = reply.system_fingerprint or self.fingerprint
        events: list[Event] = []
        for place, choice in enumerate(reply.choices or ()):
            events += self._choice(place if choice.index is None else choice.index, choice)
        return events

    def _choice(self, candidate: int, choice: _Choice) -> list[Event]:
        # Perplexity's chunks have both, `message` with all of the text so far.
        message = (choice.delta if self._parser else choice.message) or _EMPTY
        text = _content(message)
        tokens = self._tokens(choice.logprobs)
        if candidate not in self._open:
            if text or candidate >= self._request.n:
                raise garbled(self._target, "goes on after a candidate's end, or has more candidates than asked")
            return []
        if thoughts := self._thoughts.get(candidate):
            text = thoughts.feed(text) + (thoughts.flush() if choice.finish_reason else "")
        events: list[Event] = []
        if message.refusal:
            self._refused.add(candidate)
        if text or tokens:
            events.append(Text(0, candidate, text, tokens, len(tokens)))
            if text:
                self._texts.add(candidate)
            if tokens:
                self._scored.add(candidate)
        if choice.finish_reason:
            events.append(self._finished(candidate, choice.finish_reason))
        return events

    def _finished(self, candidate: int, said_reason: str) -> Finished:
        if said_reason in _FAILURES:
            raise self._failed(VendorError(0, code=said_reason))
        reason = _REASONS.get(said_reason)
        if reason is None:
            raise garbled(self._target, "ends for a reason that the language does not have")
        if self._request.logprobs is not None and candidate in self._texts - self._scored:
            raise UpstreamRefused(
                f"{self._target.vendor}'s reply has no log-probabilities, though they were asked for: leave `logprobs` "
                "and `best_of` out.",
                param="logprobs",
            )
        self._open.discard(candidate)
        return Finished(0, candidate, "content_filter" if candidate in self._refused else reason)

    def _tokens(self, logprobs: _Logprobs | None) -> tuple[Token, ...]:
        depth = self._request.logprobs
        if depth is None or logprobs is None:
            return ()
        try:
            return tuple(_token(_decode_token(entry), depth) for entry in logprobs.content or ())
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise garbled(self._target, "is not what the language says") from None

    def _failed(self, error: VendorError) -> AndthenError:
        return failure(error, self._request, self._target)


def refused(refusal: Refusal, request: CompletionRequest, target: Target) -> AndthenError:
    """What to raise for a reply whose status is not 200, in any of the shapes that servers of the layout use."""
    error = said(refusal.body) or VendorError(refusal.status)
    wait_s = retry_after_s(refusal.headers)
    return failure(VendorError(refusal.status, error.code, error.message, wait_s), request, target)


def said(body: bytes) -> VendorError | None:
    """What an error's body says; None where it is no error's.

    Servers write `{"error": {"message", "type", "code"}}` (OpenAI), `{"message", "type", "code"}` (Mistral, Cerebras),
    `{"error": "…", "code": "…"}` (xAI), `{"detail": "…"}` (NVIDIA, Mistral's 422), `{"errors": {"message"}}` (Z.AI's
    and other gateways), or one of these in a list.
    """
    try:
        body_value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(body_value, list) and body_value:
        body_value = body_value[0]
    if not isinstance(body_value, dict):
        return None
    inner = next((value for name in ("error", "errors") if (value := body_value.get(name))), None)
    if isinstance(inner, list) and inner:
        inner = inner[0]
    fields = {**body_value, **inner} if isinstance(inner, dict) else body_value
    message = _first_text(fields, ("message", "detail", "title")) or (inner if isinstance(inner, str) else "")
    code = _first_text(fields, ("code", "type"))
    if not message and not code and inner is None:
        return None
    return VendorError(_status(fields, code), code, message)


def _first_text(fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        value = fields.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, dict):
            value = next((value[key] for key in ("message", "detail", "msg") if key in value), None)
        if isinstance(value, str) and value:
            return value
    return ""


def _status(fields: Mapping[str, Any], code: str) -> int:
    """HTTP's status for an error that came without one."""
    for name in ("status_code", "code", "status"):
        value = fields.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) == len("400"):
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
            return value
    kind = fields.get("type")
    return _STATUS_OF_CODE.get(code) or (_STATUS_OF_CODE.get(kind, 0) if isinstance(kind, str) else 0)


def _content(message: _Delta) -> str:
    if isinstance(message.content, list):
        return "".join(part.text or "" for part in message.content if part.type == "text")
    return message.content or ""


def _token(entry: _TokenLogprob, depth: int) -> Token:
    chosen = _alternative(entry)
    return Token(chosen.id, chosen.text, chosen.logprob, 0, _top(entry, chosen, depth) if depth else None)


def _top(entry: _TokenLogprob, chosen: Alternative, depth: int) -> tuple[Alternative, ...]:
    """The vendor's alternatives with the chosen token among them, its number the one that the token bears."""
    others = [_alternative(other) for other in (entry.top_logprobs or ())]
    best = sorted(others, key=lambda other: -other.logprob)[:depth]
    same = [other for other in best if other.text == chosen.text]
    best = [other for other in best if other not in same]
    return tuple(sorted([chosen, *best], key=lambda other: -other.logprob))


def _alternative(entry: _TopLogprob) -> Alternative:
    return Alternative(entry.token_id, token_text(bytes(entry.bytes)) if entry.bytes else entry.token, entry.logprob)


def _usage(told: _Usage) -> Usage | None:
    if told.prompt_tokens is None or told.completion_tokens is None:
        return None
    prompt_details = told.prompt_tokens_details or _PromptDetails()
    completion_details = told.completion_tokens_details or _CompletionDetails()
    completion = told.completion_tokens
    reasoning = _first(completion_details.reasoning_tokens, told.reasoning_tokens)
    if reasoning and told.prompt_tokens + completion + reasoning == told.total_tokens:
        # xAI counts hidden tokens beside the visible ones; everybody else, and the contract, among them.
        completion += reasoning
    cached = _first(prompt_details.cached_tokens, told.cached_tokens, told.prompt_cache_hit_tokens)
    return Usage(told.prompt_tokens, completion, cached, reasoning)


def _first(*counts: int | None) -> int | None:
    return next((count for count in counts if count is not None), None)
