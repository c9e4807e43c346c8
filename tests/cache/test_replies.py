"""Which requests share a reply, and what is kept of one."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from andthen.cache.replies import Answerer, Recorder, is_settled, read, subject
from andthen.contract.events import Alternative, Event, Finished, PromptScored, Text, Token, Usage
from andthen.contract.fields import Field, completion_fields
from andthen.contract.request import CompletionRequest, Limits, parse

TALE = Answerer("0.1.0", "local/tale", "build+hash")
UNDECIDING_ROWS = {"model", "stream", "stream_options", "user"}
"""Of the contract's table: what a request may differ in and still get the same reply."""
UNDECIDING_FIELDS = {"model", "stream", "include_usage", "continuous_usage_stats", "user", "ignored"}
"""The same of a request that is read."""
OTHER_EXAMPLES = {"response_format": {"type": "json_object"}}
"""Where the table's own example is as good as absent."""

# Of each field of a request some values, all different.
VALUES: dict[str, list[Any]] = {
    "model": ["local/tale", "openai/x"],
    "prompts": [("",), ("a",), ("a", ""), ("ab",), ("a", "b"), ((97,),), ((97, 98),), ((97,), (98,))],
    "best_of": [1, 2],
    "echo": [False, True],
    "frequency_penalty": [0.0, 0.5],
    "logit_bias": [{}, {1: 1.0}, {1: 1.0, 2: -1.0}, {1: -1.0, 2: 1.0}],
    "logprobs": [None, 0, 1],
    "max_tokens": [0, 16],
    "n": [1, 2],
    "presence_penalty": [0.0, 0.5],
    "seed": [None, 0, 1, -(2**63), 2**63 - 1],
    "stop": [(), ("a",), ("a", "b"), ("ab",)],
    "stream": [False, True],
    "include_usage": [False, True],
    "continuous_usage_stats": [False, True],
    "suffix": [None, "a"],
    "temperature": [0.0, 0.5, 1.0],
    "top_p": [0.5, 1.0],
    "user": [None, "ada"],
    "top_k": [0, 1],
    "min_p": [0.0, 0.5],
    "repetition_penalty": [1.0, 1.5],
    "min_tokens": [0, 1],
    "ignore_eos": [False, True],
    "stop_token_ids": [(), (1,), (1, 2)],
    "return_tokens_as_token_ids": [False, True],
    "parse_special": [False, True],
    "response_format": [None, "json_object"],
    "structured_outputs": [False, True],
    "given": [
        ("model", "prompt"),
        ("model", "prompt", "user"),
        ("model", "prompt", "n"),
        ("model", "prompt", "stream", "n"),
    ],
    "ignored": [(), ("tools",)],
}


def parsed(**fields: Any) -> CompletionRequest:
    return parse(json.dumps({"model": "local/tale", "prompt": "Once"} | fields).encode(), Limits())


@pytest.mark.parametrize("row", completion_fields(Limits()), ids=lambda row: row.name)
def test_every_field_of_the_contract_decides_unless_it_is_said_not_to(row: Field) -> None:
    example = OTHER_EXAMPLES.get(row.name, row.example)
    base = {"stream": True} if row.name == "stream_options" else {}
    without, with_it = parsed(**base), parsed(**base, **{row.name: example})
    assert without != with_it or row.name == "model", "the example says something"
    same = subject(without, TALE) == subject(with_it, TALE)
    assert same is (row.name in UNDECIDING_ROWS)


@st.composite
def requests(draw: st.DrawFn) -> CompletionRequest:
    return CompletionRequest(**{name: draw(st.sampled_from(values)) for name, values in VALUES.items()})


def deciding(request: CompletionRequest) -> dict[str, Any]:
    told = {name: getattr(request, name) for name in VALUES if name not in UNDECIDING_FIELDS}
    return told | {"given": [name for name in request.given if name not in UNDECIDING_ROWS]}


def test_every_field_of_a_request_is_known_here() -> None:
    assert set(VALUES) == set(CompletionRequest.__struct_fields__)


@pytest.mark.parametrize("name", sorted(VALUES))
def test_a_reply_is_not_given_to_who_differs_in_one_thing_that_decides(name: str) -> None:
    base = CompletionRequest(model="local/tale", prompts=("a",))
    subjects = [subject(replace(base, **{name: value}), TALE) for value in VALUES[name]]
    wanted = {"given": 2}.get(name, 1 if name in UNDECIDING_FIELDS else len(subjects))
    assert len(set(subjects)) == wanted


