"""Ollama's own generate: a text goes on as it stands, or to a suffix where the model's template has a place for one.

Read from: github.com/ollama/ollama at fb30760 (August 2026), `api/types.go` (GenerateRequest, GenerateResponse,
Options, Logprob, Metrics), `server/routes.go` (GenerateHandler, streamResponse), `llm/llama_server.go` (Completion,
convertLogprobs); PyPI `ollama` 0.6.3, `_types.py`; November 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from andthen.contract.errors import AndthenError, UnsupportedParameter, UpstreamRefused
from andthen.contract.events import Alternative, Event, Finished, FinishReason, Text, Token, Usage
from andthen.contract.request import CompletionRequest
from andthen.wire.base import Call, Decoder, Refusal, Target, bearer_call
from andthen.wire.deferred import Deferred
from andthen.wire.failures import VendorError, cut_short, failure, garbled, retry_after_s
from andthen.wire.whole import MAX_REPLY_BYTES

_REASONS: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}
_OPTIONS: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repeat_penalty",
}
_PENALTIES = frozenset({"frequency_penalty", "presence_penalty", "repetition_penalty"})
_ALL_TOKENS = -1

_Count = Annotated[int, Meta(ge=0)]


class Language(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No dialects are known."""

    path: str = "/api/generate"

    def encode(self, request: CompletionRequest, target: Target, *, streams: bool) -> Call:
        return bearer_call(target, self.path, _body(request, target, streams=streams), streams=streams)

    def decoder(self, request: CompletionRequest, target: Target, *, streams: bool) -> Decoder:
        return _Decoder(request, target, streams=streams)

    def refusal(self, refusal: Refusal, request: CompletionRequest, target: Target) -> AndthenError:
        try:
            message = _decode(refusal.body).error or ""
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            message = ""
        if refusal.status == 400 and "suffix" in request.given and "does not support insert" in message:
            return UnsupportedParameter(
                f"`suffix` is not taken by this model of {target.vendor}: its template has no place for one. Leave it "
                "out, or use a model that fills in the middle.",
                param="suffix",
            )
        wait_s = retry_after_s(refusal.headers)
        return failure(VendorError(refusal.status, "", message, wait_s), request, target)


def _body(request: CompletionRequest, target: Target, *, streams: bool) -> dict[str, Any]:
    given = request.given
    body: dict[str, Any] = {
        "model": target.model,
        "prompt": request.prompts[0],
        "stream": streams,
        # Else what stands between the template's thinking tags would be taken out of the text, also of a raw one.
        "think": False,
        # Else a prompt that is too long would lose its middle, and a text that becomes too long its beginning.
        "truncate": False,
        "shift": False,
        "options": _options(request),
    }
    if "suffix" in given:
        # Only the model's template can place it; a raw prompt would drop it unseen.
        body["suffix"] = request.suffix
    else:
        body["raw"] = True
    if "logprobs" in given:
        body["logprobs"] = True
        if request.logprobs:
            body["top_logprobs"] = request.logprobs
    return body


def _options(request: CompletionRequest) -> dict[str, Any]:
    given = request.given
    options: dict[str, Any] = {"num_predict": request.max_tokens}
    options |= {name: getattr(request, field) for field, name in _OPTIONS.items() if field in given}
    # Else the stops of the model's Modelfile would do. With log-probabilities there are none: it would leave those out
    # of the tokens that it holds back while a stop may have begun.
    options["stop"] = [] if "logprobs" in given else list(request.stop)
    if _PENALTIES & set(given):
        # Else only the last 64 tokens count.
        options["repeat_last_n"] = _ALL_TOKENS
    return options


class _TopLogprob(Struct, frozen=True):
    token: str
    logprob: float


class _Logprob(_TopLogprob, frozen=True):
    top_logprobs: list[_TopLogprob] | None = None


class _Reply(Struct, frozen=True):
    """A whole reply, or one line of a stream; `error` stands alone."""

    response: str = ""
    done: bool = False
    done_reason: str = ""
    prompt_eval_count: _Count = 0
    eval_count: _Count = 0
    logprobs: list[_Logprob] | None = None
    error: str | None = None


_decode = msgspec.json.Decoder(_Reply).decode


class _Decoder:
    """Reads a reply of one or more lines of JSON, complete at the one that says `done`."""

    fingerprint: str | None = None

    def __init__(self, request: CompletionRequest, target: Target, *, streams: bool) -> None:
        self._request = request
        self._target = target
        self._streams = streams
        self._parts: list[bytes] = []
        self._size = 0
        self._done = False
        self._deferred = Deferred()

    def feed(self, data: bytes) -> list[Event]:
        return self._deferred.collect(self._batches(data))

    def end(self) -> list[Event]:
        self._deferred.settle()
        events = self._line()
        if not self._done:
            raise cut_short(self._target)
        return events

    def _batches(self, data: bytes) -> Iterator[list[Event]]:
        *lines, rest = data.split(b"\n") if self._streams else (data,)
        for line in lines:
            self._hold(line)
            yield self._line()
        self._hold(rest)

    def _hold(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)
        if self._size > MAX_REPLY_BYTES:
            raise garbled(self._target, "is too long")

    def _line(self) -> list[Event]:
        line = b"".join(self._parts).strip()
        self._parts, self._size = [], 0
        if not line or self._done:
            return []
        try:
            reply = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise garbled(self._target, "is not what the language says") from None
        if reply.error is not None:
            raise failure(VendorError(0, "", reply.error), self._request, self._target)
        return self._events(reply)

    def _events(self, reply: _Reply) -> list[Event]:
        tokens = self._tokens(reply.response, reply.logprobs or [])
        events: list[Event] = [Text(0, 0, reply.response, tokens, len(tokens))] if reply.response or tokens else []
        if not reply.done:
            return events
        if not reply.done_reason:
            # Its runner lost the connection.
            raise cut_short(self._target)
        reason = _REASONS.get(reply.done_reason)
        if reason is None:
            raise garbled(self._target, "ends for a reason that a completion does not have")
        self._done = True
        events.append(Finished(0, 0, reason))
        if reply.prompt_eval_count:
            events.append(Usage(reply.prompt_eval_count, reply.eval_count))
        return events

    def _tokens(self, text: str, logprobs: Sequence[_Logprob]) -> tuple[Token, ...]:
        """Raises UpstreamRefused where they don't spell the text: it leaves out what split a character."""
        depth = self._request.logprobs
        if depth is None:
            return ()
        if "".join(entry.token for entry in logprobs) != text:
            raise UpstreamRefused(
                f"{self._target.vendor}'s reply does not tell the log-probability of each token of its text, which "
                "holds a character of several tokens, or the server is too old: leave `logprobs` and `best_of` out.",
                param="logprobs",
            )
        return tuple(_token(entry, depth) for entry in logprobs)


def _token(entry: _Logprob, depth: int) -> Token:
    if not depth:
        return Token(None, entry.token, entry.logprob, 0)
    top = [Alternative(None, one.token, one.logprob) for one in entry.top_logprobs or ()]
    chosen = Alternative(None, entry.token, entry.logprob)
    if chosen not in top:
        top.append(chosen)
    top.sort(key=lambda one: -one.logprob)
    return Token(None, entry.token, entry.logprob, 0, tuple(top))
