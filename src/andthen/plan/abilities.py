"""What a model can take: the words of a capability row. Pure; knows no engine and no vendor.

A row says of every field of the contract whether the model takes it natively, whether it is emulated faithfully, or
why it is refused. The row is what `GET …/models/{vendor}/{model}` serves, and what `plan` decides by.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from andthen.contract.fields import completion_fields
from andthen.contract.limits import Limits

Support = Literal["native", "emulated", "refused"]
PromptForm = Literal["text", "texts", "token_ids", "token_id_lists"]


class Ability(Struct, frozen=True, omit_defaults=True):
    """Whether and how one parameter is taken."""

    support: Support
    how: str = ""
    """The plan's word for it, where that is not "native": `fan-out`, `scanned`, `best-effort`."""
    reason: str = ""
    """Why it is refused, or only best effort; goes on from "because"."""
    minimum: float | None = None
    maximum: float | None = None
    """The least and the greatest value; of `stop`, how many."""

    @property
    def word(self) -> str:
        return self.how or self.support


NATIVE = Ability("native")


def refused(reason: str) -> Ability:
    return Ability("refused", reason=reason)


class Abilities(Struct, frozen=True, kw_only=True):
    """One model's row."""

    model: str
    """The whole name, `vendor/model`."""
    context: int | None
    """Longest sequence in tokens, prompt and completion together; None where the vendor does not tell."""
    vocab_size: int | None
    """None where the model's tokens are not ours to see."""
    deterministic: bool
    """A seed gives the same bytes alone and under load."""
    prompt_forms: dict[PromptForm, Ability]
    prompt_logprobs: Ability
    """`echo` together with `logprobs`."""
    parameters: dict[str, Ability]
    """Every other field of the contract, `model` and `prompt` aside."""

    def row(self) -> dict[str, Any]:
        """The row as JSON shows it."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        del values["model"]
        values["fill_in_the_middle"] = self.parameters["suffix"].support == "native"
        return values


def local(
    *, model: str, context: int, vocab_size: int, fill_in_the_middle: bool, deterministic: bool, limits: Limits
) -> Abilities:
    """The row of a model on the embedded engine: everything natively, but for what the model itself lacks."""
    parameters = contract_parameters(limits)
    grammar = refused("the embedded engine does not constrain a text to a grammar")
    parameters |= {"response_format": grammar, "structured_outputs": grammar}
    if not fill_in_the_middle:
        parameters["suffix"] = refused("the model has no fill-in-the-middle tokens")
    if not deterministic:
        parameters["seed"] = msgspec.structs.replace(
            parameters["seed"],
            how="best-effort",
            reason="the model's probabilities depend a little on what else is computed in the same step",
        )
    return Abilities(
        model=model,
        context=context,
        vocab_size=vocab_size,
        deterministic=deterministic,
        prompt_forms={"text": NATIVE, "texts": NATIVE, "token_ids": NATIVE, "token_id_lists": NATIVE},
        prompt_logprobs=NATIVE,
        parameters=parameters,
    )


def contract_parameters(limits: Limits) -> dict[str, Ability]:
    """Every parameter natively, in the contract's own ranges: what a row starts from."""
    return {
        field.name: Ability(
            "native", minimum=_bound(field.shape.schema, "min"), maximum=_bound(field.shape.schema, "max")
        )
        for field in completion_fields(limits)
        if field.name not in ("model", "prompt")
    }


def _bound(schema: dict[str, Any], side: Literal["min", "max"]) -> float | None:
    """Of a number its value, of a list its length."""
    for kind in (schema, *schema.get("anyOf", ())):
        if (bound := kind.get(f"{side}imum", kind.get(f"{side}Items"))) is not None:
            return float(bound) if isinstance(bound, float) else int(bound)
    return None
