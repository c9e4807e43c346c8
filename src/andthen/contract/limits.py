"""The bounds that an operator may set on requests. Knows nothing of where settings come from."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

MAX_ITEMS = 2**20
"""As many as 1,024 prompts of 1,023 token ids."""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request past one of these gets 400, naming the field."""

    max_depth: Annotated[int, Meta(ge=4, le=256)] = 16
    """Nesting of JSON arrays and objects, the body itself included."""
    max_items: Annotated[int, Meta(ge=1024, le=2**26)] = MAX_ITEMS
    """Values in a request's body, in all its arrays and objects together; past it 413."""
    max_prompts: Annotated[int, Meta(ge=1, le=65_536)] = 1024
    """Prompts in one request."""
    max_sequences: Annotated[int, Meta(ge=1, le=65_536)] = 1024
    """Prompts × max(`n`, `best_of`) of one request."""
    max_stops: Annotated[int, Meta(ge=1, le=64)] = 4
    """Stop sequences of one request."""
    max_logprobs: Annotated[int, Meta(ge=0, le=100)] = 5
    """Highest `logprobs`."""
