"""Cohere's chat, version 2: the prompt is one message of the user's, the completion the model's answer.

Read from: PyPI `cohere` 7.3.1, `v2/client.py` (`chat`, `chat_stream`), `v2/types/v2chat_response.py`,
`v2/types/v2chat_stream_response.py`, `types/{logprob_item,usage,usage_tokens,chat_finish_reason,thinking}.py`,
`errors/`; github.com/cohere-ai/cohere-developer-experience, `cohere-openapi.yaml` (`/v2/chat`) and
`fern/pages/cohere-api/errors.mdx`; November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from andthen.contract.errors import AndthenError, UnsupportedParameter, UpstreamRefused
from andthen.contract.events import Event, Finished, FinishReason, Text, Token, Usage
from andthen.contract.request import CompletionRequest
from andthen.wire.base import Call, Decoder, Refusal, Target, bearer_call
from andthen.wire.deferred import Deferred
from andthen.wire.failures import VendorError, cut_short, failure, garbled, retry_after_s
from andthen.wire.sse import EventTooLong, ServerSentEvent, SseParser
from andthen.wire.whole import WholeDecoder, decoded

_REASONS: Mapping[str, FinishReason] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "TOOL_CALL": "stop",
    "MAX_TOKENS": "length",
}
_STATUS_OF_REASON: Mapping[str, int] = {"ERROR": 0, "TIMEOUT": 504}
_EVENTS = frozenset({"content-start", "content-delta", "message-end"})
_NAMES: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "p",
    "top_k": "k",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "stop": "stop_sequences",
}
_PENALTIES = ("frequency_penalty", "presence_penalty")
_WIDEST_P = 0.99

_Amount = Annotated[float, Meta(ge=0, le=2**53)]
"""Cohere's types write counts as floats."""


