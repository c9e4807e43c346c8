"""Anthropic's Messages: the prompt is one message of the user's, the completion the model's answer.

Read from: PyPI `anthropic` 2.12.0, `types/message_create_params.py`, `message.py`, `raw_message_stream_event.py`,
`usage.py`, `message_delta_usage.py`, `stop_reason.py`, `shared/error_type.py`, `_constants.py`, `_streaming.py`;
platform.claude.com, `api/versioning`, `api/migration-2026-10-21`, `api/errors`; November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import astuple

from andthen.contract.errors import AndthenError, UnsupportedParameter
from andthen.contract.events import Event, Finished, FinishReason, PromptScored, Text, Usage
from andthen.contract.request import CompletionRequest
from andthen.wire.base import Call, Decoder, Refusal, Target
from andthen.wire.deferred import Deferred
from andthen.wire.failures import VendorError, cut_short, failure, garbled, redacted, retry_after_s
from andthen.wire.sse import EventTooLong, ServerSentEvent, SseParser
from andthen.wire.whole import WholeDecoder, decoded

_REASONS: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
_STATUS_OF_TYPE: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_EVENTS = frozenset({"message_start", "content_block_start", "content_block_delta", "message_delta", "message_stop"})
_SAMPLING = ("temperature", "top_p", "top_k")
_DEFAULTS: Mapping[str, float] = {"temperature": 1, "top_p": 1, "top_k": 0}
_NOT_TAKEN = re.compile(r"deprecated|not permitted|not supported|cannot both|only one of", re.IGNORECASE)

_Count = Annotated[int, Meta(ge=0)]


class Language(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dialects: Anthropic itself by model, and the servers that speak its language."""

    path: str = "/messages"
    version: str = "2023-06-01"
    """Of the API. From 2026-10-21 on it has no sampling parameters."""
    leaves_defaults_out: bool = False
    """A sampling parameter that says no more than Anthropic's defaults (1, 1, off) is not sent: its models of 4.5 and
    before take one of temperature and top_p, not both."""
    thinking: str = ""
    """Sent as the type of `thinking`: what keeps models from it that would think unasked. Empty: nothing is sent."""
    effort: str = ""
    """Sent in `output_config`: how much models think that can't be kept from it."""

    def encode(self, request: CompletionRequest, target: Target, *, streams: bool) -> Call:
        key = (("x-api-key", target.key),) if target.key else ()
        version = (("anthropic-version", self.version),)
        return Call(
            url=target.address + self.path,
            headers=(("content-type", "application/json"), *version, *key, *target.headers),
            body=msgspec.json.encode(self._body(request, target, streams=streams)),
            streams=streams,
        )

    def decoder(self, request: CompletionRequest, target: Target, *, streams: bool) -> Decoder:
        if streams:
            return _StreamDecoder(request, target)
        return WholeDecoder(target, lambda body: _read_whole(body, request, target))

    def refusal(self, refusal: Refusal, request: CompletionRequest, target: Target) -> AndthenError:
        try:
            said = _decode_error(refusal.body).error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            said = None
        error = said or _Error()
        if refusal.status == 400 and (param := _untaken(error.message, request)):
            return UnsupportedParameter(
                f"`{param}` is not taken so by {target.vendor}'s model: {redacted(error.message, request, target)}",
                param=param,
            )
        wait_s = retry_after_s(refusal.headers)
        return failure(VendorError(refusal.status, error.type, error.message, wait_s), request, target)

    def _body(self, request: CompletionRequest, target: Target, *, streams: bool) -> dict[str, Any]:
        given = request.given
        body: dict[str, Any] = {
            "model": target.model,
            "max_tokens": request.max_tokens,
            "messages": [{"role": "user", "content": request.prompts[0]}],
        }
        body |= self._sampling(request)
        # Blank ones are an error there; the text is scanned for all of them anyway.
        if "stop" in given and (stops := [stop for stop in request.stop if stop.strip()]):
            body["stop_sequences"] = stops
        if "user" in given:
            body["metadata"] = {"user_id": request.user}
        if self.thinking:
            body["thinking"] = {"type": self.thinking}
        if self.effort:
            body["output_config"] = {"effort": self.effort}
        if streams:
            body["stream"] = True
        return body

    def _sampling(self, request: CompletionRequest) -> dict[str, Any]:
        values: dict[str, Any] = {name: getattr(request, name) for name in _SAMPLING if name in request.given}
        if "top_k" in values:
            values["top_k"] = max(values["top_k"], 0)
        if not self.leaves_defaults_out:
            return values
        return {name: value for name, value in values.items() if value != _DEFAULTS[name]}


def _untaken(message: str, request: CompletionRequest) -> str:
    """The sampling parameter that an error says the model lacks; empty where it is another error."""
    if not _NOT_TAKEN.search(message):
        return ""
    named = [name for name in _SAMPLING if name in request.given and re.search(rf"\b{name}\b", message)]
    return named[-1] if named else ""


