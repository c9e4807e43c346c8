"""OpenAI's chat completions, and what other servers make of them.

A text becomes one user message as it stands; what the model answers is the completion. Read from: PyPI `openai` 3.54.0,
`types/chat/completion_create_params.py`, `lib/azure.py`; November 2026.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from andthen.contract.errors import AndthenError
from andthen.contract.request import CompletionRequest
from andthen.wire.base import Call, Decoder, Refusal, Target
from andthen.wire.chat_replies import ChatDecoder, refused

_SAME_NAME = (
    "frequency_penalty",
    "ignore_eos",
    "min_p",
    "n",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_p",
)


class Language(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The dialect: how a server's chat completions differ from OpenAI's."""

    path: str = "/chat/completions"
    """After the address; `{model}` stands for the model's name, with a query where one is needed."""
    key_header: str = "authorization"
    """The header that bears the key: `authorization` (as a bearer), or another (as it stands)."""
    max_tokens: str = "max_tokens"
    """The field for `max_tokens`: `max_completion_tokens` where hidden reasoning counts."""
    min_tokens: str = "min_tokens"
    user: str = "user"
    """The field for `user`: `safety_identifier`."""
    stream_usage: bool = True
    """A stream tells its usage only when `stream_options` asks for it."""
    end_mark: bool = True
    """A stream ends with `[DONE]`."""
    thinks_aloud: bool = False
    """A text may begin with reasoning in `<think>` tags; only where log-probabilities are refused."""
    prefill: str = ""
    """The flag of an assistant's message that the vendor goes on from (`prefix`, `partial`): the text is then that
    message, and `prefill_user` the user's before it."""
    prefill_user: str = ""
    extra: dict[str, Any] = {}
    """Fields that go into every body as they stand, such as one that keeps reasoning out of the text."""

    def encode(self, request: CompletionRequest, target: Target, *, streams: bool) -> Call:
        return Call(
            url=target.address + self.path.replace("{model}", quote(target.model, safe="")),
            headers=(("content-type", "application/json"), *self._key(target), *target.headers),
            body=msgspec.json.encode(self._body(request, target, streams=streams)),
            streams=streams,
        )

    def decoder(self, request: CompletionRequest, target: Target, *, streams: bool) -> Decoder:
        return ChatDecoder(request, target, streams=streams, marked=self.end_mark, aloud=self.thinks_aloud)

    def refusal(self, refusal: Refusal, request: CompletionRequest, target: Target) -> AndthenError:
        return refused(refusal, request, target)

    def _key(self, target: Target) -> tuple[tuple[str, str], ...]:
        if not target.key:
            return ()
        return ((self.key_header, f"Bearer {target.key}" if self.key_header == "authorization" else target.key),)

    def _body(self, request: CompletionRequest, target: Target, *, streams: bool) -> dict[str, Any]:
        given = request.given
        body: dict[str, Any] = {"model": target.model, "messages": self._messages(request)}
        body[self.max_tokens] = request.max_tokens
        body |= {name: getattr(request, name) for name in _SAME_NAME if name in given}
        for name in ("min_tokens", "user"):
            if name in given:
                body[getattr(self, name)] = getattr(request, name)
        if "logit_bias" in given:
            # OpenAI's schema has whole numbers here: 1.0 is sent as 1.
            body["logit_bias"] = {
                str(token): int(bias) if bias == int(bias) else bias for token, bias in request.logit_bias.items()
            }
        if request.logprobs is not None:
            body["logprobs"] = True
            if request.logprobs:
                body["top_logprobs"] = request.logprobs
        if streams:
            body["stream"] = True
            if self.stream_usage:
                body["stream_options"] = {"include_usage": True}
        return {**body, **self.extra}

    def _messages(self, request: CompletionRequest) -> list[dict[str, Any]]:
        text = request.prompts[0]
        if not self.prefill:
            return [{"role": "user", "content": text}]
        before = [{"role": "user", "content": self.prefill_user}] if self.prefill_user else []
        return [*before, {"role": "assistant", "content": text, self.prefill: True}]
