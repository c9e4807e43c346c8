"""Mistral's fill-in-the-middle completions: a text goes on as it stands, to a suffix where there is one.

Read from: PyPI `mistralai` 3.7.0, `client/models/fimcompletionrequest.py`, `fimcompletionresponse.py` and
`client/fim.py` (`/v1/fim/completions`), November 2026. The reply has the chat's layout.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from andthen.contract.errors import AndthenError
from andthen.contract.request import CompletionRequest
from andthen.wire.base import Call, Decoder, Refusal, Target, bearer_call
from andthen.wire.chat_replies import ChatDecoder, refused

_SAME_NAME = ("min_tokens", "stop", "suffix", "temperature", "top_p")


class Language(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No dialects are known."""

    path: str = "/fim/completions"

    def encode(self, request: CompletionRequest, target: Target, *, streams: bool) -> Call:
        return bearer_call(target, self.path, _body(request, target, streams=streams), streams=streams)

    def decoder(self, request: CompletionRequest, target: Target, *, streams: bool) -> Decoder:
        return ChatDecoder(request, target, streams=streams)

    def refusal(self, refusal: Refusal, request: CompletionRequest, target: Target) -> AndthenError:
        return refused(refusal, request, target)


def _body(request: CompletionRequest, target: Target, *, streams: bool) -> dict[str, Any]:
    given = request.given
    body: dict[str, Any] = {"model": target.model, "prompt": request.prompts[0], "max_tokens": request.max_tokens}
    body |= {name: getattr(request, name) for name in _SAME_NAME if name in given}
    if "seed" in given:
        body["random_seed"] = request.seed
    if streams:
        body["stream"] = True
    return body