class Language(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dialects: by model."""

    path: str = "/chat"
    thinking: str = ""
    """Sent as the type of `thinking`: `disabled` keeps models from it that think unasked. Empty: nothing is sent."""

    def encode(self, request: CompletionRequest, target: Target, *, streams: bool) -> Call:
        return bearer_call(target, self.path, self._body(request, target, streams=streams), streams=streams)

    def decoder(self, request: CompletionRequest, target: Target, *, streams: bool) -> Decoder:
        if streams:
            return _StreamDecoder(request, target)
        return WholeDecoder(target, lambda body: _read_whole(body, request, target))

    def refusal(self, refusal: Refusal, request: CompletionRequest, target: Target) -> AndthenError:
        try:
            message = _decode_error(refusal.body).message
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            message = ""
        if refusal.status == 400 and all(name in request.given and name in message for name in _PENALTIES):
            return UnsupportedParameter(
                f"`presence_penalty` is not taken by {target.vendor} together with `frequency_penalty`: leave one out.",
                param="presence_penalty",
            )
        wait_s = retry_after_s(refusal.headers)
        match refusal.status:
            case 498:
                error = VendorError(401, "invalid_token", message)
            case 499:
                # The call was cancelled on the way, not by us: another try is what Cohere advises.
                error = VendorError(0, "request_cancelled", message)
            case status:
                error = VendorError(status, "", message, wait_s)
        return failure(error, request, target)

    def _body(self, request: CompletionRequest, target: Target, *, streams: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": target.model,
            "messages": [{"role": "user", "content": request.prompts[0]}],
            "max_tokens": request.max_tokens,
            # The API's definition requires it.
            "stream": streams,
        }
        body |= {name: getattr(request, field) for field, name in _NAMES.items() if field in request.given}
        if "p" in body:
            # The contract's default, nothing left out, has no number there: this is the nearest. A caller's own 1 is
            # refused by the row.
            body["p"] = min(body["p"], _WIDEST_P)
        if "k" in body:
            body["k"] = max(body["k"], 0)
        # Models take one of them, not both: 0 says no more than the default.
        for name in _PENALTIES:
            if body.get(name) == 0:
                del body[name]
        if "logprobs" in request.given:
            body["logprobs"] = True
        if self.thinking:
            body["thinking"] = {"type": self.thinking}
        return body


class _ErrorReply(Struct, frozen=True):
    message: str = ""


class _Logprobs(Struct, frozen=True):
    text: str | None = None
    token_ids: list[int] = []
    logprobs: list[float] | None = None


class _Tokens(Struct, frozen=True):
    input_tokens: _Amount | None = None
    output_tokens: _Amount | None = None


class _Usage(Struct, frozen=True):
    tokens: _Tokens | None = None
    cached_tokens: _Amount | None = None


class _Part(Struct, frozen=True):
    """A block of a content, or the delta of one: text or thinking."""

    type: str = "text"
    text: str | None = None


class _DeltaMessage(Struct, frozen=True):
    content: _Part | None = None


class _Delta(Struct, frozen=True):
    message: _DeltaMessage | None = None
    error: str | None = None
    finish_reason: str | None = None
    usage: _Usage | None = None


class _StreamEvent(Struct, frozen=True):
    delta: _Delta | None = None
    logprobs: _Logprobs | None = None


class _Message(Struct, frozen=True):
    content: list[_Part] | None = None


class _Reply(Struct, frozen=True):
    finish_reason: str
    message: _Message | None = None
    usage: _Usage | None = None
    logprobs: list[_Logprobs] | None = None


class _Kind(Struct, frozen=True):
    type: str = ""


_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_event = msgspec.json.Decoder(_StreamEvent).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_error = msgspec.json.Decoder(_ErrorReply).decode


def _read_whole(body: bytes, request: CompletionRequest, target: Target) -> list[Event]:
    """The events of a reply that is one object."""
    reply = decoded(_decode_reply, body, target)
    content = (reply.message or _Message()).content or []
    text = "".join(part.text or "" for part in content if part.type == "text")
    tokens = _tokens(text, reply.logprobs or [], request, target)
    events: list[Event] = [Text(0, 0, text, tokens, len(tokens))] if text or tokens else []
    events.append(Finished(0, 0, _reason(reply.finish_reason, "", request, target)))
    return events + _usage(reply.usage)


class _StreamDecoder:
    """Reads a reply that is a stream of events, complete at `message-end`."""

    fingerprint: str | None = None

    def __init__(self, request: CompletionRequest, target: Target) -> None:
        self._request = request
        self._target = target
        self._parser = SseParser()
        self._deferred = Deferred()
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
        if sent.data.strip() == b"[DONE]":
            raise cut_short(self._target)
        try:
            kind = _decode_kind(sent.data).type or sent.name
            if kind not in _EVENTS:
                return []
            event = _decode_event(sent.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise garbled(self._target, "is not what the language says") from None
        delta = event.delta or _Delta()
        if kind != "message-end":
            return self._text(delta, event.logprobs)
        self._done = True
        reason = _reason(delta.finish_reason or "", delta.error or "", self._request, self._target)
        return [Finished(0, 0, reason), *_usage(delta.usage)]

    def _text(self, delta: _Delta, logprobs: _Logprobs | None) -> list[Event]:
        part = (delta.message or _DeltaMessage()).content or _Part()
        text = part.text if part.type == "text" and part.text else ""
        if not text:
            return []
        tokens = _tokens(text, [logprobs] if logprobs else [], self._request, self._target)
        return [Text(0, 0, text, tokens, len(tokens))]


def _tokens(text: str, items: Sequence[_Logprobs], request: CompletionRequest, target: Target) -> tuple[Token, ...]:
    """The tokens of `text`, where log-probabilities were asked for.

    Raises:
        UpstreamRefused: the items don't spell the text token by token, so that which number belongs to which part of
            it can't be told.
    """
    if request.logprobs is None:
        return ()
    tokens: list[Token] = []
    for item in items:
        if len(item.token_ids) == len(item.logprobs or ()) == 1:
            tokens.append(Token(item.token_ids[0], item.text or "", (item.logprobs or [0.0])[0], 0))
    if len(tokens) < len(items) or "".join(token.text for token in tokens) != text:
        raise UpstreamRefused(
            f"{target.vendor}'s reply does not tell the log-probability of each token of its text: leave `logprobs` "
            "and `best_of` out.",
            param="logprobs",
        )
    return tuple(tokens)


def _reason(said: str, message: str, request: CompletionRequest, target: Target) -> FinishReason:
    if said in _STATUS_OF_REASON:
        raise failure(VendorError(_STATUS_OF_REASON[said], said, message), request, target)
    if message:
        raise failure(VendorError(0, said, message), request, target)
    reason = _REASONS.get(said)
    if reason is None:
        raise garbled(target, "ends for a reason that the language does not have")
    return reason


def _usage(usage: _Usage | None) -> list[Event]:
    tokens = usage.tokens if usage else None
    if usage is None or tokens is None or tokens.input_tokens is None or tokens.output_tokens is None:
        return []
    cached = None if usage.cached_tokens is None else int(usage.cached_tokens)
    return [Usage(int(tokens.input_tokens), int(tokens.output_tokens), cached)]
