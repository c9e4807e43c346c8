"""Mistral's chat completions.

A text becomes one user message as it stands. Read from: PyPI `mistralai` 3.7.0, `client/chat.py`
(`/v1/chat/completions`) and `client/models/chatcompletionrequest.py`, November 2026.

The reply may score the prompt (`prompt_logprobs`), but as a chat: behind the template's own tokens. That is another
thing than `echo` with `logprobs`, which scores the text as a document's start, and is not made of it.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from andthen.contract.errors import AndthenError
from andthen.contract.request import CompletionRequest
from andthen.wire.base import Call, Decoder, Refusal, Target, bearer_call
from andthen.wire.chat_replies import ChatDecoder, refused

_SAME_NAME = ("frequency_penalty", "min_tokens", "n", "presence_penalty", "stop", "temperature", "top_k", "top_p")


class Language(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No dialects are known."""

    path: str = "/chat/completions"

    def encode(self, request: CompletionRequest, target: Target, *, streams: bool) -> Call:
        return bearer_call(target, self.path, _body(request, target, streams=streams), streams=streams)

    def decoder(self, request: CompletionRequest, target: Target, *, streams: bool) -> Decoder:
        return ChatDecoder(request, target, streams=streams)

    def refusal(self, refusal: Refusal, request: CompletionRequest, target: Target) -> AndthenError:
        return refused(refusal, request, target)


def _body(request: CompletionRequest, target: Target, *, streams: bool) -> dict[str, Any]:
    given = request.given
    body: dict[str, Any] = {
        "model": target.model,
        "messages": [{"role": "user", "content": request.prompts[0]}],
        "max_tokens": request.max_tokens,
    }
    body |= {name: getattr(request, name) for name in _SAME_NAME if name in given}
    if "seed" in given:
        body["random_seed"] = request.seed
    if request.logprobs is not None:
        body["logprobs"] = True
        if request.logprobs:
            body["top_logprobs"] = request.logprobs
    if streams:
        body["stream"] = True
    return body
