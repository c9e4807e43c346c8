"""Amazon Bedrock's Converse and ConverseStream, signed with AWS's keys or sent with a Bedrock API key.

Read from: PyPI `botocore` 1.44.5, `data/bedrock-runtime/2023-09-30/service-2.json` (operations `Converse` and
`ConverseStream`), `auth.py` and `eventstream.py`; November 2026. botocore is an extra of the package, imported where it
is needed and nowhere else: its signer computes the signature from the time given here, its parser reads the binary
events.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from andthen.contract.errors import AndthenError, UnsupportedParameter, UpstreamRefused
from andthen.contract.events import Event, Finished, FinishReason, Text, Usage
from andthen.contract.request import CompletionRequest
from andthen.wire.base import Call, Headers, Refusal, Target
from andthen.wire.deferred import Deferred
from andthen.wire.failures import VendorError, cut_short, failure, garbled, redacted, retry_after_s
from andthen.wire.whole import WholeDecoder, decoded

_REGION = re.compile(r"bedrock-runtime(?:-fips)?\.([a-z]{2,}(?:-[a-z0-9]+)+)\.")
_SIGNED_AS = "bedrock"
_TIMESTAMP = "%Y%m%dT%H%M%SZ"
_REASONS: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
}
"""All others (`malformed_model_output`, `malformed_tool_use`) are failures."""
_NOT_TAKEN = re.compile(
    r"deprecated for this model|cannot both be specified|does(n't| not) support the \w+ field", re.IGNORECASE
)
_WORDS: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "top_p": ("top_p", "topP"),
    "stop": ("stop_sequences", "stopSequences"),
}
"""By what an error names the parameters that only some models take."""
_STATUS_OF: Mapping[str, int] = {
    "validationException": 400,
    "modelTimeoutException": 408,
    "modelStreamErrorException": 424,
    "throttlingException": 429,
    "internalServerException": 500,
    "serviceUnavailableException": 503,
}

_Count = Annotated[int, Meta(ge=0)]
_Shape = TypeVar("_Shape")


class _Block(Struct, frozen=True):
    """A block of content, or a piece of one; what is not text (reasoning, tools, citations) has no `text` here."""

    text: str | None = None


class _Message(Struct, frozen=True):
    content: list[_Block] | None = None


class _Output(Struct, frozen=True):
    message: _Message | None = None


class _TokenUsage(Struct, frozen=True, rename="camel"):
    input_tokens: _Count
    output_tokens: _Count
    cache_read_input_tokens: _Count | None = None
    cache_write_input_tokens: _Count | None = None


class _Reply(Struct, frozen=True, rename="camel"):
    """`ConverseResponse`."""

    stop_reason: str
    output: _Output | None = None
    usage: _TokenUsage | None = None


class _Delta(Struct, frozen=True):
    delta: _Block | None = None


class _Stop(Struct, frozen=True, rename="camel"):
    stop_reason: str


class _Metadata(Struct, frozen=True):
    usage: _TokenUsage | None = None


class _Error(Struct, frozen=True):
    message: str | None = None
    upper_message: str | None = msgspec.field(default=None, name="Message")
    type: str | None = msgspec.field(default=None, name="__type")


class _Credentials(Struct, frozen=True):
    """As botocore's signer reads them."""

    access_key: str
    secret_key: str
    token: str | None


