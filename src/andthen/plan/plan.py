"""What each parameter of a request becomes on a model. Pure; knows the row of the model and nothing behind it.

No field is dropped or clamped in silence: each is taken natively, emulated, or the request is refused with the reason
and with the models that would take it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator

from msgspec import Struct
from msgspec.structs import fields

from andthen.contract.errors import UnsupportedParameter
from andthen.contract.limits import Limits
from andthen.contract.request import CompletionRequest
from andthen.plan.abilities import Abilities, Ability, PromptForm, contract_parameters

BEST_EFFORT = "best-effort"
FAN_OUT = "fan-out"
DEFAULT = "default"
"""The value is what the model does anyway, so it is not told."""
NO_CALL = "no-call"
TRIMMED = "trimmed"
_NOT_SENT = {FAN_OUT, DEFAULT, NO_CALL, "prepended", "ranked", "recorded"}
_HERE = {"prompt", "stream", "stream_options"}
"""Fields that every call has, in its own way."""
_MODELS_NAMED = 5
_DEFAULTS = {field.name: field.default for field in fields(CompletionRequest)}


class Plan(Struct, frozen=True, kw_only=True):
    """How a model takes a request."""

    model: str
    steps: tuple[tuple[str, str], ...]
    """(parameter, word) for each that the caller gave, in the contract's order: `native`, or how else."""
    sends: tuple[str, ...] = ()
    """The fields that a call names to the model."""
    splits_prompts: bool = False
    """Each prompt has calls of its own."""
    splits_candidates: bool = False
    """Each candidate has a call of its own."""
    ranks: bool = False
    """best_of is chosen here, by the candidates' log-probabilities."""
    scores_prompt: bool = False
    """The model is asked for the prompt's tokens: `echo` with `logprobs`."""
    native_stops: int = 0
    """So many of the stop sequences are told to the model; all are scanned for here."""
    scans: bool = False
    """A stop may be found that the model does not know: a call is to be cancelled as soon as it is."""
    least_tokens: int = 0
    """`max_tokens: 0` asks the model for so many, and drops them; 0: for none, with no call at all."""
    calls_nobody: bool = False
    """The reply needs nothing of the model."""

    header: bytes = b""
    """The value of `x-andthen-plan`: `n=native, stop=scanned, seed=best-effort`."""


class PlanCache:
    """The plans of one model. A plan depends on which fields a request gives and, of most, not on their values: so
    requests of one client share a plan.

    Args:
        abilities: the model's row.
        limits: the contract's ranges.
    """

    def __init__(self, abilities: Abilities, limits: Limits) -> None:
        self._abilities = abilities
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()
        whole = contract_parameters(limits)
        self._sensitive = frozenset(
            name
            for name, ability in abilities.parameters.items()
            if name not in _IN_KEY and not _takes_all(ability, whole[name])
        )
        """Parameters whose plan depends on whether the value is in the model's range and whether it is the default."""

    def plan(self, request: CompletionRequest, others: Iterable[Abilities] = ()) -> Plan:
        """As the function `plan`. Raises what that raises; a refusal is not cached."""
        key = self._key(request)
        plans = self._plans
        if (found := plans.get(key)) is not None:
            plans.move_to_end(key)
            return found
        found = plans[key] = plan(request, self._abilities, others)
        if len(plans) > _CACHED_PLANS:
            plans.popitem(last=False)
        return found

    def _key(self, request: CompletionRequest) -> Hashable:
        given, prompts = request.given, request.prompts
        sensitive: list[tuple[bool, bool]] = []
        if self._sensitive and not self._sensitive.isdisjoint(given):
            parameters = self._abilities.parameters
            for name in given:
                if name in self._sensitive:
                    is_default = name in _DEFAULTS and getattr(request, name) == _DEFAULTS[name]
                    sensitive.append((is_default, not _out_of_range(request, name, parameters[name])))
        return (
            given,
            type(prompts[0]),
            len(prompts) > 1,
            "" in prompts,
            request.best_of,
            request.n,
            len(request.stop),
            request.max_tokens == 0,
            request.temperature == 0,
            request.logprobs is None,
            request.echo,
            tuple(sensitive),
        )


