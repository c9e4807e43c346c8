"""What a model can take: the words of a capability row. Pure; knows no engine and no vendor.

A row says of every field of the contract whether the model takes it natively, whether it is emulated faithfully, or
why it is refused. The row is what `GET …/models/{vendor}/{model}` serves, and what `plan` decides by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from andthen.contract.fields import completion_fields
from andthen.contract.limits import Limits

Support = Literal["native", "emulated", "refused"]
PromptForm = Literal["text", "texts", "token_ids", "token_id_lists", "empty"]
PROMPT_FORMS: tuple[PromptForm, ...] = ("text", "texts", "token_ids", "token_id_lists", "empty")


class Way(Struct, frozen=True, forbid_unknown_fields=True):
    """A native parameter of a vendor's, under conditions."""

    min: float | None = None
    max: float | None = None
    how: str = ""
    """The plan's word, where the vendor's parameter is another thing that ours is faithfully made from."""


Take = bool | str | tuple[float, float] | Way
"""What a row says of a field: `true`, taken in the contract's own range; `[least, greatest]`, taken within (of `stop`,
how many); a text, refused, and why: goes on from "because"; a table: see `Way`."""


class Row(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a language, a vendor or a model says of itself. What it leaves out, the one below it says."""

    takes: dict[str, Take] = {}
    """By the names of the contract's fields. What nobody names is refused."""
    prompts: tuple[PromptForm, ...] | None = None
    """The forms of prompt that one call takes."""
    as_message: bool | None = None
    """A prompt becomes a user's message."""
    prompt_logprobs: bool | str | None = None
    """`echo` with `logprobs` scores the prompt; a text says why not."""
    always: tuple[str, ...] | None = None
    """Fields that are sent also when the caller left them out, since the vendor's own default is another."""
    context: int | None = None
    """Longest prompt and completion together, in tokens, where the vendor tells it."""
    deterministic: bool | None = None
    """A seed gives the same bytes alone and under load."""


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
    native_minimum: float | None = None
    native_maximum: float | None = None
    """Between these it is taken natively, outside as `how` says."""

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
    always: tuple[str, ...] = ()
    """Fields that the model is told also when the caller left them out."""

    @property
    def fill_in_the_middle(self) -> bool:
        return self.parameters["suffix"].support == "native"

    def row(self) -> dict[str, Any]:
        """The row as JSON shows it."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        del values["model"], values["always"]
        values["fill_in_the_middle"] = self.fill_in_the_middle
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
        parameters["seed"] = replace(
            parameters["seed"],
            how="best-effort",
            reason="the model's probabilities depend a little on what else is computed in the same step",
        )
    return Abilities(
        model=model,
        context=context,
        vocab_size=vocab_size,
        deterministic=deterministic,
        prompt_forms=dict.fromkeys(PROMPT_FORMS, NATIVE),
        prompt_logprobs=NATIVE,
        parameters=parameters,
    )


def remote(model: str, row: Row, limits: Limits) -> Abilities:
    """The row of a model behind a vendor's API: what the vendor takes, and what is faithfully made from that."""
    whole = contract_parameters(limits)
    parameters = {name: _taken(row.takes.get(name, False), ability) for name, ability in whole.items()}
    _emulate(parameters, whole)
    if not row.deterministic and parameters["seed"].support == "native":
        parameters["seed"] = replace(
            parameters["seed"], how="best-effort", reason="the vendor promises no more than to try"
        )
    scored = row.prompt_logprobs
    return Abilities(
        model=model,
        context=row.context,
        vocab_size=None,
        deterministic=bool(row.deterministic),
        prompt_forms=_prompt_forms(row.prompts or (), as_message=bool(row.as_message)),
        prompt_logprobs=NATIVE if scored is True else refused(scored or "the vendor does not score prompts"),
        parameters=parameters,
        always=row.always or (),
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


def _taken(take: Take, whole: Ability) -> Ability:
    """What a row says of a field, within the contract's range."""
    match take:
        case True:
            return whole
        case False:
            return refused("the vendor has no such parameter")
        case str():
            return refused(take)
        case Way():
            low, high, how = take.min, take.max, take.how
        case (low, high):
            how = ""
    return replace(
        whole,
        support="emulated" if how else "native",
        how=how,
        minimum=_tighter(max, whole.minimum, low),
        maximum=_tighter(min, whole.maximum, high),
    )


def _tighter(choose: Any, one: float | None, other: float | None) -> float | None:
    known = [bound for bound in (one, other) if bound is not None]
    return choose(known) if known else None


def _emulate(parameters: dict[str, Ability], whole: Mapping[str, Ability]) -> None:
    """What needs nothing of the vendor, or something else of it."""
    for name, how in (("n", "fan-out"), ("stop", "scanned")):
        own = parameters[name]
        if own.support != "native":
            parameters[name] = replace(whole[name], support="emulated", how=how)
        elif own.maximum != whole[name].maximum:
            parameters[name] = replace(whole[name], support="emulated", how=how, native_maximum=own.maximum)
    if parameters["best_of"].support != "native":
        parameters["best_of"] = (
            replace(whole["best_of"], support="emulated", how="ranked")
            if parameters["logprobs"].support != "refused"
            else refused("it ranks candidates by their log-probabilities, and the model tells none")
        )
    if parameters["echo"].support != "native":
        parameters["echo"] = Ability("emulated", how="prepended")
    if parameters["user"].support != "native":
        parameters["user"] = replace(whole["user"], support="emulated", how="recorded")
    least = parameters["max_tokens"].minimum
    if least:
        parameters["max_tokens"] = replace(parameters["max_tokens"], minimum=0, native_minimum=least)
    parameters["stream"] = NATIVE
    if parameters["stream_options"].support != "native":
        parameters["stream_options"] = Ability(
            "emulated",
            how="counted",
            reason="usage so far lacks the prompt until the vendor tells it, often at the end",
        )


def _prompt_forms(prompts: Sequence[PromptForm], *, as_message: bool) -> dict[PromptForm, Ability]:
    text = Ability("emulated", how="message") if as_message else NATIVE
    ids = NATIVE if "token_ids" in prompts else refused("the model's tokens are not ours to see: send text")

    def listed(form: PromptForm, one: Ability) -> Ability:
        if form in prompts or one.support == "refused":
            return one
        return Ability("emulated", how=f"{one.how}+fan-out" if one.how else "fan-out")

    return {
        "text": text,
        "texts": listed("texts", text),
        "token_ids": ids,
        "token_id_lists": listed("token_id_lists", ids),
        "empty": text if "empty" in prompts else refused("the vendor takes no empty prompt"),
    }


def _bound(schema: dict[str, Any], side: Literal["min", "max"]) -> float | None:
    """Of a number its value, of a list its length."""
    for kind in (schema, *schema.get("anyOf", ())):
        if (bound := kind.get(f"{side}imum", kind.get(f"{side}Items"))) is not None:
            return float(bound) if isinstance(bound, float) else int(bound)
    return None
