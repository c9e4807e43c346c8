"""Whatever is asked, the real server on the real engine answers as its document says: 200 or one of our errors."""

from __future__ import annotations

import http.client
import json
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks

from andthen.contract.errors import tree
from andthen.contract.fields import completion_fields
from andthen.contract.limits import Limits
from andthen.server.document import document
from tests.serving import Server

DOCUMENT = schemathesis.openapi.from_dict(document(Limits(), version="0"))
CODES = {(kind.status, kind.type, kind.code) for kind in tree()}
ONCE = settings(max_examples=25, suppress_health_check=[*HealthCheck], derandomize=True, deadline=None)
GENTLE_TOKENS = 32
"""What is asked for is done, and much would take long."""


@DOCUMENT.include(path_regex=r"^/(?!docs$|$)").parametrize()
@ONCE
def test_the_document_holds(case: schemathesis.Case[Any], server: Server) -> None:
    if isinstance(case.body, dict) and "max_tokens" in case.body:
        case.body = case.body | {"model": server.model}  # anew: an example is the document's own
        if isinstance(case.body["max_tokens"], int):
            case.body["max_tokens"] %= GENTLE_TOKENS
    response = case.call(base_url=server.url, headers={"x-api-key": server.key}, timeout=60)
    case.validate_response(
        response,
        checks=[
            schemathesis.checks.not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ],
    )


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)
names = st.sampled_from([field.name for field in completion_fields(Limits()) if field.name != "max_tokens"])
fields = st.dictionaries(names | st.text(max_size=9), values | st.integers(-1, 6) | st.floats(0, 2), max_size=3)


def near_miss(server: Server, given: dict[str, Any]) -> bytes:
    body = {"model": server.model, "prompt": "Once", "max_tokens": GENTLE_TOKENS} | given
    return json.dumps(body).encode("utf-8", "surrogatepass")


@given(st.data())
@settings(max_examples=300)
def test_any_body_gets_a_completion_or_one_of_our_errors(server: Server, data: st.DataObject) -> None:
    body = data.draw(
        st.binary(max_size=60)
        | fields.map(lambda given: near_miss(server, given))
        | values.map(json.dumps).map(str.encode)
    )
    if not data.draw(st.integers(0, 3)):
        body = body[: data.draw(st.integers(0, len(body)))]
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request("POST", "/v1/completions", body, {"x-api-key": server.key, "content-type": "application/json"})
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    if reply.status == 200:
        assert text.endswith(b"data: [DONE]\n\n") or json.loads(text)["object"] == "text_completion"
    else:
        error = json.loads(text)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (reply.status, error["type"], error["code"]) in CODES
        assert reply.status < 500
