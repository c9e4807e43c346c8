"""The table of the request's fields: their names, types, ranges, defaults and meaning, in one place.

From it come the parser and its checks (`request`), the OpenAPI document (`spec`) and the page of parameters
(`markdown`). What spans several fields stands in `request`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from andthen.contract import shapes as s
from andthen.contract.limits import Limits


class Field(Struct, frozen=True):
    """One row."""

    name: str
    shape: s.Shape
    text: str
    default: Any = None
    """What absent means, where that is a value."""
    example: Any = None
    required: bool = False
    nullable: bool = True
    """Takes null for absent."""
    extension: bool = False
    """Not in the original contract, but shared by servers of it."""


@cache
def completion_fields(limits: Limits) -> tuple[Field, ...]:
    """The rows of `POST …/completions`, in the order in which errors are reported."""
    return _contract_fields(limits) + _extension_fields()


def _contract_fields(limits: Limits) -> tuple[Field, ...]:
    return (
        Field("model", s.string(1), required=True, nullable=False, example="local/tale", text=
              "`vendor/model`, one of the names of `GET /v1/models`."),
        Field("prompt", s.prompts(limits.max_prompts), required=True, example="Once upon a time", text=
              "The text to go on from, or token ids of the model's own tokenizer; a list of prompts is answered in one "
              "reply. Null and an empty string are the start of a document."),
        Field("best_of", s.integer(1, 128), example=4, text=
              "Candidates for each prompt, at least `n`, which is the default; the `n` with the highest mean "
              "log-probability per token are returned, best first. In a stream not more than `n`."),
        Field("echo", s.flag(), default=False, example=True, text=
              "Begin each choice with its prompt. With `max_tokens: 0` and `logprobs` the prompt is only scored. Not "
              "with `suffix`."),
        Field("frequency_penalty", s.number(-2, 2), default=0.0, example=0.5, text=
              "Taken from a token's logit for each time that it was generated."),
        Field("logit_bias", s.logit_bias(), example={"42": -100}, text=
              "Added to the logits of these token ids."),
        Field("logprobs", s.integer(0, limits.max_logprobs), example=2, text=
              "Report each token's log-probability and this many alternatives, 0 for none."),
        Field("max_tokens", s.integer(0, s.INT32_MAX), default=16, example=64, text=
              "Most tokens to generate for a choice. With the prompt they must fit the model's context."),
        Field("n", s.integer(1, 128), default=1, example=2, text=
              "Choices for each prompt."),
        Field("presence_penalty", s.number(-2, 2), default=0.0, example=0.5, text=
              "Taken from the logit of each token that was generated at least once."),
        Field("seed", s.integer(s.INT64_MIN, s.INT64_MAX), example=1234, text=
              "Makes sampling repeatable. Candidate i is drawn as a single request with seed + i would be."),
        Field("stop", s.stops(limits.max_stops), example=["\n"], text=
              "Texts before which generation ends."),
        Field("stream", s.flag(), default=False, example=True, text=
              "Answer with server-sent events as the text is made."),
        Field("stream_options", s.stream_options(), example={"include_usage": True}, text=
              "Only with `stream`. `include_usage` adds a last chunk with the usage, `continuous_usage_stats` the "
              "usage so far to every chunk; `include_obfuscation` is accepted without effect."),
        Field("suffix", s.string(), example="The end.", text=
              "The text after the completion, for models that fill in the middle."),
        Field("temperature", s.number(0, 2), default=1.0, example=0.7, text=
              "Divides the logits before sampling; 0 always takes the top token."),
        Field("top_p", s.number(0, 1), default=1.0, example=0.9, text=
              "Sample from the fewest tokens whose probabilities sum to this; 0 is the top token."),
        Field("user", s.user(), example="reader-17", text=
              "Your identifier of the end user, without control characters."),
    )  # fmt: skip


def _extension_fields() -> tuple[Field, ...]:
    rows = (
        Field("top_k", s.integer(-1, s.INT32_MAX), default=0, example=40, text=
              "Sample from this many most probable tokens; 0 and -1: from all."),
        Field("min_p", s.number(0, 1), default=0.0, example=0.05, text=
              "Leave out tokens less probable than this share of the top token's probability."),
        Field("repetition_penalty", s.number(0.01, 100), default=1.0, example=1.1, text=
              "Divides the positive and multiplies the negative logits of tokens in the prompt or the text so far."),
        Field("min_tokens", s.integer(0, s.INT32_MAX), default=0, example=8, text=
              "No end before this many tokens. At most `max_tokens`."),
        Field("ignore_eos", s.flag(), default=False, example=True, text=
              "Never generate the model's end token."),
        Field("stop_token_ids", s.token_ids(), example=[2], text=
              "Tokens that end the text as the model's end token does."),
        Field("return_tokens_as_token_ids", s.flag(), default=False, example=True, text=
              "Write the tokens of `logprobs` as `token_id:N`."),
        Field("parse_special", s.flag(), default=True, example=False, text=
              "Read the names of special tokens in a prompt's text as those tokens."),
        Field("response_format", s.response_format(), example={"type": "text"}, text=
              "The form of the text; `text` is as good as absent."),
        Field("structured_outputs", s.any_object(), example={"json": {"type": "object"}}, text=
              "A grammar for the text."),
    )  # fmt: skip
    return tuple(replace(row, extension=True) for row in rows)


TOKENIZE_FIELDS = (
    Field("model", s.string(1), example="local/tale", text="A local model; absent: the first."),
    Field("prompt", s.string(), required=True, nullable=False, example="Once upon a time", text="The text."),
    Field("add_special_tokens", s.flag(), default=True, example=False, text=
          "Give exactly the ids that the text becomes as a prompt, with the token of a document's start where the "
          "model has one."),
    Field("parse_special", s.flag(), default=True, example=False, text=
          "Read the names of special tokens in the text as those tokens."),
)  # fmt: skip

DETOKENIZE_FIELDS = (
    Field("model", s.string(1), example="local/tale", text="A local model; absent: the first."),
    Field("tokens", s.token_ids(), required=True, nullable=False, example=[1, 42], text="The ids."),
)
