import json
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import example, given
from hypothesis import strategies as st

from andthen.contract.errors import BadRequest, ModelNotFound
from andthen.contract.events import Alternative, Event, Finished, PromptScored, Text, Token, Usage
from andthen.contract.fields import Field, completion_fields
from andthen.contract.request import CompletionRequest, Limits, parse
from andthen.contract.response import Completion, Head, Stream, error_body
from andthen.contract.spec import openapi
from andthen.server.document import document

LIMITS = Limits()
DOCUMENT = document(LIMITS, version="0.1.0")
SCHEMAS = DOCUMENT["components"]["schemas"]


def valid(schema: str, value: object) -> bool:
    whole = {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}
    return jsonschema_rs.validator_for(whole).is_valid(value)


REQUEST_SCHEMA = jsonschema_rs.validator_for(SCHEMAS["CompletionRequest"])


def at_fault(body: dict[str, Any]) -> str | None:
    """The field that the parser refuses."""
    try:
        parse(json.dumps(body).encode(), LIMITS)
    except BadRequest as error:
        return error.param
    return None


def accepted(body: dict[str, Any]) -> bool:
    return at_fault(body) is None


def test_the_document_is_openapi() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT


def test_every_field_is_documented() -> None:
    fields = completion_fields(LIMITS)
    properties = SCHEMAS["CompletionRequest"]["properties"]
    assert list(properties) == [field.name for field in fields]
    assert all(properties[field.name]["description"].startswith(field.text) for field in fields)
    assert properties["n"]["default"] == 1


def test_the_document_tells_the_limits_of_this_server() -> None:
    limits = Limits(max_stops=16, max_logprobs=20, max_prompts=2)
    properties = openapi(limits, version="0")["components"]["schemas"]["CompletionRequest"]["properties"]
    assert properties["logprobs"]["maximum"] == 20
    assert properties["stop"]["anyOf"][1]["maxItems"] == 16
    assert properties["prompt"]["anyOf"][1]["maxItems"] == 2


def test_the_examples_are_accepted() -> None:
    for path, item in DOCUMENT["paths"].items():
        if path.endswith("/completions"):
            for shown in item["post"]["requestBody"]["content"]["application/json"]["examples"].values():
                parse(json.dumps(shown["value"]).encode(), LIMITS)


def test_every_operation_has_a_name_of_its_own_and_says_what_may_go_wrong() -> None:
    operations = [operation for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        statuses = set(operation["responses"])
        assert {"200", "431", "500", "503"} <= statuses
        assert ("401" in statuses) == bool(operation["security"])
        assert ("requestBody" in operation) == ({"400", "408", "413", "415"} <= statuses)
    complete = DOCUMENT["paths"]["/v4/beta/completions"]["post"]["responses"]
    told = "200 400 401 403 404 408 409 413 415 429 431 500 502 503 504".split()
    assert set(complete) == set(told)
    for status, code in (("400", "context_length_exceeded"), ("429", "budget_exceeded"), ("504", "upstream_timeout")):
        assert code in complete[status]["description"]


EDGES: list[Any] = [None, True, False, 0, 1, -1, 2, 1.0, 0.5, 2.5, -2, 5, 6, 128, 129, 2**31 - 1, 2**31, 2**63 - 1]
EDGES += [2**63, -(2**63), -(2**63) - 1, 1e300, "", "a", "\n", "u" * 257, [], [""], ["a"], ["a", 1], [1], [1.0]]
EDGES += [[2**31], [[1]], [[]], [[1], []], [[1], "a"], [[1.5]], [None], [True], list("abcde"), {}, {"5": 1}, {"05": 1}]
EDGES += [{"5": 101}, {"5": None}, {"a": 1}, {"type": "text"}, {"type": "json_object"}, {"type": "xml"}, {"type": 1}]
EDGES += [{"include_usage": True}, {"include_usage": None}, {"include_usage": 1}, {"-0": 1}, 0.01, 100, 101, -100]

# What spans several fields, JSON Schema can't say; all of it is said in words.
SPANNING = {"best_of", "echo", "stream_options", "min_tokens"}
names = st.sampled_from([field.name for field in completion_fields(LIMITS)])


@given(st.dictionaries(names, st.sampled_from(EDGES), max_size=4))
@example({"n": 2, "best_of": 1})
def test_the_schema_takes_what_the_parser_takes(fields: dict[str, Any]) -> None:
    body = {"model": "local/tale", "prompt": "x"} | fields
    if REQUEST_SCHEMA.is_valid(body):
        assert accepted(body) or at_fault(body) in SPANNING & fields.keys()
    else:
        assert not accepted(body)


@pytest.mark.parametrize("field", completion_fields(LIMITS), ids=lambda field: field.name)
def test_each_field_alone_is_bounded_as_documented(field: Field) -> None:
    alone = {"model": "local/tale", "prompt": "x", "stream": field.name == "stream_options", "max_tokens": 2**31 - 1}
    for value in EDGES:
        body = alone | {field.name: value}
        assert REQUEST_SCHEMA.is_valid(body) == accepted(body), value


def test_what_is_sent_is_as_documented() -> None:
    request = CompletionRequest(
        model="local/tale", prompts=("x",), echo=True, logprobs=1, include_usage=True, continuous_usage_stats=True
    )
    head = Head("cmpl-1", 1, "local/tale", None)
    token = Token(1, "a", -0.5, 1, (Alternative(1, "a", -0.5),))
    events: list[Event] = [
        PromptScored(0, 1, 0, "x", (Token(2, "x", None, 0),)),
        Text(0, 0, "a", (token,), 1),
        Finished(0, 0, "stop"),
        Usage(1, 1, 0, 0),
    ]
    completion, stream = Completion(request), Stream(request, head)
    for event in events:
        completion.feed([event])
        frame = stream.feed([event])
        assert valid("CompletionChunk", json.loads(frame.removeprefix(b"data: ")))
    assert valid("CompletionReply", json.loads(completion.body(head)))
    assert valid("ErrorReply", json.loads(error_body(ModelNotFound("No such model.", param="model"))))
    assert not valid("ErrorReply", {"error": {"message": "", "type": "?", "param": None, "code": "?"}})
