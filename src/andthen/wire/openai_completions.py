"""OpenAI's text completions, in the dialects of servers that speak it. `openai` 3.54, `completion_create_params.py`.

The contract's own language: a request is said almost as it is. How the replies are read stands in `completion_replies`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from andthen.contract.errors import AndthenError
from andthen.contract.request import CompletionRequest
from andthen.contract.shapes import Prompt
from andthen.wire.base import Call, Refusal, Target
from andthen.wire.completion_replies import Streamed, Whole, refused, told_on, wanted_logprobs
from andthen.wire.failures import retry_after_s

_SAID_OTHERWISE = {"model", "prompt", "max_tokens", "stream", "stream_options", "logprobs", "echo"}


class Language(Struct, frozen=True, kw_only=True):
    """Text completions in a server's dialect."""

    path: str = "/completions"
    """What follows the address."""
    key_header: Literal["authorization", "api-key"] = "authorization"
    names: dict[str, str] = {}
    """Fields that go by another name there."""
    unsaid: dict[str, float] = {}
    """Values that mean the same as the field's absence, and that the server does not take."""
    extra: dict[str, Any] = {}
    """What every call says besides."""
    streamed: dict[str, Any] = msgspec.field(default_factory=lambda: {"stream_options": {"include_usage": True}})
    """What a streamed call says besides."""
    continuous_usage: bool = False
    """`stream_options.continuous_usage_stats` is taken."""
    usage_so_far: Literal["choice", "reply"] = "choice"
    """What the usage in a chunk counts: the chunk's choice, or all of the reply."""
    tells_on: bool = False
    """Errors are those of this contract, and are passed on."""
    no_top_k: int = -1
    """How `top_k` is switched off."""
    least_top_p: float = 0.0
    """Stands for 0, where that is not taken: both leave the top token alone."""
    least_logprobs: int = 0
    """Stands for 0, where that gets none."""
    echoes: Literal["joined", "apart"] = "joined"
    """Where the prompt comes back: before the text, or in a list of its own."""
    shows_ids: Literal["", "told", "instead"] = ""
    """Whether `return_token_ids` tells which tokens of an echo are the prompt's; "instead": of the prompt's text."""

    def encode(self, request: CompletionRequest, target: Target, *, streams: bool) -> Call:
        body: dict[str, Any] = {"model": target.model, "prompt": _prompt(request), "max_tokens": request.max_tokens}
        body |= self._options(request)
        if (logprobs := wanted_logprobs(request)) is not None:
            body["logprobs"] = max(logprobs, self.least_logprobs)
        if request.echo:
            body["echo"] = True
            if self._asks_ids(request):
                body["return_token_ids"] = True
        body |= self.extra
        if streams:
            body |= {"stream": True, **self.streamed}
            if self.continuous_usage and request.continuous_usage_stats:
                body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        key = f"Bearer {target.key}" if self.key_header == "authorization" else target.key
        return Call(
            url=target.address + self.path,
            headers=(
                ("content-type", "application/json"),
                *(((self.key_header, key),) if target.key else ()),
                *target.headers,
            ),
            body=msgspec.json.encode(body),
            streams=streams,
        )

    def decoder(self, request: CompletionRequest, target: Target, *, streams: bool) -> Whole | Streamed:
        if streams:
            return Streamed(request, target, totals=self.usage_so_far == "reply", tells_on=self.tells_on)
        instead = self.shows_ids == "instead" and self._asks_ids(request)
        return Whole(request, target, apart=self.echoes == "apart", instead=instead)

    def refusal(self, refusal: Refusal, request: CompletionRequest, target: Target) -> AndthenError:
        wait_s = retry_after_s(refusal.headers)
        own = told_on(refusal.body, request, target, wait_s=wait_s) if self.tells_on else None
        return own or refused(refusal, request, target)

    def _options(self, request: CompletionRequest) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for name in request.given:
            if name in _SAID_OTHERWISE:
                continue
            value = getattr(request, name)
            match name:
                case "logit_bias":
                    value = {str(token): int(bias) if bias == int(bias) else bias for token, bias in value.items()}
                case "top_k":
                    value = value if value > 0 else self.no_top_k
                case "top_p":
                    value = max(value, self.least_top_p)
            if name not in self.unsaid or value != self.unsaid[name]:
                options[self.names.get(name, name)] = value
        return options

    def _asks_ids(self, request: CompletionRequest) -> bool:
        """A prompt of ids tells its length itself, and "instead" would leave us without its text."""
        is_text = isinstance(request.prompts[0], str)
        return request.echo and (self.shows_ids == "told" or (self.shows_ids == "instead" and is_text))


def _prompt(request: CompletionRequest) -> Prompt | tuple[Prompt, ...]:
    return request.prompts[0] if len(request.prompts) == 1 else request.prompts
