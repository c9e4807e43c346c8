"""What each parameter of a request becomes on a model. Pure; knows the row of the model and nothing behind it.

No field is dropped or clamped in silence: each is taken natively, emulated, or the request is refused with the reason
and with the models that would take it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from andthen.contract.errors import UnsupportedParameter
from andthen.contract.request import CompletionRequest
from andthen.plan.abilities import Abilities, Ability, PromptForm

BEST_EFFORT = "best-effort"
_MODELS_NAMED = 5


class Plan(Struct, frozen=True):
    """How a model takes a request."""

    model: str
    steps: tuple[tuple[str, str], ...]
    """(parameter, word) for each that the caller gave, in the contract's order: `native`, or how else."""

    def header(self) -> str:
        """The value of `x-andthen-plan`: `n=native, stop=scanned, seed=best-effort`."""
        return ", ".join(f"{parameter}={word}" for parameter, word in self.steps)


def plan(request: CompletionRequest, abilities: Abilities, others: Sequence[Abilities] = ()) -> Plan:
    """Decides each parameter that the caller gave.

    Args:
        others: the rows of all configured models, for the remedy in the refusal.

    Raises:
        UnsupportedParameter: the model does not take a parameter, or not this value of it.
    """
    steps: dict[str, str] = {}
    for parameter, ability in _asked(request, abilities):
        if reason := _refusal(request, parameter, ability):
            raise UnsupportedParameter(
                f"`{parameter}` is not taken by {abilities.model}: {reason}. {_remedy(request, parameter, others)}",
                param=parameter,
            )
        steps[parameter] = ability.word
    if request.temperature == 0 and not abilities.deterministic and steps.get("temperature") == "native":
        steps["temperature"] = BEST_EFFORT
    return Plan(abilities.model, tuple(steps.items()))


def _asked(request: CompletionRequest, abilities: Abilities) -> Iterator[tuple[str, Ability]]:
    for parameter in request.given:
        if parameter == "prompt":
            yield parameter, abilities.prompt_forms[_prompt_form(request)]
        elif parameter != "model":
            yield parameter, abilities.parameters[parameter]
    if request.echo and request.logprobs is not None and abilities.prompt_logprobs.support != "native":
        yield "echo", abilities.prompt_logprobs


def _prompt_form(request: CompletionRequest) -> PromptForm:
    if isinstance(request.prompts[0], str):
        return "text" if len(request.prompts) == 1 else "texts"
    return "token_ids" if len(request.prompts) == 1 else "token_id_lists"


def _refusal(request: CompletionRequest, parameter: str, ability: Ability) -> str:
    """Why not; empty where it is taken."""
    if ability.support == "refused":
        return ability.reason
    value = getattr(request, parameter, None)
    size = len(value) if isinstance(value, tuple) else value
    if isinstance(size, int | float):
        if ability.maximum is not None and size > ability.maximum:
            return f"its maximum is {ability.maximum:g}"
        if ability.minimum is not None and size < ability.minimum:
            return f"its minimum is {ability.minimum:g}"
    return ""


def _remedy(request: CompletionRequest, parameter: str, others: Sequence[Abilities]) -> str:
    takers = [
        other.model
        for other in others
        if not any(name == parameter and _refusal(request, name, ability) for name, ability in _asked(request, other))
    ]
    if not takers:
        return "Leave it out; no configured model takes it."
    more = f" and {len(takers) - _MODELS_NAMED} more" if len(takers) > _MODELS_NAMED else ""
    return f"Leave it out, or use a model that takes it: {', '.join(takers[:_MODELS_NAMED])}{more}."
