"""What the tokenizer routes take and give. Knows no tokenizer."""

from __future__ import annotations

from msgspec import Struct

from andthen.contract.body import Table, split
from andthen.contract.fields import DETOKENIZE_FIELDS, TOKENIZE_FIELDS
from andthen.contract.limits import Limits


class TokenizeRequest(Struct, frozen=True):
    prompt: str = ""
    model: str | None = None
    """None is the first local model."""
    add_special_tokens: bool = True
    parse_special: bool = True


class DetokenizeRequest(Struct, frozen=True):
    tokens: tuple[int, ...] = ()
    model: str | None = None
    """None is the first local model."""


class TokenizeReply(Struct):
    tokens: list[int]


class DetokenizeReply(Struct):
    prompt: str


class TokenizerInfo(Struct):
    """Null where the model has no such token or template."""

    eos_token: str | None
    bos_token: str | None
    pad_token: str | None
    chat_template: str | None


_TOKENIZE = Table(TOKENIZE_FIELDS)
_DETOKENIZE = Table(DETOKENIZE_FIELDS)


def parse_tokenize(body: bytes, limits: Limits) -> TokenizeRequest:
    """Reads the body of `POST …/tokenize`.

    Raises:
        BadRequest: naming the field.
    """
    return TokenizeRequest(**_TOKENIZE.read(split(body, limits.max_depth)))


def parse_detokenize(body: bytes, limits: Limits) -> DetokenizeRequest:
    """Reads the body of `POST …/detokenize`.

    Raises:
        BadRequest: naming the field.
    """
    return DetokenizeRequest(**_DETOKENIZE.read(split(body, limits.max_depth)))
