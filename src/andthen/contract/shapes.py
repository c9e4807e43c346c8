"""What a field's value may be, said once for the decoder, for the OpenAPI document and for people.

Integers may come as integral floats (2.0); booleans are never numbers. Knows nothing of which fields there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Raw, Struct

from andthen.contract.errors import BadRequest

INT32_MAX = 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

Prompt = str | tuple[int, ...]


class Shape(Struct, frozen=True, kw_only=True):
    python: Any
    """The type the decoder is made of, its ranges included."""
    integral: Any = None
    """The same with floats beside its integers, where it has integers."""
    schema: dict[str, Any]
    """JSON Schema, without null."""
    says: str
    """Goes on from "must be"."""
    most_values: int | None = None
    """So many values, more than any model has a use for, are read; no comma stands in the strings of a real one."""
    refine: Callable[[Any], Any] | None = None
    """Checks what a type can't say and makes the value that the request holds; None is absent.

    Raises:
        BadRequest: naming the field.
    """


def integer(low: int, high: int) -> Shape:
    return Shape(
        python=Annotated[int, Meta(ge=low, le=high)],
        integral=int | float,
        schema={"type": "integer", "minimum": low, "maximum": high},
        says=f"an integer from {_power(low)} to {_power(high)}",
    )


def number(low: float, high: float) -> Shape:
    return Shape(
        python=Annotated[float, Meta(ge=low, le=high)],
        schema={"type": "number", "minimum": low, "maximum": high},
        says=f"a number from {low:g} to {high:g}",
    )


def flag() -> Shape:
    return Shape(python=bool, schema={"type": "boolean"}, says="true or false")


def string(min_length: int = 0) -> Shape:
    return Shape(
        python=Annotated[str, Meta(min_length=min_length)],
        schema={"type": "string", "minLength": min_length} if min_length else {"type": "string"},
        says="a string that is not empty" if min_length else "a string",
        refine=_absent_if_empty,
    )


_VOCABULARY = 2**18
"""No known vocabulary has more tokens."""

_TokenId = Annotated[int, Meta(ge=0, le=INT32_MAX)]
_TOKEN_ID_SCHEMA = {"type": "integer", "minimum": 0, "maximum": INT32_MAX}
_TOKEN_ID_KEY = re.compile(r"0|[1-9][0-9]{0,9}")


def token_ids() -> Shape:
    """A list of token ids, as a tuple. Whether a vocabulary has them is for the model's engine to say."""
    return Shape(
        python=tuple[_TokenId, ...],
        integral=tuple[int | float, ...],
        schema={"type": "array", "items": _TOKEN_ID_SCHEMA},
        says="a list of token ids (integers from 0 to 2³¹−1)",
        refine=_absent_if_empty,
    )


def prompts(most: int) -> Shape:
    """Becomes a tuple of `Prompt`, at least one."""

    def refine(value: str | tuple[Any, ...]) -> tuple[Prompt, ...]:
        if isinstance(value, str):
            return (value,)
        kinds = set(map(type, value))
        if not value or () in value:
            raise BadRequest("`prompt` holds an empty list: leave it out, or send a text or token ids.", param="prompt")
        if len(kinds) > 1:
            raise BadRequest(
                "`prompt` mixes kinds: send only strings, only token ids, or only lists of token ids.", param="prompt"
            )
        if int in kinds:
            return (value,)
        if len(value) > most:
            raise BadRequest(
                f"`prompt` is a list of {len(value)}: send at most {most} prompts in one request.", param="prompt"
            )
        return value

    ids = {"type": "array", "items": _TOKEN_ID_SCHEMA, "minItems": 1}
    return Shape(
        python=str | tuple[str | _TokenId | tuple[_TokenId, ...], ...],
        integral=str | tuple[str | int | float | tuple[int | float, ...], ...],
        schema={
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": most},
                ids,
                {"type": "array", "items": ids, "minItems": 1, "maxItems": most},
            ]
        },
        says="a string, a list of strings, a list of token ids (integers from 0 to 2³¹−1), or a list of such lists",
        refine=refine,
    )


def stops(most: int) -> Shape:
    """Becomes a tuple of strings, none of them empty."""

    def refine(value: str | tuple[str, ...]) -> tuple[str, ...] | None:
        value = (value,) if isinstance(value, str) else value
        if "" in value:
            raise BadRequest("`stop` holds an empty string: leave it out.", param="stop")
        if len(value) > most:
            raise BadRequest(
                f"`stop` is a list of {len(value)}: at most {most} are taken (the setting `limits.max_stops`).",
                param="stop",
            )
        return value or None

    text = {"type": "string", "minLength": 1}
    return Shape(
        python=str | tuple[str, ...],
        schema={"anyOf": [text, {"type": "array", "items": text, "maxItems": most}]},
        says=f"a string or a list of at most {most} strings",
        refine=refine,
    )


def logit_bias() -> Shape:
    """Becomes a map of token id to bias."""

    def refine(value: dict[str, float]) -> dict[int, float] | None:
        bias = {int(key): amount for key, amount in value.items() if _TOKEN_ID_KEY.fullmatch(key)}
        if len(bias) < len(value) or any(token > INT32_MAX for token in bias):
            raise BadRequest(
                '`logit_bias` has a key that is no token id: keys are decimal integers in quotes, such as "50256".',
                param="logit_bias",
            )
        return bias or None

    return Shape(
        python=dict[str, Annotated[float, Meta(ge=-100, le=100)]],
        schema={
            "type": "object",
            "propertyNames": {"pattern": f"^({_TOKEN_ID_KEY.pattern})$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
        says="an object that maps token ids (as strings) to numbers from -100 to 100",
        most_values=_VOCABULARY,
        refine=refine,
    )


def user() -> Shape:
    control = re.compile("[\x00-\x1f\x7f-\x9f]")

    def refine(value: str) -> str | None:
        if control.search(value):
            raise BadRequest("`user` holds a control character: send an identifier without.", param="user")
        return value or None

    return Shape(
        python=Annotated[str, Meta(max_length=256)],
        schema={"type": "string", "maxLength": 256, "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$"},
        says="a string of at most 256 characters",
        refine=refine,
    )


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted without effect: chunks are not padded."""


def stream_options() -> Shape:
    names = StreamOptions.__struct_fields__
    return Shape(
        python=StreamOptions,
        schema={"type": "object", "properties": {name: {"type": ["boolean", "null"]} for name in names}},
        says=f"an object whose {', '.join(names[:-1])} and {names[-1]} are true or false",
    )


FormatName = Literal["text", "json_object", "json_schema"]


class _ResponseFormat(Struct, frozen=True):
    type: FormatName


def response_format() -> Shape:
    """Becomes the name of the format; `text`, which is what completions are, counts as absent."""

    def refine(value: _ResponseFormat) -> str | None:
        return None if value.type == "text" else value.type

    names = get_args(FormatName)
    return Shape(
        python=_ResponseFormat,
        schema={"type": "object", "properties": {"type": {"enum": list(names)}}, "required": ["type"]},
        says=f"an object whose type is one of {', '.join(names)}",
        refine=refine,
    )


def any_object() -> Shape:
    """Becomes True, and absent where it is empty: only that it was given is kept."""
    return Shape(
        python=dict[str, Raw],
        schema={"type": "object"},
        says="an object",
        most_values=2**16,
        refine=lambda value: True if value else None,
    )


def _absent_if_empty(value: Any) -> Any:
    return value or None


def _power(bound: int) -> str:
    return {INT32_MAX: "2³¹−1", INT64_MAX: "2⁶³−1", INT64_MIN: "-2⁶³"}.get(bound, str(bound))
