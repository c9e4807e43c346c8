"""Body bytes → CompletionRequest, or BadRequest naming the field.

The fields stand in `fields`; here is what a request is once they are read, and the rules that span several of them.
"""

from __future__ import annotations

from functools import cache

from msgspec import Struct

from andthen.contract.body import Table, check_size, check_utf8, split
from andthen.contract.errors import BadRequest
from andthen.contract.fields import completion_fields
from andthen.contract.limits import Limits
from andthen.contract.shapes import Prompt

__all__ = ["CompletionRequest", "Limits", "Prompt", "parse", "worst_prompt_tokens"]

_MAX_IGNORED = 16


class CompletionRequest(Struct, frozen=True, kw_only=True):
    """A request that is well-formed: every type and range checked, every default filled in."""

    model: str
    prompts: tuple[Prompt, ...]
    """At least one. A string ("" is the start of a document) or token ids (never empty)."""
    best_of: int = 1
    echo: bool = False
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    max_tokens: int = 16
    n: int = 1
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    continuous_usage_stats: bool = False
    suffix: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    user: str | None = None
    top_k: int = 0
    """0 or −1: off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    return_tokens_as_token_ids: bool = False
    parse_special: bool = True
    response_format: str | None = None
    """The format's name, never `text`; its schema is not kept."""
    structured_outputs: bool = False
    """A grammar was given; it is not kept."""
    given: tuple[str, ...] = ()
    """The names of the table's fields that the caller set (not to null), in the table's order. What says nothing
    counts as not set: an empty suffix, user, list or map, and the response format `text`."""
    ignored: tuple[str, ...] = ()
    """The names of unknown fields, in the caller's order; the first 16."""


@cache
def _table(limits: Limits) -> Table:
    return Table(completion_fields(limits))


def parse(body: bytes, limits: Limits) -> CompletionRequest:
    """Reads the body of `POST …/completions`.

    Raises:
        InvalidJson: the body is not a JSON object.
        PayloadTooLarge: it holds too many values.
        BadRequest: a field is wrong; `param` names it. Of several the first of the table, then the first rule.
    """
    table = _table(limits)
    check_utf8(body)
    check_size(body, limits.max_depth, limits.max_items)
    values = table.decode(body)
    ignored: tuple[str, ...] = ()
    if values is None:
        members = split(body, limits.max_depth, limits.max_items)
        values = table.read(members)
        if not members.keys() <= table.names:
            ignored = tuple(name for name in members if name not in table.names)[:_MAX_IGNORED]
    given = tuple(values)
    prompts = values.pop("prompt", ("",))
    options = values.pop("stream_options", None)
    if options is not None:
        values["include_usage"] = bool(options.include_usage)
        values["continuous_usage_stats"] = bool(options.continuous_usage_stats)
    values.setdefault("best_of", values.get("n", 1))
    request = CompletionRequest(prompts=prompts, given=given, ignored=ignored, **values)
    _check(request, limits)
    return request


def _check(request: CompletionRequest, limits: Limits) -> None:
    """The rules that span several fields."""
    given = request.given
    if request.best_of < request.n:
        raise BadRequest(f"`best_of` must be at least `n`, here {request.n}.", param="best_of")
    if request.stream and request.best_of > request.n:
        raise BadRequest(
            "`best_of` can't be more than `n` in a stream: candidates are only ranked once all are complete.",
            param="best_of",
        )
    if request.echo and request.suffix is not None:
        raise BadRequest("`echo` can't be combined with `suffix`: leave one out.", param="echo")
    if "stream_options" in given and not request.stream:
        raise BadRequest("`stream_options` is only taken with `stream: true`.", param="stream_options")
    if request.min_tokens > request.max_tokens:
        raise BadRequest(f"`min_tokens` must be at most `max_tokens`, here {request.max_tokens}.", param="min_tokens")
    sequences = len(request.prompts) * request.best_of
    if sequences > limits.max_sequences:
        at_fault = next((name for name in ("best_of", "n") if getattr(request, name) > 1 and name in given), "prompt")
        raise BadRequest(
            f"Prompts × max(n, best_of) is {sequences}: at most {limits.max_sequences} sequences are taken in one "
            f"request. Lower `{at_fault}` or split the request.",
            param=at_fault,
        )


def worst_prompt_tokens(prompt: Prompt, tokens: int | None = None) -> int:
    """The most that a prompt can come to in one call.

    Args:
        tokens: as the model's own tokenizer counts it, if there is one.

    A tokenizer makes at least a byte of each token of a text; 64 more are for what a vendor puts around it.
    """
    if tokens is not None:
        return tokens
    return (len(prompt) if isinstance(prompt, tuple) else len(prompt.encode())) + 64
