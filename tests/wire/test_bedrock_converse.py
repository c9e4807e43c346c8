"""Converse beside AWS's own client: what it would send, and what it reads. The exchanges are cases, in
`cases/bedrock_converse`."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.auth
import botocore.session
import pytest
from botocore.eventstream import EventStream
from botocore.exceptions import EventStreamError
from botocore.parsers import EventStreamJSONParser, create_parser

from andthen.contract.errors import AndthenError, UnsupportedParameter, UpstreamRefused
from andthen.contract.events import Event, Finished, Text, Usage
from andthen.contract.request import CompletionRequest
from andthen.vendors.rows import vendors
from andthen.wire.base import Call, Target
from andthen.wire.bedrock_converse import Language
from tests.wire.test_battery import AT_S, Case, load, names, opened

ADDRESS = "https://bedrock-runtime.us-east-1.amazonaws.com"
MODELS = (
    "amazon.nova-lite-v1:0",
    "us.anthropic.claude-haiku-4-5-20251001-v1:0",
    "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-pro-v1:0",
    "deepseek.v3.2",
)
WHOLE = [name for name in names("bedrock_converse") if load("bedrock_converse", name).reply.json is not None]
STREAMS = [name for name in names("bedrock_converse") if load("bedrock_converse", name).reply.base64 is not None]


class Sent(Exception):
    """Raised in AWS's client instead of sending."""


def asked(**fields: Any) -> CompletionRequest:
    return CompletionRequest(model="bedrock/any", prompts=("Once upon a time",), given=tuple(fields), **fields)


def aimed(model: str = MODELS[0], key: str = "KEY1\nKEY2", address: str = ADDRESS) -> Target:
    return Target(vendor="Bedrock", address=address, model=model, key=key, at_s=AT_S)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """AWS's library, at the time of the cases and without this machine's settings."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    now = datetime.datetime.fromtimestamp(AT_S, datetime.UTC).replace(tzinfo=None)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: now)
    return botocore.session.Session()


def sent_by_aws(session: Any, call: Call, model: str, token: str | None = None) -> Any:
    """The request that AWS's client would send for the fields of a call's body, signed for just that body."""
    session.set_credentials("KEY1", "KEY2", token)
    client = session.create_client("bedrock-runtime", region_name="us-east-1")
    sent: list[Any] = []

    def stop(request: Any, **_: Any) -> None:
        sent.append(request)
        raise Sent

    def same_body(params: dict[str, Any], **_: Any) -> None:
        assert json.loads(params["body"]) == json.loads(call.body)
        params["body"] = call.body

    client.meta.events.register("before-send.bedrock-runtime.*", stop)
    client.meta.events.register("before-call.bedrock-runtime.*", same_body)
    with pytest.raises(Sent):
        (client.converse_stream if call.streams else client.converse)(modelId=model, **json.loads(call.body))
    return sent[0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("token", ["", "TOKEN"])
def test_a_call_is_what_awss_own_client_sends(session: Any, model: str, streams: bool, token: str) -> None:
    request = asked(temperature=0.5, top_p=0.9, stop=("\n\n", "Ende. Grüße"))
    call = Language().encode(request, aimed(model, "\n".join(("KEY1", "KEY2", token))), streams=streams)
    theirs = sent_by_aws(session, call, model, token or None)
    assert call.url == theirs.url
    assert call.body == theirs.body
    ours = dict(call.headers)
    assert ours == {name: theirs.headers[name].decode() for name in ours}
    assert ("x-amz-security-token" in ours) == bool(token)


@pytest.mark.parametrize(("folder", "name"), [("bedrock", name) for name in names("bedrock")])
def test_each_vendor_case_is_a_request_that_aws_takes(session: Any, folder: str, name: str) -> None:
    one = opened(folder, name)
    call = one.wire.encode(one.request, one.target, streams=one.part.streams)
    theirs = sent_by_aws(session, call, one.target.model)
    assert dict(call.headers)["authorization"] == theirs.headers["authorization"].decode()


def test_a_header_of_the_operators_is_signed_with_the_rest() -> None:
    target = Target(
        vendor="Bedrock", address=ADDRESS, model="m", key="KEY1\nKEY2", headers=(("x-amzn-trace", "1"),), at_s=AT_S
    )
    headers = dict(Language().encode(asked(), target, streams=False).headers)
    assert headers["x-amzn-trace"] == "1"
    assert "SignedHeaders=content-type;host;x-amz-date;x-amzn-trace," in headers["authorization"]


def test_a_key_of_one_part_is_a_bearer_token() -> None:
    call = Language().encode(asked(), aimed(key="ABSK-1"), streams=True)
    assert call.headers == (("content-type", "application/json"), ("authorization", "Bearer ABSK-1"))


@pytest.mark.parametrize(
    ("address", "region"),
    [
        ("https://bedrock-runtime.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("https://vpce-0a.bedrock-runtime.ap-southeast-2.vpce.amazonaws.com", "ap-southeast-2"),
        ("https://bedrock-runtime.cn-north-1.amazonaws.com.cn", "cn-north-1"),
    ],
)
def test_the_region_is_read_from_the_address(address: str, region: str) -> None:
    headers = dict(Language().encode(asked(), aimed(address=address), streams=False).headers)
    assert f"/{region}/bedrock/aws4_request" in headers["authorization"]


def test_the_region_of_another_address_is_a_setting() -> None:
    target = aimed(address="http://127.0.0.1:4566")
    with pytest.raises(UpstreamRefused, match="region"):
        Language().encode(asked(), target, streams=False)
    headers = dict(Language(region="us-west-2").encode(asked(), target, streams=False).headers)
    assert "/us-west-2/bedrock/" in headers["authorization"]


def test_a_key_without_its_secret_is_told() -> None:
    with pytest.raises(UpstreamRefused, match="two parts") as caught:
        Language().encode(asked(), aimed(key="KEY1\n"), streams=False)
    assert "KEY1" not in caught.value.message


def test_without_botocore_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("botocore.auth", "botocore.eventstream"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UpstreamRefused, match=r"pip install 'andthen\[bedrock\]'"):
        Language().encode(asked(), aimed(), streams=False)
    with pytest.raises(UpstreamRefused, match=r"pip install 'andthen\[bedrock\]'"):
        Language().decoder(asked(), aimed(), streams=True)
    Language().encode(asked(), aimed(key="ABSK-1"), streams=False)
    Language().decoder(asked(), aimed(), streams=False)


def test_a_blank_stop_is_left_to_the_scanner() -> None:
    def config(*stops: str) -> Any:
        return json.loads(Language().encode(asked(stop=stops), aimed(), streams=False).body)["inferenceConfig"]

    assert config("\n", " ", "end") == {"maxTokens": 16, "stopSequences": ["end"]}
    assert config("\n") == {"maxTokens": 16}


@pytest.mark.parametrize("match", [row.match for row in vendors()["bedrock"].models])
def test_no_claude_is_told_both_temperature_and_top_p_since_4(match: str) -> None:
    model = match.replace("*", "us.", 1).replace("*", "")
    takes = vendors()["bedrock"].resolve(model).profile.takes
    if "claude" in model and "claude-3" not in model:
        assert not (takes["temperature"] is True and takes["top_p"] is True)


def told(events: list[Event]) -> tuple[str, bool, dict[str, int]]:
    text = "".join(event.text for event in events if isinstance(event, Text))
    usage = [event for event in events if isinstance(event, Usage)]
    counts = {"in": usage[0].prompt_tokens, "out": usage[0].completion_tokens} if usage else {}
    return text, any(isinstance(event, Finished) for event in events), counts


def counted(usage: dict[str, int]) -> dict[str, int]:
    """As AWS's documents sum them up: `inputTokens` leaves out what a cache held."""
    cached = usage.get("cacheReadInputTokens", 0) + usage.get("cacheWriteInputTokens", 0)
    assert usage["totalTokens"] == usage["inputTokens"] + cached + usage["outputTokens"]
    return {"in": usage["inputTokens"] + cached, "out": usage["outputTokens"]}