@given(requests(), st.data())
def test_two_requests_share_a_reply_where_nothing_that_decides_differs(
    one: CompletionRequest, data: st.DataObject
) -> None:
    changed = data.draw(st.sets(st.sampled_from(sorted(VALUES)), max_size=3))
    other = replace(one, **{name: data.draw(st.sampled_from(VALUES[name])) for name in sorted(changed)})
    assert (subject(one, TALE) == subject(other, TALE)) is (deciding(one) == deciding(other))


def test_the_order_of_biases_decides_nothing() -> None:
    one, other = parsed(logit_bias={"1": 2, "3": 4}), parsed(logit_bias={"3": 4, "1": 2})
    assert subject(one, TALE) == subject(other, TALE)


@pytest.mark.parametrize(
    "other", [Answerer("0.2.0", *("local/tale", "build+hash")), replace(TALE, model="x/y"), replace(TALE, identity="")]
)
def test_who_answers_decides(other: Answerer) -> None:
    assert subject(parsed(), TALE) != subject(parsed(), other)


@pytest.mark.parametrize(
    ("fields", "deterministic", "settled"),
    [
        ({"temperature": 0}, True, True),
        ({"temperature": 0}, False, True),
        ({"temperature": 0, "n": 2, "best_of": 3}, False, True),
        ({"seed": 1}, True, True),
        ({"seed": 0, "temperature": 2}, True, True),
        ({"seed": 1}, False, False),
        ({}, True, False),
        ({"temperature": 0.01}, True, False),
        ({"top_p": 0.1}, True, False),
    ],
)
def test_what_is_settled_beforehand(fields: dict[str, Any], deterministic: bool, settled: bool) -> None:
    assert is_settled(parsed(**fields), deterministic=deterministic) is settled


TOP = (Alternative(7, " a", -0.5), Alternative(None, "bytes:\\xff", float("-inf")))
EVENTS: list[Event] = [
    PromptScored(0, 5, 3, "Once", (Token(1, "Once", None, 0), Token(None, "x", -1.25, 4, TOP))),
    PromptScored(1, 4),
    Text(0, 0, " a\U0001f642", (Token(7, " a", -0.5, 4, TOP),), 1),
    Text(1, 0, "", generated=1),
    Text(0, 1, "b", generated=2),
    Finished(0, 0, "stop", 1),
    Finished(1, 1, "length"),
    Finished(0, 1, "length"),
    Finished(1, 0, "content_filter"),
    Usage(9, 5, 3, 1),
]
LISTED = replace(parsed(n=2, stream=True), prompts=("Once", "Twice"))


def recorded(batches: list[list[Event]], most_bytes: int = 10_000) -> bytes | None:
    recorder = Recorder(LISTED, most_bytes)
    for batch in batches:
        recorder.feed(batch)
    return recorder.kept(12.5, "fp")


@given(st.sets(st.integers(0, len(EVENTS))))
def test_a_reply_is_kept_as_it_came_at_no_cost(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), len(EVENTS)]
    kept = recorded([EVENTS[start:end] for start, end in itertools.pairwise(edges)])
    assert kept is not None
    found = read(kept)
    assert found is not None
    assert (found.made_at_s, found.fingerprint) == (12.5, "fp")
    assert found.events[2] == Text(0, 0, " a\U0001f642", (Token(7, " a", -0.5, 4, TOP),), 0)
    shown = [replace(one, **_free(one)) for one in EVENTS]
    assert found.events == shown


def _free(event: Event) -> dict[str, Any]:
    costs = {"prompt_tokens": 0, "completion_tokens": 0, "generated": 0}
    nothing = {name: value for name, value in costs.items() if name in event.__struct_fields__}
    unknown = {"cached_tokens": None, "reasoning_tokens": None} if isinstance(event, Usage) else {"cached_tokens": 0}
    return nothing | {name: value for name, value in unknown.items() if name in event.__struct_fields__}


@pytest.mark.parametrize("missing", [5, 6, 7, 8, 9])
def test_what_is_not_whole_is_not_kept(missing: int) -> None:
    assert recorded([EVENTS[:missing], EVENTS[missing + 1 :]]) is None


def test_what_is_too_large_is_not_kept() -> None:
    batches: list[list[Event]] = [[event] for event in EVENTS]
    size = sum(len(msgspec.msgpack.encode([replace(event, **_free(event))])) for event in EVENTS)
    assert recorded(batches, size + 1) is not None
    assert recorded(batches, size) is None
    assert recorded([[Text(0, 0, "x" * 10_000)], EVENTS]) is None


@given(st.binary(max_size=64) | st.just(msgspec.msgpack.encode((1.0, None, [[["text", 0]]]))))
def test_what_nobody_wrote_is_no_reply(garbage: bytes) -> None:
    assert read(garbage) is None
