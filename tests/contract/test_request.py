import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from andthen.contract.errors import BadRequest, InvalidJson, PayloadTooLarge
from andthen.contract.fields import completion_fields
from andthen.contract.request import CompletionRequest, Limits, parse

LIMITS = Limits()
FIELDS = completion_fields(LIMITS)
NAMES = {field.name for field in FIELDS}
LEAST = {"model": "local/tale", "prompt": "x"}


def read(limits: Limits = LIMITS, /, **fields: object) -> CompletionRequest:
    return parse(json.dumps(LEAST | fields).encode(), limits)


def refusal(body: bytes, limits: Limits = LIMITS) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(body, limits)
    assert caught.value.status == 400
    return caught.value


def outcome(body: bytes) -> CompletionRequest | BadRequest:
    try:
        return parse(body, LIMITS)
    except BadRequest as error:
        return error


ACCEPTED: list[tuple[dict[str, object], dict[str, object]]] = [
    ({}, {"prompts": ("x",), "given": ("model", "prompt")}),
    ({"prompt": None}, {"prompts": ("",), "given": ("model",)}),
    ({"prompt": ""}, {"prompts": ("",)}),
    ({"prompt": ["a", ""]}, {"prompts": ("a", "")}),
    ({"prompt": [5, 6.0]}, {"prompts": ((5, 6),)}),
    ({"prompt": [[5], [6, 2**31 - 1]]}, {"prompts": ((5,), (6, 2**31 - 1))}),
    ({"prompt": [[5.0], [6, 1e3]]}, {"prompts": ((5,), (6, 1000))}),
    ({"n": 2}, {"n": 2, "best_of": 2}),
    ({"n": 2.0, "best_of": 3.0}, {"n": 2, "best_of": 3}),
    ({"n": 2, "best_of": 2, "stream": True}, {"best_of": 2}),
    ({"max_tokens": 0}, {"max_tokens": 0}),
    ({"temperature": 0, "top_p": 1}, {"temperature": 0.0, "top_p": 1.0}),
    ({"seed": -(2**63)}, {"seed": -(2**63)}),
    ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
    ({"logprobs": 0}, {"logprobs": 0, "given": ("model", "prompt", "logprobs")}),
    ({"stop": "a"}, {"stop": ("a",)}),
    ({"stop": ["a", "a", "b", "c"]}, {"stop": ("a", "a", "b", "c")}),
    ({"stop": []}, {"stop": (), "given": ("model", "prompt")}),
    ({"suffix": ""}, {"suffix": None, "given": ("model", "prompt")}),
    ({"suffix": "", "echo": True}, {"suffix": None, "echo": True}),
    ({"suffix": "z", "prompt": ["a", "b"]}, {"suffix": "z", "prompts": ("a", "b")}),
    ({"logit_bias": {"5": -100, "2147483647": 0.5}}, {"logit_bias": {5: -100.0, 2147483647: 0.5}}),
    ({"logit_bias": {}}, {"logit_bias": {}, "given": ("model", "prompt")}),
    ({"user": "u" * 256}, {"user": "u" * 256}),
    ({"stream": True, "stream_options": {"include_usage": True}}, {"include_usage": True}),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True, "include_usage": None}},
     {"include_usage": False, "continuous_usage_stats": True}),
    ({"stream": True, "stream_options": {"include_obfuscation": False, "more": 1}}, {"include_usage": False}),
    ({"top_k": -1, "min_p": 1, "repetition_penalty": 0.01}, {"top_k": -1, "min_p": 1.0, "repetition_penalty": 0.01}),
    ({"min_tokens": 16}, {"min_tokens": 16}),
    ({"stop_token_ids": [1, 2.0]}, {"stop_token_ids": (1, 2)}),
    ({"response_format": {"type": "text"}}, {"response_format": None, "given": ("model", "prompt")}),
    ({"response_format": {"type": "json_schema", "json_schema": {}}},
     {"response_format": "json_schema", "given": ("model", "prompt", "response_format")}),
    ({"structured_outputs": {"regex": "a"}}, {"structured_outputs": True}),
    ({"structured_outputs": {}}, {"structured_outputs": False}),
    ({"beam": 1, "n": 1, "Echo": True}, {"ignored": ("beam", "Echo"), "given": ("model", "prompt", "n")}),
    ({f"x{i}": i for i in range(40)}, {"ignored": tuple(f"x{i}" for i in range(16))}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), ACCEPTED)