_CACHED_PLANS = 256
_IN_KEY = frozenset({"best_of", "n", "stop", "echo", "stream", "stream_options"})
"""Parameters that a plan's key holds anyway, or whose value no plan depends on."""


def _takes_all(ability: Ability, whole: Ability) -> bool:
    """Whether the model takes every value that the contract has."""
    return (
        ability.support == "native"
        and (ability.minimum, ability.maximum) == (whole.minimum, whole.maximum)
        and ability.native_minimum is ability.native_maximum is None
    )


def plan(request: CompletionRequest, abilities: Abilities, others: Iterable[Abilities] = ()) -> Plan:
    """Decides each parameter that the caller gave.

    Args:
        others: the rows of all configured models, for the remedy in the refusal; read only then.

    Raises:
        UnsupportedParameter: the model does not take a parameter, or not this value of it.
    """
    steps: dict[str, str] = {}
    for parameter, ability in _asked(request, abilities):
        if reason := _refusal(request, parameter, ability, abilities):
            raise UnsupportedParameter(
                f"`{parameter}` is not taken by {abilities.model}: {reason}. {_remedy(request, parameter, others)}",
                param=parameter,
            )
        if parameter in request.given:
            steps[parameter] = _word(request, parameter, ability, abilities)
    if request.temperature == 0 and not abilities.deterministic and steps.get("temperature") == "native":
        steps["temperature"] = BEST_EFFORT
    return _calls(request, abilities, steps)


def _calls(request: CompletionRequest, abilities: Abilities, steps: dict[str, str]) -> Plan:
    """What the steps mean for the calls that are made."""
    parameters = abilities.parameters
    ranks = request.best_of > request.n and parameters["best_of"].support != "native"
    scores = _scores_prompt(request)
    sends = [name for name, word in steps.items() if word not in _NOT_SENT and name not in _HERE]
    sends += [name for name in abilities.always if name not in sends]
    if (ranks or scores) and "logprobs" not in sends:
        sends.append("logprobs")
    sends = [*(name for name in sends if name != "echo"), *(["echo"] if scores else [])]
    native_stops = _native_stops(request, abilities)
    least = int(parameters["max_tokens"].native_minimum or 0) if request.max_tokens == 0 else 0
    return Plan(
        model=abilities.model,
        steps=tuple(steps.items()),
        header=", ".join(f"{parameter}={word}" for parameter, word in steps.items()).encode(),
        sends=tuple(sends),
        splits_prompts=len(request.prompts) > 1
        and FAN_OUT in abilities.prompt_forms[_prompt_form(request)].how.split("+"),
        splits_candidates=not _native_candidates(request, parameters),
        ranks=ranks,
        scores_prompt=scores,
        native_stops=native_stops,
        scans=native_stops < len(request.stop),
        least_tokens=least,
        calls_nobody=least > 0 and not scores,
    )


def _asked(request: CompletionRequest, abilities: Abilities) -> Iterator[tuple[str, Ability]]:
    """What the request needs of the model, in the contract's order: what was given, and what follows from it."""
    forms = abilities.prompt_forms
    if "" in request.prompts:
        yield "prompt", forms["empty"]
    for parameter in request.given:
        if parameter == "prompt":
            yield parameter, forms[_prompt_form(request)]
        elif parameter != "model":
            yield parameter, abilities.parameters[parameter]
    if _scores_prompt(request) and abilities.prompt_logprobs.support != "native":
        yield "echo" if request.echo else "logprobs", abilities.prompt_logprobs


def _prompt_form(request: CompletionRequest) -> PromptForm:
    if isinstance(request.prompts[0], str):
        return "text" if len(request.prompts) == 1 else "texts"
    return "token_ids" if len(request.prompts) == 1 else "token_id_lists"


def _scores_prompt(request: CompletionRequest) -> bool:
    """Whether the prompt's tokens must come from the model. Of token ids only the model knows the text, and with it
    the offsets of what follows."""
    of_ids = not isinstance(request.prompts[0], str)
    return (request.logprobs is not None and (request.echo or of_ids)) or (request.echo and of_ids)