class Language(Struct, frozen=True, forbid_unknown_fields=True):
    """Converse. A key of one part is a Bedrock API key; of two or three parts, AWS's: access key, secret, token."""

    region: str = ""
    """To sign for, where the address does not tell it."""
    fields: dict[str, Any] = {}
    """`additionalModelRequestFields`: what a model is told in its own words."""

    def encode(self, request: CompletionRequest, target: Target, *, streams: bool) -> Call:
        """Raises UpstreamRefused where the call can't be signed: no botocore, no secret or no region."""
        operation = "converse-stream" if streams else "converse"
        url = f"{target.address}/model/{quote(target.model, safe='')}/{operation}"
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": [{"text": request.prompts[0]}]}],
            "inferenceConfig": _inference_config(request),
        }
        if self.fields:
            body["additionalModelRequestFields"] = self.fields
        data = msgspec.json.encode(body)
        headers: Headers = (("content-type", "application/json"), *target.headers)
        if "\n" in target.key:
            headers = self._signed(url, headers, data, target)
        elif target.key:
            headers = (*headers, ("authorization", f"Bearer {target.key}"))
        return Call(url=url, headers=headers, body=data, streams=streams)

    def decoder(self, request: CompletionRequest, target: Target, *, streams: bool) -> WholeDecoder | _StreamDecoder:
        if streams:
            return _StreamDecoder(request, target)
        return WholeDecoder(target, lambda body: _read_whole(body, request, target))

    def refusal(self, refusal: Refusal, request: CompletionRequest, target: Target) -> AndthenError:
        error = _error(refusal.body)
        named = dict(refusal.headers).get("x-amzn-errortype", "") or error.type or ""
        code = named.partition(":")[0].rpartition("#")[2]
        message = _said(error)
        if refusal.status == 400 and (param := _untaken(message, request)):
            return UnsupportedParameter(
                f"`{param}` is not taken so by {target.vendor}'s model: {redacted(message, request, target)}",
                param=param,
            )
        wait_s = retry_after_s(refusal.headers)
        return failure(VendorError(refusal.status, code, message, wait_s), request, target)

    def _signed(self, url: str, headers: Headers, body: bytes, target: Target) -> Headers:
        """The headers with Signature Version 4."""
        try:
            from botocore.auth import SigV4Auth
            from botocore.awsrequest import AWSRequest
        except ImportError:
            raise _lacks_botocore(target) from None
        access_key, secret_key, token, *_ = (*target.key.split("\n"), "")
        found = _REGION.search(target.address)
        region = self.region or (found[1] if found else "")
        if not (access_key and secret_key and region):
            raise UpstreamRefused(
                f"The call to {target.vendor} can't be signed: its key needs two parts, access key and secret, and its "
                "address an AWS region. The configuration is the operator's to mend."
            )
        timestamp = datetime.fromtimestamp(target.at_s, UTC).strftime(_TIMESTAMP)
        dated = (*headers, ("x-amz-date", timestamp), *((("x-amz-security-token", token),) if token else ()))
        request = AWSRequest(method="POST", url=url, headers=dict(dated), data=body)
        request.context["timestamp"] = timestamp
        signer = SigV4Auth(_Credentials(access_key, secret_key, token or None), _SIGNED_AS, region)
        signature = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
        names = signer.signed_headers(signer.headers_to_sign(request))
        scope = signer.scope(request)
        authorization = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={signature}"
        return (*dated, ("authorization", authorization))


def _untaken(message: str, request: CompletionRequest) -> str:
    """The parameter that an error says the model does not take; empty where it is another error."""
    if not _NOT_TAKEN.search(message):
        return ""
    return next(
        (name for name, words in _WORDS.items() if name in request.given and any(map(message.count, words))), ""
    )


def _inference_config(request: CompletionRequest) -> dict[str, Any]:
    config: dict[str, Any] = {"maxTokens": request.max_tokens}
    if "temperature" in request.given:
        config["temperature"] = request.temperature
    if "top_p" in request.given:
        config["topP"] = request.top_p
    # Anthropic's models take no stop that is only white space.
    if "stop" in request.given and (stops := [stop for stop in request.stop if stop.strip()]):
        config["stopSequences"] = stops
    return config


def _read_whole(body: bytes, request: CompletionRequest, target: Target) -> list[Event]:
    """The events of a reply that is one object."""
    reply = _read(body, _Reply, target)
    message = (reply.output.message if reply.output else None) or _Message()
    text = "".join(block.text or "" for block in message.content or ())
    events: list[Event] = [Text(0, 0, text)] if text else []
    events.append(_finished(reply.stop_reason, request, target))
    return [*events, _usage(reply.usage)] if reply.usage else events


