"""How the models routes name and describe models. Knows none."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Capability(Struct):
    """What becomes of one field of the request on a model."""

    how: Literal["native", "emulated", "refused"]
    why: str | None = None


class ModelCard(Struct, kw_only=True):
    id: str
    """The whole name, `vendor/model`."""
    object: Literal["model"] = "model"
    created: int
    """Unix time in seconds."""
    owned_by: str
    """The vendor."""
    context_length: int | None = None
    """Longest prompt and completion together, in tokens, where it is known."""
    deterministic: bool
    """A seed gives the same text alone and under load."""
    capabilities: dict[str, Capability]
    """By the names of the request's fields."""


class ModelList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(Struct):
    status: Literal["ok"]