def test_accepted(fields: dict[str, object], expected: dict[str, object]) -> None:
    request = read(**fields)
    assert {name: getattr(request, name) for name in expected} == expected


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"model": 5}, "model"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [[1], []]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": ["a", None]}, "prompt"),
    ({"prompt": [1, [1]]}, "prompt"),
    ({"prompt": [[1, "a"]]}, "prompt"),
    ({"prompt": [[[1]]]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**31]}, "prompt"),
    ({"prompt": [2.0**31]}, "prompt"),
    ({"prompt": ["a"] * 1025}, "prompt"),
    ({"best_of": 0}, "best_of"),
    ({"best_of": 129}, "best_of"),
    ({"n": 3, "best_of": 2}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"echo": 1}, "echo"),
    ({"echo": "true"}, "echo"),
    ({"echo": True, "suffix": "a"}, "echo"),
    ({"frequency_penalty": 2.01}, "frequency_penalty"),
    ({"frequency_penalty": True}, "frequency_penalty"),
    ({"presence_penalty": "1"}, "presence_penalty"),
    ({"logit_bias": []}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"05": 1}}, "logit_bias"),
    ({"logit_bias": {"-0": 1}}, "logit_bias"),
    ({"logit_bias": {"٥": 1}}, "logit_bias"),
    ({"logit_bias": {"2147483648": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"5": None}}, "logit_bias"),
    ({"logit_bias": {"5": False}}, "logit_bias"),
    ({"logprobs": 6}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"max_tokens": 10**400}, "max_tokens"),
    ({"max_tokens": "16"}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": 129}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 2.0**63}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"seed": -(10**400)}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": [None]}, "stop"),
    ({"stop": list("abcde")}, "stop"),
    ({"stream": 0}, "stream"),
    ({"stream_options": {}}, "stream_options"),
    ({"stream_options": {"include_usage": True}, "stream": False}, "stream_options"),
    ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options"),
    ({"stream_options": [], "stream": True}, "stream_options"),
    ({"suffix": 1}, "suffix"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"user": "u" * 257}, "user"),
    ({"user": "a\n"}, "user"),
    ({"user": "a\u0085"}, "user"),
    ({"user": {}}, "user"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"ignore_eos": None, "stop_token_ids": [-1]}, "stop_token_ids"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {}}, "response_format"),
    ({"response_format": "json"}, "response_format"),
    ({"structured_outputs": "json"}, "structured_outputs"),
    ({"prompt": ["a"] * 600, "n": 2}, "n"),
    ({"prompt": ["a"] * 600, "best_of": 2}, "best_of"),
    ({"prompt": ["a"] * 600, "best_of": 2, "n": 2}, "best_of"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_refused(fields: dict[str, object], param: str) -> None:
    error = refusal(json.dumps(LEAST | fields).encode())
    assert (error.code, error.param) == ("invalid_value", param)
    assert f"`{param}`" in error.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"{}x",
        b"\xef\xbb\xbf{}",
        b'{"model":"a/b","prompt":"x","temperature":NaN}',
        b'{"model":"a/b","prompt":"x","temperature":Infinity}',
        b'{"model":"a/b","prompt":"\xff"}',
        b'{"model":"a/b","prompt":"x","unknown":"\xff"}',
        rb'{"model":"a/b","prompt":"\ud800"}',
        rb'{"model":"a/b","prompt":"\udc00 "}',
        b'{"model":"a/b","prompt":"\x00"}',
        b'{"model":"a/b","prompt":"x","n":01}',
    ],
)
def test_what_is_no_json_is_said_first(body: bytes) -> None:
    error = refusal(body)
    assert (type(error), error.param) == (InvalidJson, None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"prompt":"x"}', "model"),
        (b'{"model":"a/b"}', "prompt"),
        (b'{"model":"a/b","prompt":"x","temperature":1e999}', "temperature"),
        (b'{"model":"a/b","prompt":"x","seed":1e999}', "seed"),
        (b'{"model":"a/b","prompt":"x","n":1' + b"0" * 5000 + b"}", "n"),
    ],
)
def test_missing_fields_and_numbers_out_of_this_world(body: bytes, param: str) -> None:
    assert refusal(body).param == param