class _StreamDecoder:
    """A stream is complete at `messageStop`; `metadata` with the usage follows it."""

    def __init__(self, request: CompletionRequest, target: Target) -> None:
        try:
            from botocore.eventstream import EventStreamBuffer, ParserError
        except ImportError:
            raise _lacks_botocore(target) from None
        self.fingerprint: str | None = None
        self._request = request
        self._target = target
        self._deferred = Deferred()
        self._buffer = EventStreamBuffer()
        # What the parser raises for bytes whose checksums are right but whose headers are not.
        self._broken = (ParserError, struct.error, KeyError, UnicodeDecodeError)
        self._pending_bytes = 0
        self._is_finished = False
        self._usage: Usage | None = None

    def feed(self, data: bytes) -> list[Event]:
        self._deferred.settle()
        self._buffer.add_data(data)
        self._pending_bytes += len(data)
        return self._deferred.collect(self._batches())

    def end(self) -> list[Event]:
        self._deferred.settle()
        if self._pending_bytes or not self._is_finished:
            raise cut_short(self._target)
        return [self._usage] if self._usage else []

    def _batches(self) -> Iterator[list[Event]]:
        while True:
            try:
                message = next(self._buffer, None)
            except self._broken:
                raise garbled(self._target, "is not what the language says") from None
            if message is None:
                return
            self._pending_bytes -= message.prelude.total_length
            yield self._message(message.headers, message.payload)

    def _message(self, headers: Mapping[str, Any], payload: bytes) -> list[Event]:
        kind = headers.get(":message-type")
        if kind != "event":
            raise failure(_stream_error(headers, payload), self._request, self._target)
        match headers.get(":event-type"):
            case "contentBlockDelta":
                delta = _read(payload, _Delta, self._target).delta or _Block()
                if delta.text and self._is_finished:
                    raise garbled(self._target, "goes on after its end")
                return [Text(0, 0, delta.text)] if delta.text else []
            case "messageStop":
                if self._is_finished:
                    raise garbled(self._target, "goes on after its end")
                self._is_finished = True
                return [_finished(_read(payload, _Stop, self._target).stop_reason, self._request, self._target)]
            case "metadata":
                told = _read(payload, _Metadata, self._target).usage
                self._usage = _usage(told) if told else None
        return []


def _stream_error(headers: Mapping[str, Any], payload: bytes) -> VendorError:
    """An exception of the model's, told in the stream, or an error of the protocol's."""
    code = str(headers.get(":exception-type") or headers.get(":error-code") or "")
    message = _said(_error(payload)) or str(headers.get(":error-message") or "")
    return VendorError(_STATUS_OF.get(code, 0), code, message)


def _finished(said_reason: str, request: CompletionRequest, target: Target) -> Finished:
    if said_reason not in _REASONS:
        raise failure(VendorError(0, code=said_reason), request, target)
    return Finished(0, 0, _REASONS[said_reason])


def _usage(told: _TokenUsage) -> Usage:
    """`inputTokens` are those that no cache held."""
    read, written = told.cache_read_input_tokens, told.cache_write_input_tokens
    return Usage(told.input_tokens + (read or 0) + (written or 0), told.output_tokens, read)


def _error(body: bytes) -> _Error:
    try:
        return msgspec.json.decode(body, type=_Error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Error()


def _said(error: _Error) -> str:
    return error.message or error.upper_message or ""


def _read(body: bytes, shape: type[_Shape], target: Target) -> _Shape:
    return decoded(lambda data: msgspec.json.decode(data, type=shape), body, target)


def _lacks_botocore(target: Target) -> UpstreamRefused:
    return UpstreamRefused(
        f"Calls to {target.vendor} need the package botocore: the operator installs it with "
        "`pip install 'andthen[bedrock]'`."
    )