def _native_candidates(request: CompletionRequest, parameters: dict[str, Ability]) -> bool:
    """Whether one call brings all candidates of a prompt."""
    if request.best_of == 1 or (request.best_of > request.n and parameters["best_of"].support == "native"):
        return True
    n = parameters["n"]
    most = n.maximum if n.support == "native" else n.native_maximum
    return most is not None and request.best_of <= most


def _native_stops(request: CompletionRequest, abilities: Abilities) -> int:
    """How many of the stop sequences the model itself looks for."""
    stop = abilities.parameters["stop"]
    most = len(request.stop) if stop.support == "native" else int(stop.native_maximum or 0)
    return min(len(request.stop), most)


def _word(request: CompletionRequest, parameter: str, ability: Ability, abilities: Abilities) -> str:
    if _is_default(request, parameter, ability, abilities):
        return DEFAULT
    if parameter == "prompt" and len(request.prompts) == 1:
        return ability.word
    if parameter == "n" and _native_candidates(request, abilities.parameters):
        return "native"
    if parameter == "stop" and ability.native_maximum and len(request.stop) <= ability.native_maximum:
        return "native"
    if parameter == "echo" and _scores_prompt(request):
        return "native"
    if parameter == "max_tokens" and request.max_tokens == 0 and ability.native_minimum:
        return TRIMMED if _scores_prompt(request) else NO_CALL
    return ability.word


def _is_default(request: CompletionRequest, parameter: str, ability: Ability, abilities: Abilities) -> bool:
    """Whether a value that the model is not told is what it does anyway."""
    if parameter in abilities.always or parameter in ("prompt", "max_tokens"):
        return False
    told = ability.support == "native" and not _out_of_range(request, parameter, ability)
    if parameter == "best_of":
        return not told and request.best_of == request.n
    return not told and parameter in _DEFAULTS and getattr(request, parameter) == _DEFAULTS[parameter]


def _refusal(request: CompletionRequest, parameter: str, ability: Ability, abilities: Abilities) -> str:
    """Why not; empty where it is taken."""
    if _is_default(request, parameter, ability, abilities):
        return ""
    if ability.support == "refused":
        return ability.reason
    scans = _native_stops(request, abilities) < len(request.stop)
    if parameter == "min_tokens" and scans and request.logprobs is None:
        return "it does not take all of `stop`, and without `logprobs` no token is seen that an own search could count"
    return _out_of_range(request, parameter, ability)


def _out_of_range(request: CompletionRequest, parameter: str, ability: Ability) -> str:
    value = getattr(request, parameter, None)
    size = len(value) if isinstance(value, tuple) else value
    if not isinstance(size, int | float):
        return ""
    wraps = (ability.minimum, ability.maximum) == _WHOLE_SEED
    last = size + request.best_of - 1 if parameter == "seed" and not wraps else size
    if ability.maximum is not None and last > ability.maximum:
        return f"its maximum is {_written(ability.maximum)}" + (", for the last candidate too" if last > size else "")
    least = ability.minimum if not (ability.native_minimum and size) else ability.native_minimum
    if least is not None and size < least:
        return f"its minimum is {_written(least)}"
    return ""


_WHOLE_SEED = (-(2**63), 2**63 - 1)
"""A seed of the contract's own range wraps; in a narrower one each candidate's must still fit."""


def _written(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def _remedy(request: CompletionRequest, parameter: str, others: Iterable[Abilities]) -> str:
    takers = [
        other.model
        for other in others
        if not any(
            name == parameter and _refusal(request, name, ability, other) for name, ability in _asked(request, other)
        )
    ]
    leave_out = "" if parameter == "prompt" else "leave it out"
    if not takers:
        return "; ".join(filter(None, [leave_out, "no configured model takes it"])).capitalize() + "."
    more = f" and {len(takers) - _MODELS_NAMED} more" if len(takers) > _MODELS_NAMED else ""
    use = ", or ".join(filter(None, [leave_out, "use a model that takes it"])).capitalize()
    return f"{use}: {', '.join(takers[:_MODELS_NAMED])}{more}."