def operation(session: Any, name: str) -> Any:
    return session.get_service_model("bedrock-runtime").operation_model(name)


@pytest.mark.parametrize("name", WHOLE)
def test_awss_parser_reads_the_same_from_a_whole_reply(session: Any, name: str) -> None:
    reply = load("bedrock_converse", name).reply
    shape = operation(session, "Converse").output_shape
    response = {"status_code": reply.status, "headers": reply.headers, "body": reply.body()}
    read = create_parser("rest-json").parse(response, shape)
    events, error = opened("bedrock_converse", name).outcome([reply.body()])
    if reply.status != 200:
        assert isinstance(error, UnsupportedParameter) or read["Error"]["Code"] in str(error)
        assert read["Error"]["Message"].rstrip(".") in str(error)
        return
    assert {"output", "stopReason", "usage", "metrics"} <= read.keys()
    assert read["stopReason"] in shape.members["stopReason"].enum
    if error is None:
        text = "".join(block.get("text", "") for block in read["output"]["message"]["content"])
        assert told(events) == (text, True, counted(read["usage"]))


class Wired:
    """A reply's body as AWS's client holds it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> Iterator[bytes]:
        yield self._body

    def close(self) -> None: ...


@pytest.mark.parametrize("name", [name for name in STREAMS if name not in ("cut-inside", "wrong-checksum")])
def test_awss_parser_reads_the_same_from_a_stream(session: Any, name: str) -> None:
    case: Case = load("bedrock_converse", name)
    shape = operation(session, "ConverseStream").get_event_stream_output()
    stream = EventStream(Wired(case.reply.body()), shape, EventStreamJSONParser(), "ConverseStream")
    read: list[dict[str, Any]] = []
    failed: EventStreamError | None = None
    try:
        read.extend(stream)
    except EventStreamError as raised:
        failed = raised
    deltas = [event["contentBlockDelta"]["delta"] for event in read if "contentBlockDelta" in event]
    stops = [event["messageStop"]["stopReason"] for event in read if "messageStop" in event]
    usage = [counted(event["metadata"]["usage"]) for event in read if "metadata" in event]
    events, error = opened("bedrock_converse", name).outcome([case.reply.body()])
    text = "".join(delta.get("text", "") for delta in deltas)
    assert told(events) == (text, bool(stops), usage[0] if usage else {})
    if failed is not None:
        assert isinstance(error, AndthenError)
        assert failed.response["Error"]["Code"] in error.message
