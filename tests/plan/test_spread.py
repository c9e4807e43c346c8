"""What is emulated against what the embedded engine does itself: the same events, and both as the plain slow loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from andthen.contract.errors import UpstreamGarbled, UpstreamRefused
from andthen.contract.events import Event, Finished, PromptScored, Text, Token, Usage
from andthen.contract.limits import Limits
from andthen.contract.request import CompletionRequest, parse
from andthen.engine.messages import Emitted
from andthen.plan.abilities import Abilities, Row, Take, remote
from andthen.plan.candidate import NEXT, Input, State
from andthen.plan.plan import plan
from andthen.plan.spread import Part, Spread, parts
from tests.engine.asking import MODEL, Asker, Plain, Reply, asking

LIMITS = Limits()
SAMPLING: dict[str, Take] = dict.fromkeys(
    ("logit_bias", "logprobs", "max_tokens", "seed", "temperature", "top_p", "frequency_penalty"), True
)


def row(takes: dict[str, Take] | None = None, **fields: Any) -> Abilities:
    """A server that takes one text and gives one choice, with nothing but sampling of its own."""
    fields = dict[str, Any](prompts=("text", "token_ids", "empty"), prompt_logprobs=True, deterministic=True) | fields
    return remote(MODEL, Row(takes=SAMPLING | (takes or {}), **fields), LIMITS)


def asked(**fields: object) -> CompletionRequest:
    return parse(json.dumps({"model": MODEL, "prompt": "Once upon a time", **fields}).encode(), LIMITS)


def emulated(asker: Asker, request: CompletionRequest, abilities: Abilities) -> Reply:
    """Every call goes to the engine, one after the other, and is left as soon as nothing more is wanted of it."""
    spread = Spread(request, plan(request, abilities))
    events: list[Event] = []
    for part in spread.parts:
        spread.begin(part)
        for event in call(asker, part):
            events += spread.feed(part, [event])
            if not spread.wanted(part):
                break
        spread.close(part)
    return Reply([*events, *spread.end()])


def call(asker: Asker, part: Part) -> Iterator[Event]:
    sent = ("max_tokens", *(name for name in part.request.given if name != "max_tokens"))
    fields = {name: getattr(part.request, name) for name in sent}
    prompts, best_of = part.request.prompts, part.request.n
    job = asker.submit(CompletionRequest(model=MODEL, prompts=prompts, stream=part.streams, best_of=best_of, **fields))
    try:
        while True:
            answer = asker.next(job)
            assert isinstance(answer, Emitted)
            for event in answer.events:
                if isinstance(event, Usage):
                    return
                yield event
    finally:
        asker.cancel(job)


@pytest.fixture(scope="module")
def asker() -> Iterator[Asker]:
    with asking() as one:
        yield one


words = st.sampled_from(["Once upon a time", "The", "“Ah!” said the old man,\n", "é ñ 木", "1 2 3"])
ids = st.lists(st.integers(5, 4095), min_size=1, max_size=4)
prompts = st.one_of(words, ids, st.lists(words, min_size=1, max_size=3), st.lists(ids, min_size=1, max_size=3))


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": draw(prompts),
        "n": draw(st.integers(1, 3)),
        "max_tokens": draw(st.integers(0, 12)),
        "seed": draw(st.sampled_from([0, 7, 2**63 - 2])),
        "temperature": draw(st.sampled_from([0, 0.8, 1.5])),
        "logprobs": draw(st.sampled_from([None, 0, 2])),
        "echo": draw(st.booleans()),
        "stop": draw(st.lists(st.sampled_from(["e", " the", ".", "he ", "\n", "and t"]), max_size=3)),
        "logit_bias": draw(st.sampled_from([None, {"0": 4}])),
    }
    if draw(st.booleans()):
        body["stream"] = True
    else:
        body["best_of"] = body["n"] + draw(st.integers(0, 2))
    return body


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies())
@example({"prompt": ["The", "Once"], "n": 2, "best_of": 3, "stop": ["e"], "seed": 1, "echo": True, "logprobs": 2})
@example({"prompt": [[300], [301, 302]], "logprobs": 1, "max_tokens": 3, "seed": 1})
def test_what_is_emulated_is_what_the_engine_does_itself(asker: Asker, body: dict[str, Any]) -> None:
    request = asked(**body)
    native = asker.collect(asker.submit(request))
    ours = emulated(asker, request, row())
    assert {key: (p.text, p.tokens) for key, p in ours.prompts.items()} == {
        key: (p.text, p.tokens) for key, p in native.prompts.items()
    }
    if request.stop and plan(request, row()).scores_prompt:
        # Such a call is not read as it comes: what the engine made behind a stop counts, and is not shown.
        for said in (*ours.said.values(), *native.said.values()):
            said.generated = 0
    else:
        assert ours.usage.completion_tokens == native.usage.completion_tokens
    assert ours.said == native.said


def test_both_are_the_plain_slow_loop(asker: Asker) -> None:
    slow = Plain()
    request = asked(prompt="The old man", n=2, best_of=3, seed=11, temperature=0.8, max_tokens=12)
    tokens = slow.tokens("The old man")
    drawn = [slow.draw(tokens, request, seed=11 + i)[0] for i in range(3)]
    means = [sum(slow.prompt_logprobs(tokens + one)[len(tokens) - 1 :]) / len(one) for one in drawn]
    best = sorted(range(3), key=lambda i: -means[i])[:2]
    assert emulated(asker, request, row()).texts == [slow.text(drawn[i]) for i in best]


def said(candidate: int, text: str, *logprobs: float, prompt: int = 0) -> Text:
    tokens = tuple(Token(None, text if i == 0 else "", value, 0) for i, value in enumerate(logprobs))
    return Text(prompt, candidate, text, tokens, max(1, len(logprobs)))


def spread_over(abilities: Abilities, **fields: object) -> Spread:
    request = asked(**fields)
    return Spread(request, plan(request, abilities))


def shown(events: list[Event]) -> list[tuple[int, int, str]]:
    """What a stream shows: choice, text or finish reason."""
    return [
        (event.prompt, event.candidate, event.text if isinstance(event, Text) else event.reason)
        for event in events
        if isinstance(event, Text | Finished)
    ]


def test_calls_interleave_in_a_stream_each_choice_with_its_own_number_and_reason() -> None:
    spread = spread_over(row(), prompt=["a", "b"], n=2, stream=True)
    first, second, third, fourth = spread.parts
    events: list[Event] = []
    for part, event in (
        (fourth, said(0, "D")), (first, said(0, "A")), (fourth, said(0, "d")), (second, Finished(0, 0, "length")),
        (first, Finished(0, 0, "stop")), (third, said(0, "C")), (fourth, Finished(0, 0, "content_filter")),
        (third, Finished(0, 0, "length")),
    ):  # fmt: skip
        spread.begin(part)
        events += spread.feed(part, [event])
    assert shown(events) == [
        (1, 1, "D"), (0, 0, "A"), (1, 1, "d"), (0, 1, "length"), (0, 0, "stop"), (1, 0, "C"),
        (1, 1, "content_filter"), (1, 0, "length"),
    ]  # fmt: skip
    assert [event.prompt for event in events if isinstance(event, PromptScored)] == [1, 0]


def test_each_call_has_its_candidates_seed_and_only_what_the_model_takes() -> None:
    request = asked(prompt=["a", "b"], n=2, seed=2**63 - 1, stop=["x"], user="u", logprobs=1)
    made = parts(request, plan(request, row()))
    assert [(part.prompt, part.candidate, part.request.seed) for part in made] == [
        (0, 0, 2**63 - 1), (0, 1, -(2**63)), (1, 0, 2**63 - 1), (1, 1, -(2**63)),
    ]  # fmt: skip
    assert {part.request.given for part in made} == {("logprobs", "seed")}
    assert all(part.streams for part in made)


def test_a_server_that_takes_lists_and_choices_is_called_once() -> None:
    able = row({"n": (1, 4), "stop": (1, 2)}, prompts=("text", "texts", "empty"))
    request = asked(prompt=["a", "b"], n=2, best_of=3, stop=["x", "y", "z"])
    (part,) = parts(request, plan(request, able))
    assert (part.request.n, part.request.stop, part.request.given) == (3, ("x", "y"), ("logprobs", "n", "stop"))
    assert len(parts(asked(n=5), plan(asked(n=5), able))) == 5


def test_a_stop_ends_its_own_candidate_and_no_other() -> None:
    spread = spread_over(row(), n=2, stop=["END"], stream=True)
    one, other = spread.parts
    assert shown(spread.feed(one, [said(0, "abcE"), said(0, "N")])) == [(0, 0, "abc"), (0, 0, "")]
    assert shown(spread.feed(one, [said(0, "Dxyz")])) == [(0, 0, ""), (0, 0, "stop")]
    assert not spread.wanted(one)
    assert spread.wanted(other)
    assert shown(spread.feed(one, [said(0, "late"), Finished(0, 0, "length")])) == []
    assert shown(spread.feed(other, [said(0, "E"), Finished(0, 0, "length")])) == [
        (0, 1, ""), (0, 1, "E"), (0, 1, "length")
    ]  # fmt: skip


def test_a_call_that_was_cut_off_is_counted_or_estimated_and_marked() -> None:
    spread = spread_over(row(), prompt="abcdefgh", n=3)
    one, two, three = spread.parts
    for part in (one, two):
        spread.begin(part)
    spread.feed(one, [said(0, "a"), Finished(0, 0, "stop"), Usage(3, 1)])
    spread.feed(two, [Text(0, 0, "12345678", generated=0)])
    assert spread.usage() == Usage(5, 3, source="estimated")
    assert spread.usage_of(one) == Usage(3, 1)
    spread.begin(three)
    spread.feed(three, [PromptScored(0, 4), said(0, "b")])
    assert spread.usage_of(three) == Usage(4, 1, source="counted")


def test_zeros_beside_a_text_are_no_usage() -> None:
    spread = spread_over(row(), prompt="abcdefgh", n=1)
    (one,) = spread.parts
    spread.begin(one)
    spread.feed(one, [Text(0, 0, "12345678", generated=0), Finished(0, 0, "stop"), Usage(0, 0)])
    assert spread.usage() == Usage(2, 2, source="estimated")


def test_best_of_needs_log_probabilities_that_are_really_told() -> None:
    spread = spread_over(row(), n=1, best_of=2)
    with pytest.raises(UpstreamRefused, match="no log-probabilities"):
        spread.feed(spread.parts[0], [Text(0, 0, "a", generated=1), Finished(0, 0, "stop")])


def test_a_call_that_tells_too_few_or_too_many_choices_is_garbled() -> None:
    spread = spread_over(row({"n": True}), n=2)
    (part,) = spread.parts
    spread.feed(part, [said(0, "a"), Finished(0, 0, "stop")])
    with pytest.raises(UpstreamGarbled, match="fewer choices"):
        spread.close(part)
    with pytest.raises(UpstreamGarbled, match="more choices"):
        spread.feed(part, [said(2, "a")])


def test_a_call_can_tell_nothing_of_the_choices_of_another() -> None:
    spread = spread_over(row(), n=2)
    with pytest.raises(UpstreamGarbled, match="more choices"):
        spread.feed(spread.parts[0], [said(1, "a")])


@pytest.mark.parametrize(("min_tokens", "text"), [(0, "a"), (1, "a"), (2, "aba"), (3, "aba"), (4, "abab")])
def test_early_tokens_complete_no_stop_also_where_several_come_at_once(min_tokens: int, text: str) -> None:
    spread = spread_over(row({"min_tokens": True}), stop=["b"], min_tokens=min_tokens, logprobs=0)
    tokens = tuple(Token(None, letter, -1.0, 0) for letter in "abab")
    events = spread.feed(spread.parts[0], [Text(0, 0, "abab", tokens, 4), Finished(0, 0, "length")])
    assert "".join(event.text for event in events if isinstance(event, Text)) == text


def test_a_suffix_is_estimated_too() -> None:
    spread = spread_over(row({"suffix": True}), prompt="12345678", suffix="1234")
    spread.begin(spread.parts[0])
    assert spread.usage() == Usage(3, 0, source="estimated")


def test_no_tokens_need_no_call_and_a_scored_prompt_drops_the_one_that_must_be_asked() -> None:
    shy = row({"max_tokens": (1, 4096)})
    spread = spread_over(shy, prompt=["a", "b"], max_tokens=0, echo=True, n=2)
    assert spread.parts == ()
    reply = Reply(spread.end())
    assert [prompt.text for prompt in reply.prompts.values()] == ["a", "b"]
    assert {said.reason for said in reply.said.values()} == {"length"}
    assert reply.usage == Usage(0, 0)

    spread = spread_over(shy, prompt="ab", max_tokens=0, echo=True, logprobs=0)
    (part,) = spread.parts
    assert part.request.max_tokens == 1
    scored = PromptScored(0, 2, text="ab", tokens=(Token(None, "a", None, 0), Token(None, "b", -1.0, 0)))
    events = spread.feed(part, [scored, said(0, "c", -1.0), Finished(0, 0, "length"), Usage(2, 1)])
    assert [token.offset for event in events if isinstance(event, PromptScored) for token in event.tokens] == [0, 1]
    assert shown(events) == [(0, 0, ""), (0, 0, "length")]


def test_nothing_but_a_silent_call_may_be_made_again() -> None:
    spread = spread_over(row(), n=2)
    one, other = spread.parts
    spread.feed(one, [PromptScored(0, 3)])
    assert not spread.untouched(one)
    assert spread.untouched(other)


def test_every_input_has_a_place_in_every_state() -> None:
    possible = {(state, what) for state in State for what in Input}
    assert possible - NEXT.keys() == {(state, Input.STOP) for state in (State.WAITING, State.DONE, State.FAILED)}, (
        "a stop is found in text alone, and text opens"
    )
    assert all(NEXT[state, what] is state for state, what in NEXT if state in (State.DONE, State.FAILED))
