"""How the models routes name and describe models. Knows none."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType


class Capability(Struct, kw_only=True):
    """What becomes of one field of the request on a model. A bound that is not there is unknown or none."""

    how: Literal["native", "emulated", "refused"]
    why: str | None = None
    """Why it is refused, or only best effort; goes on from "because"."""
    word: str | UnsetType = UNSET
    """What `x-andthen-plan` says, where that is more: `fan-out`, `scanned`, `best-effort`."""
    minimum: float | UnsetType = UNSET
    maximum: float | UnsetType = UNSET
    """The least and the greatest value; of `stop`, how many."""
    native_minimum: float | UnsetType = UNSET
    native_maximum: float | UnsetType = UNSET
    """Between these it is native, outside as `word` says."""


class TokenPrices(Struct, kw_only=True):
    """US dollars per million tokens, in decimals."""

    prompt: str
    completion: str
    cached: str
    """For tokens of the prompt that the vendor reads from its cache."""
    cache_write: str
    """For tokens of the prompt that it writes to its cache."""
    reasoning: str
    """For tokens of the completion that the model reasons with."""


class LongPromptPrices(TokenPrices, kw_only=True):
    """What all tokens of a call cost whose prompt is long."""

    above_tokens: int
    """Tokens of the prompt that must be exceeded."""


class ModelPrice(TokenPrices, kw_only=True):
    """What calls to a model cost now."""

    request: str
    """US dollars for each call, whatever its tokens."""
    long_prompts: list[LongPromptPrices]
    other_hours: list[TokenPrices]
    """What they cost at other hours of the day."""
    valid_from: int | None
    """Since when: Unix time in seconds; null: not known."""
    source: str
    """Where the price was read."""


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
    vocab_size: int | None = None
    """Token ids are below this; null where the model's tokens are not ours to see."""
    fill_in_the_middle: bool
    """`suffix` is taken."""
    price: ModelPrice | None = None
    """Null where it isn't known."""
    prompt_forms: dict[str, Capability]
    """A prompt is one of `text`, `texts`, `token_ids`, `token_id_lists`; `empty`: it may be an empty text."""
    prompt_logprobs: Capability
    """`echo` together with `logprobs`."""
    capabilities: dict[str, Capability]
    """By the names of the request's fields."""


class ModelList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(Struct):
    status: Literal["ok"]


class Readiness(Struct):
    status: Literal["ok"]
    limits: Literal["ok", "uncounted", "refusing"]
    """Whether the limits of keys are counted; if not, whether keys that have some are admitted or refused."""
    ledger: Literal["ok", "unavailable"]
    """Whether the ledger's database takes what is written; if not, completions are refused."""
