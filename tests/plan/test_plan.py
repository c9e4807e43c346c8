"""Rows, and what is decided by them, on requests that the contract's own parser made."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.contract.errors import UnsupportedParameter
from andthen.contract.fields import completion_fields
from andthen.contract.limits import Limits
from andthen.contract.request import CompletionRequest, parse
from andthen.plan.abilities import NATIVE, Abilities, Ability, Row, local, refused, remote
from andthen.plan.plan import Plan, PlanCache, plan

LIMITS = Limits()


def row(
    model: str = "local/tale",
    *,
    fill_in_the_middle: bool = True,
    deterministic: bool = True,
    takes: dict[str, Ability] | None = None,
) -> Abilities:
    made = local(
        model=model,
        context=512,
        vocab_size=4096,
        fill_in_the_middle=fill_in_the_middle,
        deterministic=deterministic,
        limits=LIMITS,
    )
    return msgspec.structs.replace(made, parameters=made.parameters | (takes or {}))


def asked(**fields: object) -> CompletionRequest:
    return parse(json.dumps({"model": "local/tale", "prompt": None, **fields}).encode(), LIMITS)


def test_the_embedded_engine_takes_every_field_of_the_contract_natively() -> None:
    refusing = {"suffix": "The end.", "response_format": {"type": "json_object"}, "structured_outputs": {"json": {}}}
    fields = {field.name: field.example for field in completion_fields(LIMITS)} | {"max_tokens": 64, "n": 1}
    taken = {name: value for name, value in fields.items() if name not in (*refusing, "model")}
    taken["best_of"] = 1
    made = plan(asked(**taken), row())
    assert made.steps == tuple((name, "native") for name in fields if name in taken)


def test_the_header_tells_what_was_given_and_nothing_else() -> None:
    request = asked(prompt="a", stop="x", n=2, seed=1, user=None, suffix="")
    assert plan(request, row()).header.decode() == "prompt=native, n=native, seed=native, stop=native"
    assert plan(asked(), row()).header.decode() == ""


def test_a_seed_and_greedy_sampling_are_best_effort_on_a_model_that_is_not_deterministic() -> None:
    model = row(deterministic=False)
    assert plan(asked(seed=1, temperature=0), model).header.decode() == "seed=best-effort, temperature=best-effort"
    assert plan(asked(seed=1, temperature=1), model).header.decode() == "seed=best-effort, temperature=native"
    assert plan(asked(seed=1, temperature=0), row()).header.decode() == "seed=native, temperature=native"


@pytest.mark.parametrize(
    ("field", "value"),
    [("response_format", {"type": "json_object"}), ("structured_outputs", {"json": {"type": "object"}})],
)
def test_grammars_are_refused(field: str, value: object) -> None:
    with pytest.raises(UnsupportedParameter, match=r"grammar\. Leave it out; no configured model takes it\.") as caught:
        plan(asked(**{field: value}), row(), [row()])
    assert caught.value.param == field


def test_a_refusal_names_the_reason_and_the_models_that_take_it() -> None:
    plain, coder = row(fill_in_the_middle=False), row("local/coder")
    with pytest.raises(UnsupportedParameter) as caught:
        plan(asked(suffix="x"), plain, [plain, coder])
    assert caught.value.param == "suffix"
    assert caught.value.message == (
        "`suffix` is not taken by local/tale: the model has no fill-in-the-middle tokens."
        " Leave it out, or use a model that takes it: local/coder."
    )


def test_a_refusal_names_a_few_models_of_many() -> None:
    plain = row(fill_in_the_middle=False)
    with pytest.raises(UnsupportedParameter, match=r"local/m0, .*, local/m4 and 15 more\.$"):
        plan(asked(suffix="x"), plain, [row(f"local/m{number}") for number in range(20)])


@pytest.mark.parametrize(
    ("ability", "fields", "reason"),
    [
        (Ability("native", maximum=1), {"temperature": 1.5}, "its maximum is 1"),
        (Ability("native", minimum=0.01), {"temperature": 0}, "its minimum is 0.01"),
        (Ability("emulated", how="fan-out", maximum=8), {"n": 9}, "its maximum is 8"),
        (Ability("native", maximum=2), {"stop": ["a", "b", "c"]}, "its maximum is 2"),
        (refused("there is none"), {"logit_bias": {"1": 1}}, "there is none"),
    ],
)
def test_a_value_that_a_model_does_not_take_is_refused_and_never_clamped(
    ability: Ability, fields: dict[str, object], reason: str
) -> None:
    (name,) = fields
    model = row(takes={name: ability})
    with pytest.raises(UnsupportedParameter, match=f"{reason}. Leave it out, or use .*: local/wide") as caught:
        plan(asked(**fields), model, [model, row("local/wide")])
    assert caught.value.param == name


def test_a_bound_is_told_exactly() -> None:
    wide = row(takes={"max_tokens": Ability("native", maximum=1_048_576.0)})
    with pytest.raises(UnsupportedParameter, match=r"its maximum is 1048576\."):
        plan(asked(max_tokens=2_000_000), wide)


@pytest.mark.parametrize(
    ("low", "high", "seed"), [(0, 2**63 - 1, 2**63 - 1), (0, 2**32 - 1, 2**32 - 2), (-(2**63), 10, 9)]
)
def test_where_seeds_do_not_wrap_that_of_the_last_candidate_must_fit(low: int, high: int, seed: int) -> None:
    model = row(takes={"seed": Ability("native", minimum=low, maximum=high), "n": Ability("emulated", how="fan-out")})
    with pytest.raises(UnsupportedParameter, match="for the last candidate too") as caught:
        plan(asked(seed=seed, n=3), model)
    assert caught.value.param == "seed"
    assert plan(asked(seed=high - 2, n=3), model).header.decode().startswith("n=fan-out")
    assert plan(asked(seed=2**63 - 1, n=3), row()).header.decode() == "n=native, seed=native"


def test_min_tokens_need_tokens_that_are_seen_where_stops_are_found_here() -> None:
    model = row(takes={"stop": Ability("emulated", how="scanned", maximum=4, native_maximum=1)})
    with pytest.raises(UnsupportedParameter, match="does not take all of `stop`") as caught:
        plan(asked(stop=["a", "b"], min_tokens=2), model)
    assert caught.value.param == "min_tokens"
    assert plan(asked(stop=["a"], min_tokens=2), model).header.decode() == "stop=native, min_tokens=native"
    assert plan(asked(stop=["a", "b"], min_tokens=2, logprobs=0), model).scans


def test_nobody_is_told_to_leave_out_the_prompt() -> None:
    forms = dict.fromkeys(row().prompt_forms, NATIVE) | {"token_ids": refused("its tokens are not ours to see")}
    model = msgspec.structs.replace(row("team/shy"), prompt_forms=forms)
    with pytest.raises(UnsupportedParameter, match=r"to see\. Use a model that takes it: local/tale\.$"):
        plan(asked(prompt=[1, 2]), model, [model, row()])
    with pytest.raises(UnsupportedParameter, match=r"to see\. No configured model takes it\.$"):
        plan(asked(prompt=[1, 2]), model, [model])


def test_what_is_emulated_is_said_by_its_word() -> None:
    model = row(takes={"n": Ability("emulated", how="fan-out"), "stop": Ability("emulated", how="scanned")})
    assert plan(asked(n=3, stop=["x"]), model).header.decode() == "n=fan-out, stop=scanned"


@pytest.mark.parametrize(
    ("prompt", "form"),
    [("a", "text"), (["a"], "text"), (["a", "b"], "texts"), ([1, 2], "token_ids"), ([[1], [2]], "token_id_lists")],
)
def test_a_prompt_is_taken_by_its_form(prompt: object, form: str) -> None:
    forms = dict.fromkeys(row().prompt_forms, NATIVE) | {form: refused("it is not known there")}
    model = msgspec.structs.replace(row(), prompt_forms=forms)
    with pytest.raises(UnsupportedParameter, match="it is not known there") as caught:
        plan(asked(prompt=prompt), model)
    assert caught.value.param == "prompt"


def test_echo_with_logprobs_needs_prompt_logprobs() -> None:
    model = msgspec.structs.replace(row(), prompt_logprobs=refused("the prompt's tokens are not told"))
    assert plan(asked(echo=True), model).header.decode() == "echo=native"
    assert plan(asked(logprobs=1), model).header.decode() == "logprobs=native"
    with pytest.raises(UnsupportedParameter, match="local/other") as caught:
        plan(asked(echo=True, logprobs=1), model, [model, row("local/other")])
    assert caught.value.param == "echo"


def test_a_row_says_everything_of_every_field() -> None:
    shown = row(fill_in_the_middle=False, deterministic=False).row()
    assert json.loads(json.dumps(shown)) == shown
    assert set(shown["parameters"]) == {field.name for field in completion_fields(LIMITS)} - {"model", "prompt"}
    assert (shown["context"], shown["vocab_size"], shown["deterministic"]) == (512, 4096, False)
    assert shown["fill_in_the_middle"] is False
    assert shown["parameters"]["suffix"]["reason"] == "the model has no fill-in-the-middle tokens"
    assert shown["parameters"]["seed"]["how"] == "best-effort"
    assert shown["parameters"]["stop"] == {"support": "native", "maximum": 4}
    assert shown["parameters"]["logprobs"] == {"support": "native", "minimum": 0, "maximum": 5}
    assert shown["prompt_forms"]["token_ids"] == shown["prompt_logprobs"] == {"support": "native"}


def test_a_row_follows_the_limits() -> None:
    wide = local(
        model="local/tale",
        context=1,
        vocab_size=1,
        fill_in_the_middle=False,
        deterministic=True,
        limits=Limits(max_stops=16, max_logprobs=20),
    ).parameters
    assert (wide["stop"].maximum, wide["logprobs"].maximum) == (16, 20)


ROWS = [
    row(),
    row(deterministic=False),
    row(takes={"seed": Ability("native", minimum=0, maximum=100), "top_p": Ability("native", minimum=0.1, maximum=1)}),
    row(takes={"temperature": Ability("native", minimum=0, maximum=1), "user": refused("it has none")}),
    row(takes={"stop": Ability("emulated", how="scanned", native_maximum=1), "n": Ability("emulated", how="fan-out")}),
    row(takes={"max_tokens": Ability("native", minimum=0, maximum=64, native_minimum=1), "min_p": refused("no")}),
    remote("team/m", Row(takes={"max_tokens": True, "logprobs": (0, 1)}, prompts=("text",)), LIMITS),
]
FIELDS: dict[str, st.SearchStrategy[object]] = {
    "prompt": st.sampled_from(["a", "", ["a", "b"], ["a", ""], [1], [[1], [2]]]),
    "n": st.integers(1, 3),
    "best_of": st.integers(3, 4),
    "echo": st.booleans(),
    "logprobs": st.integers(0, 2),
    "max_tokens": st.sampled_from([0, 1, 64, 65]),
    "seed": st.sampled_from([-1, 0, 99, 100, 101]),
    "stop": st.lists(st.sampled_from("xyz"), max_size=3),
    "temperature": st.sampled_from([0, 0.5, 1, 1.5]),
    "top_p": st.sampled_from([0, 0.05, 0.5, 1]),
    "min_p": st.sampled_from([0, 0.5]),
    "user": st.sampled_from(["", "u"]),
    "stream": st.just(False),
    "min_tokens": st.just(0),
}


def outcome(make: Callable[[], Plan]) -> Plan | str:
    try:
        return make()
    except UnsupportedParameter as refusal:
        return str(refusal)


@given(st.sampled_from(range(len(ROWS))), st.lists(st.fixed_dictionaries({}, optional=FIELDS), min_size=1, max_size=6))
def test_a_cached_plan_is_the_plan(number: int, bodies: list[dict[str, object]]) -> None:
    cache = PlanCache(ROWS[number], LIMITS)
    for body in bodies:
        request = asked(**body)
        made = outcome(lambda: plan(request, ROWS[number]))  # noqa: B023 - called at once
        assert outcome(lambda: cache.plan(request)) == made  # noqa: B023
        assert isinstance(made, str) or cache.plan(request) is cache.plan(request)