def test_the_first_wrong_field_of_the_table_is_named() -> None:
    assert refusal(b'{"top_p":9,"n":0,"prompt":[],"model":"a/b"}').param == "prompt"
    assert refusal(b'{"top_p":9,"n":0,"prompt":"x","model":"a/b"}').param == "n"


def test_of_a_repeated_name_the_last_counts() -> None:
    assert parse(b'{"model":"a/b","prompt":"x","n":"no","n":2}', LIMITS).n == 2
    assert parse(b'{"model":"a/b","prompt":"x","n":2,"n":null}', LIMITS).n == 1


def test_the_limits_are_settings() -> None:
    limits = Limits(max_stops=16, max_logprobs=20, max_prompts=2, max_sequences=3)
    assert len(read(limits, stop=list("abcdefghijklmnop")).stop) == 16
    assert read(limits, logprobs=20).logprobs == 20
    assert refusal(json.dumps(LEAST | {"stop": list("abcdefghijklmnopq")}).encode(), limits).param == "stop"
    assert "limits.max_stops" in refusal(json.dumps(LEAST | {"stop": list("abcde")}).encode()).message
    assert refusal(json.dumps(LEAST | {"prompt": ["a"] * 3}).encode(), limits).param == "prompt"
    assert refusal(json.dumps(LEAST | {"prompt": ["a"] * 2, "n": 2}).encode(), limits).param == "n"
    few = Limits(max_sequences=1)
    assert refusal(json.dumps(LEAST | {"prompt": ["a"] * 2}).encode(), few).param == "prompt"


def test_the_defaults_of_the_table_are_those_of_the_request() -> None:
    request = read()
    for field in FIELDS:
        if field.default is not None:
            assert getattr(request, field.name) == field.default


def test_the_examples_of_the_table_are_accepted() -> None:
    for field in FIELDS:
        alone = {"stream": True} if field.name == "stream_options" else {}
        assert field.required or field.example is not None
        read(**{field.name: field.example}, **alone)


def test_null_is_absent() -> None:
    absent = {field.name: None for field in FIELDS if not field.required}
    assert read(**absent) == read()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
SECRET = "sesame"


@given(st.binary(max_size=64))
@example(b'{"model":"a/b","prompt":"\xed\xa0\x80"}')
def test_any_bytes_are_a_request_or_one_of_our_errors(body: bytes) -> None:
    found = outcome(body)
    assert isinstance(found, CompletionRequest) or found.param is None or found.param in NAMES


@given(st.dictionaries(st.sampled_from(sorted(NAMES)) | st.text(max_size=6), json_values, max_size=8))
def test_any_object_is_a_request_or_an_error_that_names_a_field(fields: dict[str, Any]) -> None:
    fields = LEAST | fields
    found = outcome(json.dumps(fields).encode())
    if isinstance(found, BadRequest):
        assert (found.param in NAMES, found.code) == (True, "invalid_value")
    else:
        assert all(fields[name] is not None for name in found.given)
        assert set(found.ignored) <= fields.keys() - NAMES


@given(st.sampled_from(sorted(NAMES - {"stop"})), st.sampled_from([SECRET, [SECRET, 1], {SECRET: SECRET}]))
def test_errors_hold_none_of_the_callers_text(name: str, value: object) -> None:
    body = json.dumps({"model": SECRET, "prompt": SECRET, "user": SECRET, name: value, "stop": [SECRET, ""]}).encode()
    assert SECRET not in refusal(body).message
    assert SECRET not in refusal(body[:-1]).message


def depth(value: object) -> int:
    if isinstance(value, list | dict):
        return 1 + max((depth(item) for item in (value.values() if isinstance(value, dict) else value)), default=0)
    return 0


awkward = st.text(alphabet='[]{}"\\,a')
nested = st.recursive(awkward, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(awkward, inner, max_size=3))