class _Error(Struct, frozen=True):
    type: str = ""
    message: str = ""


class _Details(Struct, frozen=True):
    thinking_tokens: _Count | None = None


class _Usage(Struct, frozen=True):
    """What is told so far; later counts replace earlier ones."""

    input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    output_tokens_details: _Details | None = None

    @property
    def prompt_tokens(self) -> int:
        return sum(
            count or 0 for count in (self.input_tokens, self.cache_creation_input_tokens, self.cache_read_input_tokens)
        )

    def then(self, later: _Usage) -> _Usage:
        return _Usage(*(old if new is None else new for old, new in zip(astuple(self), astuple(later), strict=True)))

    def events(self) -> list[Event]:
        if self.output_tokens is None:
            return []
        details = self.output_tokens_details or _Details()
        return [Usage(self.prompt_tokens, self.output_tokens, self.cache_read_input_tokens, details.thinking_tokens)]


class _Block(Struct, frozen=True):
    """Of a content, or the delta of one; only those of type `text` and `text_delta` are the completion's."""

    type: str = ""
    text: str = ""
    stop_reason: str | None = None
    """Of a `message_delta`."""


class _Message(Struct, frozen=True):
    type: str = ""
    content: list[_Block] = []
    stop_reason: str | None = None
    usage: _Usage | None = None
    error: _Error | None = None


class _StreamEvent(Struct, frozen=True):
    type: str
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Block | None = None
    usage: _Usage | None = None


class _Kind(Struct, frozen=True):
    type: str = ""


class _ErrorReply(Struct, frozen=True):
    error: _Error | None = None


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_event = msgspec.json.Decoder(_StreamEvent).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_error = msgspec.json.Decoder(_ErrorReply).decode


def _read_whole(body: bytes, request: CompletionRequest, target: Target) -> list[Event]:
    """The events of a reply that is one message."""
    message = decoded(_decode_message, body, target)
    if message.error or message.type == "error":
        raise _failed(message.error or _Error(), request, target)
    text = "".join(block.text for block in message.content if block.type == "text")
    events: list[Event] = [Text(0, 0, text)] if text else []
    events.append(Finished(0, 0, _reason(message.stop_reason, target)))
    return events + (message.usage or _Usage()).events()


class _StreamDecoder:
    """Reads a reply that is a stream of events, complete at `message_stop`."""

    fingerprint: str | None = None

    def __init__(self, request: CompletionRequest, target: Target) -> None:
        self._request = request
        self._target = target
        self._parser = SseParser()
        self._deferred = Deferred()
        self._usage = _Usage()
        self._stop_reason: str | None = None
        self._begun = False
        self._done = False

    def feed(self, data: bytes) -> list[Event]:
        return self._deferred.collect(self._take(event) for event in self._events(data))

    def end(self) -> list[Event]:
        self._deferred.settle()
        if not self._done:
            raise cut_short(self._target)
        return []

    def _events(self, data: bytes) -> list[ServerSentEvent]:
        try:
            return self._parser.feed(data)
        except EventTooLong:
            raise garbled(self._target, "has an event that is too long") from None

    def _take(self, sent: ServerSentEvent) -> list[Event]:
        if self._done:
            return []
        try:
            kind = _decode_kind(sent.data).type or sent.name
            if kind == "error":
                raise _failed(_decode_error(sent.data).error or _Error(), self._request, self._target)
            # The API may come to send more kinds of events than these: they are passed over, as its versioning says.
            if kind not in _EVENTS:
                return []
            event = _decode_event(sent.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise garbled(self._target, "is not what the language says") from None
        match kind:
            case "message_start":
                return self._begin(event.message or _Message())
            case "content_block_start":
                return _text(event.content_block, "text")
            case "content_block_delta":
                return _text(event.delta, "text_delta")
            case "message_delta":
                self._usage = self._usage.then(event.usage or _Usage())
                self._stop_reason = (event.delta or _Block()).stop_reason or self._stop_reason
                return []
        self._done = True
        return [Finished(0, 0, _reason(self._stop_reason, self._target)), *self._usage.events()]

    def _begin(self, message: _Message) -> list[Event]:
        if self._begun:
            raise garbled(self._target, "begins twice")
        self._begun = True
        self._usage = message.usage or _Usage()
        if not self._usage.prompt_tokens:
            return []
        return [PromptScored(0, self._usage.prompt_tokens, self._usage.cache_read_input_tokens or 0)]


def _text(block: _Block | None, kind: str) -> list[Event]:
    return [Text(0, 0, block.text)] if block and block.type == kind and block.text else []


def _reason(said: str | None, target: Target) -> FinishReason:
    reason = _REASONS.get(said or "")
    if reason is None:
        raise garbled(target, "ends for a reason that the language does not have")
    return reason


def _failed(error: _Error, request: CompletionRequest, target: Target) -> AndthenError:
    status = _STATUS_OF_TYPE.get(error.type, 0)
    return failure(VendorError(status, error.type, error.message), request, target)
