"""Google's generateContent, as the Gemini API and Vertex AI speak it.

Read from: PyPI `google-genai` 3.4.0, `models.py` (`_GenerateContentConfig_to_mldev`, `…_to_vertex`), `types.py`
(`GenerateContentResponse`, `FinishReason`, `BlockedReason`, `LogprobsResult`), `_api_client.py` and `errors.py`;
`google-ai-generativelanguage` 0.12.1 and `google-cloud-aiplatform` 2.7.0, `GenerationConfig`; November 2026.
Every chunk of a stream is a whole response, and no mark ends it: it is complete once each candidate has its reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from andthen.contract.errors import AndthenError, UnsupportedParameter
from andthen.contract.events import Alternative, Event, Finished, FinishReason, PromptScored, Text, Token, Usage
from andthen.contract.request import CompletionRequest
from andthen.wire.base import Call, Headers, Refusal, Target
from andthen.wire.deferred import Deferred
from andthen.wire.failures import VendorError, cut_short, failure, garbled, redacted, retry_after_s
from andthen.wire.sse import MAX_EVENT_BYTES, EventTooLong, ServerSentEvent, SseParser

_REASONS: Mapping[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "ESCALATION": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
}
"""All others (`OTHER`, `MALFORMED_RESPONSE`, those of tools and images) are failures."""
_UNSPECIFIED = "FINISH_REASON_UNSPECIFIED"
_BAD_KEY = "API_KEY_INVALID"
_NOT_TAKEN = re.compile(r"is not (enabled|supported) for", re.IGNORECASE)
_WORDS: Mapping[str, str] = {
    "presence_penalty": "penalty",
    "frequency_penalty": "penalty",
    "logprobs": "logprobs",
    "n": "multiple candidates",
}
"""By what an error names the parameters that only some models take."""
_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")

_Count = Annotated[int, Meta(ge=0)]


class _Part(Struct, frozen=True):
    text: str | None = None
    thought: bool | None = None


class _Content(Struct, frozen=True):
    parts: list[_Part] | None = None


class _Scored(Struct, frozen=True, rename="camel"):
    """A token, written as text; its bytes are not told."""

    log_probability: float
    token: str = ""
    token_id: int | None = None


class _Scoreds(Struct, frozen=True):
    candidates: list[_Scored] | None = None


class _LogprobsResult(Struct, frozen=True, rename="camel"):
    chosen_candidates: list[_Scored] | None = None
    top_candidates: list[_Scoreds] | None = None


class _Candidate(Struct, frozen=True, rename="camel"):
    index: _Count | None = None
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    logprobs_result: _LogprobsResult | None = None


class _Feedback(Struct, frozen=True, rename="camel"):
    block_reason: str | None = None


class _UsageMetadata(Struct, frozen=True, rename="camel"):
    prompt_token_count: _Count | None = None
    candidates_token_count: _Count | None = None
    thoughts_token_count: _Count | None = None
    cached_content_token_count: _Count | None = None


class _Detail(Struct, frozen=True, rename="camel"):
    """Of `google.rpc.ErrorInfo` the reason, of `google.rpc.RetryInfo` the delay."""

    reason: str | None = None
    retry_delay: str | None = None


class _Error(Struct, frozen=True):
    code: int | str | None = None
    """A text from gateways that speak the language (seen: LiteLLM 1.103.6)."""
    message: str | None = None
    status: str | None = None
    details: list[_Detail] | None = None


class _Response(Struct, frozen=True, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: _UsageMetadata | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Response).decode
_decode_refusal = msgspec.json.Decoder(_Response | list[_Response]).decode


class Language(Struct, frozen=True, forbid_unknown_fields=True):
    """generateContent, with what its servers differ in."""

    bearer: bool = False
    """The key is an access token (Vertex AI), not an API key."""
    thinking_budget: int | None = None
    """Tokens that a model of before Gemini 3 may spend on hidden thoughts; they count in `max_tokens`. 0: none."""
    thinking_level: str = ""
    """The same for later models, in words: `MINIMAL`, `LOW`, …; empty: not sent."""

    def encode(self, request: CompletionRequest, target: Target, *, streams: bool) -> Call:
        streams = streams and not _comes_whole(request)
        body = {
            "contents": [{"role": "user", "parts": [{"text": request.prompts[0]}]}],
            "generationConfig": self._config(request),
        }
        method = "streamGenerateContent?alt=sse" if streams else "generateContent"
        return Call(
            url=f"{target.address}/models/{quote(target.model, safe='')}:{method}",
            headers=(("content-type", "application/json"), *self._key(target), *target.headers),
            body=msgspec.json.encode(body),
            streams=streams,
        )

    def decoder(self, request: CompletionRequest, target: Target, *, streams: bool) -> _Decoder:
        return _Decoder(request, target, streams=streams and not _comes_whole(request))

    def refusal(self, refusal: Refusal, request: CompletionRequest, target: Target) -> AndthenError:
        try:
            told = _decode_refusal(refusal.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            told = _Response()
        response = next(iter(told), _Response()) if isinstance(told, list) else told
        error = _vendor_error(response.error or _Error(), refusal.status, retry_after_s(refusal.headers))
        if error.status == 400 and (param := _untaken(error.message, request)):
            return UnsupportedParameter(
                f"`{param}` is not taken by {target.vendor}'s model: {redacted(error.message, request, target)}",
                param=param,
            )
        return failure(error, request, target)

    def _key(self, target: Target) -> Headers:
        if not target.key:
            return ()
        return (("authorization", f"Bearer {target.key}") if self.bearer else ("x-goog-api-key", target.key),)

    def _config(self, request: CompletionRequest) -> dict[str, Any]:
        config: dict[str, Any] = {"maxOutputTokens": request.max_tokens}
        for name, wire_name, value in (
            ("temperature", "temperature", request.temperature),
            ("top_p", "topP", request.top_p),
            ("seed", "seed", request.seed),
            ("stop", "stopSequences", request.stop),
            ("presence_penalty", "presencePenalty", request.presence_penalty),
            ("frequency_penalty", "frequencyPenalty", request.frequency_penalty),
            ("top_k", "topK", request.top_k),
            ("n", "candidateCount", request.n),
        ):
            if name in request.given:
                config[wire_name] = value
        if request.logprobs is not None:
            config["responseLogprobs"] = True
            if request.logprobs:
                config["logprobs"] = request.logprobs
        if self.thinking_level:
            config["thinkingConfig"] = {"thinkingLevel": self.thinking_level}
        elif self.thinking_budget is not None:
            config["thinkingConfig"] = {"thinkingBudget": self.thinking_budget}
        return config


def _untaken(message: str, request: CompletionRequest) -> str:
    """The parameter that an error says the model does not take; empty where it is another error."""
    if not _NOT_TAKEN.search(message):
        return ""
    return next((name for name, word in _WORDS.items() if name in request.given and word in message.lower()), "")


def _comes_whole(request: CompletionRequest) -> bool:
    """Google streams neither log-probabilities nor several candidates (GitHub: vercel/ai#11989,
    router-for-me/CLIProxyAPI#961): such a reply is asked for whole."""
    return request.logprobs is not None or request.n > 1


class _Decoder:
    def __init__(self, request: CompletionRequest, target: Target, *, streams: bool) -> None:
        self.fingerprint: str | None = None
        self._request = request
        self._target = target
        self._deferred = Deferred()
        self._parser = SseParser() if streams else None
        self._body = bytearray()
        self._open = set(range(request.n))
        self._prompt_told = False
        self._usage: Usage | None = None

    def feed(self, data: bytes) -> list[Event]:
        if self._parser is None:
            self._body += data
            if len(self._body) > MAX_EVENT_BYTES:
                raise garbled(self._target, "is too long")
            return []
        return self._deferred.collect(self._response(event.data) for event in self._events(self._parser, data))

    def end(self) -> list[Event]:
        self._deferred.settle()
        events = [] if self._parser else self._response(bytes(self._body))
        if self._open:
            raise cut_short(self._target)
        return [*events, self._usage] if self._usage else events

    def _events(self, parser: SseParser, data: bytes) -> list[ServerSentEvent]:
        try:
            return parser.feed(data)
        except EventTooLong:
            raise garbled(self._target, "has an event that is too long") from None

    def _response(self, data: bytes) -> list[Event]:
        try:
            response = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise garbled(self._target, "is not what the language says") from None
        if response.error is not None:
            raise failure(_vendor_error(response.error, 0, None), self._request, self._target)
        events: list[Event] = []
        if response.usage_metadata is not None:
            events += self._count(response.usage_metadata)
        for place, candidate in enumerate(response.candidates or ()):
            events += self._candidate(place if candidate.index is None else candidate.index, candidate)
        if not response.candidates and response.prompt_feedback and response.prompt_feedback.block_reason:
            events += [Finished(0, candidate, "content_filter") for candidate in sorted(self._open)]
            self._open.clear()
        return events

    def _count(self, told: _UsageMetadata) -> list[Event]:
        if told.prompt_token_count is None:
            return []
        thoughts, cached = told.thoughts_token_count, told.cached_content_token_count
        completion = (told.candidates_token_count or 0) + (thoughts or 0)
        self._usage = Usage(told.prompt_token_count, completion, cached, thoughts)
        if self._parser is None or self._prompt_told:
            return []
        self._prompt_told = True
        return [PromptScored(0, told.prompt_token_count, cached or 0)]

    def _candidate(self, number: int, candidate: _Candidate) -> list[Event]:
        parts = (candidate.content.parts if candidate.content else None) or ()
        text = "".join(part.text or "" for part in parts if not part.thought)
        tokens = self._tokens(candidate.logprobs_result)
        reason = candidate.finish_reason if candidate.finish_reason != _UNSPECIFIED else None
        if number not in self._open:
            if text or tokens or number >= self._request.n:
                raise garbled(self._target, "goes on after a candidate's end, or has more candidates than asked")
            return []
        events: list[Event] = [Text(0, number, text, tokens, len(tokens))] if text or tokens else []
        if reason is not None:
            if reason not in _REASONS:
                error = VendorError(0, code=reason, message=candidate.finish_message or "")
                raise failure(error, self._request, self._target)
            self._open.discard(number)
            events.append(Finished(0, number, _REASONS[reason]))
        return events

    def _tokens(self, result: _LogprobsResult | None) -> tuple[Token, ...]:
        depth = self._request.logprobs
        if depth is None or result is None:
            return ()
        chosen, tops = result.chosen_candidates or [], result.top_candidates or []
        if depth and len(tops) != len(chosen):
            raise garbled(self._target, "has another number of alternatives than of tokens")
        if not depth:
            return tuple(Token(one.token_id, one.token, one.log_probability, 0) for one in chosen)
        return tuple(
            Token(one.token_id, one.token, one.log_probability, 0, _top(one, top.candidates or [], depth))
            for one, top in zip(chosen, tops, strict=True)
        )


def _top(chosen: _Scored, told: list[_Scored], depth: int) -> tuple[Alternative, ...]:
    """The `depth` most probable tokens, and the chosen one where it is not among them."""
    best = sorted(told, key=lambda one: -one.log_probability)[:depth]
    others = [one for one in best if (one.token, one.token_id) != (chosen.token, chosen.token_id)]
    ranked = sorted([chosen, *others], key=lambda one: -one.log_probability)
    return tuple(Alternative(one.token_id, one.token, one.log_probability) for one in ranked)


def _vendor_error(error: _Error, status: int, wait_s: int | None) -> VendorError:
    """`google.rpc.Status` as JSON. A key that is wrong is told with status 400."""
    details = error.details or []
    status = status or (error.code if isinstance(error.code, int) else 0)
    if any(detail.reason == _BAD_KEY for detail in details):
        return VendorError(401, _BAD_KEY, error.message or "")
    delays = [_DELAY.fullmatch(detail.retry_delay) for detail in details if detail.retry_delay]
    told_s = [math.ceil(float(found[1])) for found in delays if found]
    return VendorError(status, error.status or "", error.message or "", max(told_s, default=wait_s))