@given(st.dictionaries(awkward, nested, max_size=3), st.integers(1, 6), st.booleans())
@example({"a": [['"]]]', []]]}, 3, True)
def test_depth_is_counted_outside_strings(value: dict[str, object], bound: int, compact: bool) -> None:
    body = LEAST | {"x": value}
    text = json.dumps(body, separators=(",", ":") if compact else None).encode()
    if depth(body) > bound:
        assert type(refusal(text, Limits(max_depth=bound))) is InvalidJson
    else:
        parse(text, Limits(max_depth=bound))


@pytest.mark.parametrize("name", ["prompt", "unknown", "logit_bias", "response_format"])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_the_deepest_body_that_fits_is_refused_quickly(name: str, pair: str) -> None:
    begin, end = pair[:-1].encode(), pair[-1:].encode()
    for count in (20, 900, 2_000_000):
        body = b'{"model":"a/b","' + name.encode() + b'":' + begin * count + b"1" + end * count + b"}"
        assert type(refusal(body)) is InvalidJson


numbers = st.floats(0, 1) | st.sampled_from([0, 1])
VALID: dict[str, st.SearchStrategy[Any]] = {
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.integers(-2, 2),
    "logprobs": st.integers(0, 5),
    "max_tokens": st.integers(100, 2**31 - 1),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.lists(st.text(min_size=1), min_size=1, max_size=4),
    "temperature": st.floats(0, 2),
    "top_p": numbers,
    "min_p": numbers,
    "top_k": st.integers(-1, 2**31 - 1),
    "repetition_penalty": st.floats(0.01, 100),
    "min_tokens": st.integers(0, 16),
    "stop_token_ids": st.lists(st.integers(0, 2**31 - 1), min_size=1),
    "n": st.integers(1, 8),
    "best_of": st.integers(8, 128),
    "user": st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=256),
} | dict.fromkeys(["echo", "ignore_eos", "return_tokens_as_token_ids", "parse_special"], st.booleans())


@given(st.fixed_dictionaries({"model": st.text(min_size=1), "prompt": st.text()}, optional=VALID), st.booleans())
def test_valid_bodies_keep_every_value(fields: dict[str, Any], escaped: bool) -> None:
    request = parse(json.dumps(fields, ensure_ascii=escaped).encode(), LIMITS)
    assert (request.model, request.prompts) == (fields["model"], (fields["prompt"],))
    assert request.given == tuple(field.name for field in FIELDS if field.name in fields)
    kept = msgspec.to_builtins(request)
    for name, value in fields.items():
        if name != "prompt":
            assert (list(kept[name]) if isinstance(value, list) else kept[name]) == value


MANY = 2**20
SIZES: dict[str, tuple[str, type[BadRequest | PayloadTooLarge] | None]] = {
    "commas in a text": ('"prompt": "' + "a," * MANY + '"', None),
    "commas behind escapes": ('"prompt": "' + r"\\\",[" * MANY + '"', None),
    "as many ids as are taken": ('"prompt": [' + "1," * (MANY - 5) + "1]", None),
    "more ids": ('"prompt": [' + "1," * MANY + "1]", PayloadTooLarge),
    "lists in lists": ('"prompt": [' + "[1]," * (MANY // 2) + "[1]]", PayloadTooLarge),
    "objects in a field that is ignored": ('"x": [' + "{}," * (MANY // 2) + "1]", PayloadTooLarge),
    "999 members": ('"prompt": "", ' + ",".join(f'"k{i}": 1' for i in range(997)), None),
    "1,001 members": (",".join(f'"k{i}": 1' for i in range(1000)), InvalidJson),
    "1,000 members in a field": ('"prompt": "", "x": {' + ",".join(f'"{i}": 1' for i in range(1000)) + "}", None),
    "more biases than tokens": (
        '"prompt": "", "logit_bias": {' + ",".join(f'"{i}": 1' for i in range(2**18 + 1)) + "}",
        BadRequest,
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_body_is_bounded_by_its_values(name: str) -> None:
    member, error = SIZES[name]
    body = f'{{"model": "local/tale", {member}}}'.encode()
    if error is None:
        assert parse(body, LIMITS).model == "local/tale"
    else:
        with pytest.raises(error):
            parse(body, LIMITS)
