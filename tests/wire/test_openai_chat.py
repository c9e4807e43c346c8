"""Chat completions: what no single exchange can show. The exchanges themselves are cases, in `cases/openai_chat`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andthen.contract.errors import AndthenError, UpstreamGarbled
from andthen.contract.events import Finished, Text, Usage
from andthen.contract.limits import Limits
from andthen.contract.request import CompletionRequest, parse
from andthen.vendors.rows import vendors
from andthen.wire.base import Refusal, Target
from andthen.wire.openai_chat import Language

TARGET = Target(vendor="Vendor", address="https://vendor.example/v1", model="team/model", key="KEY")


def asked(**fields: object) -> CompletionRequest:
    return parse(json.dumps({"model": "vendor/model", "prompt": "Once", **fields}).encode(), Limits())


def body(language: Language, *, streams: bool = False, **fields: object) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(language.encode(asked(**fields), TARGET, streams=streams).body)
    return made


def read(reply: object, **fields: object) -> list[object]:
    decoder = Language().decoder(asked(**fields), TARGET, streams=False)
    return [*decoder.feed(json.dumps(reply).encode()), *decoder.end()]


def streamed(*chunks: object, done: bool = True, language: Language | None = None, **fields: object) -> list[object]:
    decoder = (language or Language()).decoder(asked(stream=True, **fields), TARGET, streams=True)
    frames = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + (["data: [DONE]\n\n"] if done else [])
    return [*decoder.feed("".join(frames).encode()), *decoder.end()]


def delta(text: str = "", finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]}


def whole(text: str = " upon", finish: str | None = "stop", **more: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": finish, **more}]}


def test_the_default_of_max_tokens_is_always_sent() -> None:
    assert body(Language())["max_tokens"] == 16
    assert body(Language(max_tokens="max_completion_tokens"))["max_completion_tokens"] == 16


def test_nothing_is_sent_that_the_caller_did_not_give() -> None:
    assert body(Language()) == {
        "model": "team/model",
        "messages": [{"role": "user", "content": "Once"}],
        "max_tokens": 16,
    }


def test_a_model_s_name_in_the_path_can_not_leave_its_place() -> None:
    language = Language(
        path="/openai/deployments/{model}/chat/completions?api-version=2024-10-21", key_header="api-key"
    )
    call = language.encode(asked(), TARGET, streams=False)
    assert call.url == (
        "https://vendor.example/v1/openai/deployments/team%2Fmodel/chat/completions?api-version=2024-10-21"
    )
    assert dict(call.headers)["api-key"] == "KEY"
    assert "authorization" not in dict(call.headers)


def test_without_a_key_no_header_bears_one() -> None:
    target = Target(vendor="Vendor", address="http://127.0.0.1:1", model="m", headers=(("x-team", "a"),))
    call = Language().encode(asked(), target, streams=False)
    assert call.headers == (("content-type", "application/json"), ("x-team", "a"))


def test_usage_of_a_stream_is_asked_for_unless_the_dialect_has_no_such_field() -> None:
    assert body(Language(), streams=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in body(Language(stream_usage=False), streams=True)


def test_a_whole_bias_is_sent_as_a_whole_number() -> None:
    sent = Language().encode(asked(logit_bias={"7": 2.0, "8": -1.5}), TARGET, streams=False).body
    assert b'"logit_bias":{"7":2,"8":-1.5}' in sent


def test_the_user_goes_by_the_vendor_s_name_for_it() -> None:
    assert body(Language(user="safety_identifier"), user="reader-17")["safety_identifier"] == "reader-17"


def test_a_prefill_puts_the_text_into_the_assistant_s_mouth() -> None:
    assert body(Language(prefill="prefix"))["messages"] == [{"role": "assistant", "content": "Once", "prefix": True}]
    assert body(Language(prefill="partial", prefill_user="Go on."))["messages"] == [
        {"role": "user", "content": "Go on."},
        {"role": "assistant", "content": "Once", "partial": True},
    ]


def test_a_candidate_without_an_index_is_the_one_at_its_place() -> None:
    choices = [{"message": {"content": text}, "finish_reason": "eos"} for text in "ab"]
    events = read({"choices": choices}, n=2)
    assert [event.candidate for event in events if isinstance(event, Text)] == [0, 1]


@pytest.mark.parametrize("reply", [{}, {"choices": []}, whole(finish=None), whole(finish=""), {"choices": None}])
def test_a_reply_that_lacks_a_candidate_s_end_is_cut_short(reply: dict[str, Any]) -> None:
    with pytest.raises(UpstreamGarbled):
        read(reply)


def test_a_stream_that_lacks_one_of_its_candidates_is_cut_short() -> None:
    with pytest.raises(UpstreamGarbled):
        streamed(delta(" upon"), delta(finish="stop"), n=2)


def test_a_candidate_that_goes_on_after_its_end_is_garbled() -> None:
    with pytest.raises(UpstreamGarbled):
        streamed(delta(finish="stop"), delta(" upon"))


def test_a_candidate_that_nobody_asked_for_is_garbled() -> None:
    with pytest.raises(UpstreamGarbled):
        streamed(delta(" upon", index=1))


def test_a_reason_that_the_language_does_not_have_is_garbled() -> None:
    with pytest.raises(UpstreamGarbled):
        read(whole(finish="bored"))


def test_what_follows_the_end_mark_is_passed_over() -> None:
    decoder = Language().decoder(asked(stream=True), TARGET, streams=True)
    events = decoder.feed(f"data: {json.dumps(delta(' upon', 'stop'))}\n\ndata: [DONE]\n\ndata: nonsense\n\n".encode())
    assert [*events, *decoder.end()] == [Text(0, 0, " upon"), Finished(0, 0, "stop")]


def test_without_an_end_mark_every_candidate_s_end_is_the_stream_s() -> None:
    unmarked = Language(end_mark=False)
    assert streamed(delta(" upon", "stop"), done=False, language=unmarked)[-1] == Finished(0, 0, "stop")
    with pytest.raises(UpstreamGarbled):
        streamed(delta(" upon"), done=False, language=unmarked)


def test_what_came_before_an_error_in_the_stream_is_passed_on_before_it() -> None:
    decoder = Language().decoder(asked(stream=True), TARGET, streams=True)
    frames = [delta(" upon"), {"error": {"message": "Try later"}}, delta(" a", "stop")]
    assert decoder.feed("".join(f"data: {json.dumps(frame)}\n\n" for frame in frames).encode()) == [Text(0, 0, " upon")]
    with pytest.raises(AndthenError):
        decoder.feed(b"data: [DONE]\n\n")
    with pytest.raises(AndthenError):
        decoder.end()


def test_the_system_s_fingerprint_is_kept() -> None:
    decoder = Language().decoder(asked(), TARGET, streams=False)
    decoder.feed(json.dumps(whole() | {"system_fingerprint": "fp_1"}).encode())
    decoder.end()
    assert decoder.fingerprint == "fp_1"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("<think>Hm.</think> upon", " upon"),
        ("\n<think>a < b</thin</think>upon", "upon"),
        ("<think>a</think> b <think>c</think>", " b <think>c</think>"),
        ("<think>Hm, that is", ""),
        (" upon <think>Hm.</think>", " upon <think>Hm.</think>"),
        ("<thin air", "<thin air"),
        (" <th", " <th"),
        ("  upon", "  upon"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_reasoning_that_a_text_begins_with_is_left_out(said: str, shown: str, size: int) -> None:
    pieces = [delta(said[start : start + size]) for start in range(0, len(said), size)]
    events = streamed(*pieces, delta(finish="stop"), language=Language(thinks_aloud=True))
    assert "".join(event.text for event in events if isinstance(event, Text)) == shown


def test_an_error_that_comes_with_status_200_is_an_error() -> None:
    with pytest.raises(AndthenError) as raised:
        read({"error": {"message": "Try later", "code": 503}})
    assert raised.value.code == "no_capacity"
    with pytest.raises(AndthenError) as raised:
        streamed({"object": "error", "message": "Out of memory", "type": "InternalServerError", "code": 500})
    assert raised.value.code == "upstream_failed"


def test_alternatives_are_the_asked_number_with_the_chosen_token_among_them() -> None:
    top = [{"token": token, "logprob": value} for token, value in ((" a", -3.0), (" b", -1.0), (" c", -2.0))]
    entry = {"token": " d", "logprob": -4.0, "top_logprobs": top}
    [text, *_] = read(whole(" d", logprobs={"content": [entry]}), logprobs=2)
    assert isinstance(text, Text)
    assert [(one.text, one.logprob) for one in text.tokens[0].top or ()] == [(" b", -1.0), (" c", -2.0), (" d", -4.0)]


def test_a_chosen_token_s_number_is_the_one_among_its_alternatives() -> None:
    entry = {"token": " d", "logprob": -0.5, "top_logprobs": [{"token": " d", "logprob": -0.5000001}]}
    [text, *_] = read(whole(" d", logprobs={"content": [entry]}), logprobs=1)
    assert isinstance(text, Text)
    assert [one.logprob for one in text.tokens[0].top or ()] == [-0.5]


def test_hidden_tokens_that_are_counted_apart_are_added() -> None:
    counts = {"prompt_tokens": 10, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 5}}
    assert read(whole() | {"usage": counts | {"total_tokens": 17}})[-1] == Usage(10, 7, None, 5)
    assert read(whole() | {"usage": counts | {"completion_tokens": 7, "total_tokens": 17}})[-1] == Usage(10, 7, None, 5)


@pytest.mark.parametrize(
    ("status", "said", "code"),
    [
        (400, {"error": {"message": "no", "code": "bad"}}, "upstream_refused"),
        (400, {"error": "no", "code": "bad"}, "upstream_refused"),
        (400, [{"error": {"message": "no"}}], "upstream_refused"),
        (401, {"statusCode": 401, "message": "no"}, "upstream_unauthenticated"),
        (404, {"detail": "no"}, "model_not_found"),
        (422, {"detail": [{"msg": "no", "loc": ["body"]}]}, "upstream_refused"),
        (429, {"message": "no", "type": "too_many_requests_error"}, "rate_limit_exceeded"),
        (500, {"object": "error", "message": "no", "code": 500}, "upstream_failed"),
        (503, {"error": {"message": "no", "code": "503"}}, "no_capacity"),
    ],
)
def test_every_shape_of_error_is_read(status: int, said: object, code: str) -> None:
    refusal = Refusal(status, (), json.dumps(said).encode())
    raised = Language().refusal(refusal, asked(), TARGET)
    assert raised.code == code
    assert ": no." in raised.message


@pytest.mark.parametrize("reply", [b"", b"<html>", b"[]", b'"x"', b"\xff", b"{" * 2000, b'{"error":', b"null"])
@pytest.mark.parametrize("status", [400, 500])
def test_a_refusal_that_says_nothing_is_one_of_our_errors_all_the_same(reply: bytes, status: int) -> None:
    raised = Language().refusal(Refusal(status, (), reply), asked(), TARGET)
    assert raised.message.startswith(f"Vendor answered status {status}.")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
FIELDS = (
    "choices",
    "usage",
    "error",
    "message",
    "detail",
    "x_groq",
    "index",
    "delta",
    "content",
    "logprobs",
    "refusal",
)
NEAR = st.recursive(
    JSON,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
)


@given(reply=NEAR, streams=st.booleans())
def test_any_json_gives_events_or_one_of_our_errors(reply: object, streams: bool) -> None:
    decoder = Language().decoder(asked(logprobs=1), TARGET, streams=streams)
    text = json.dumps(reply)
    try:
        decoder.feed(f"data: {text}\n\ndata: [DONE]\n\n".encode() if streams else text.encode())
        decoder.end()
    except AndthenError:
        pass
    assert isinstance(Language().refusal(Refusal(400, (), text.encode()), asked(), TARGET), AndthenError)


@pytest.mark.parametrize(
    ("model", "refuses", "extra"),
    [
        ("gpt-4o", False, {}),
        ("o3", True, {}),
        ("gpt-5", True, {}),
        ("gpt-5-mini", True, {}),
        ("gpt-5.1", False, {}),
        ("gpt-5.2-pro", True, {}),
        ("gpt-5.3-chat-latest", True, {}),
        ("gpt-5.4-mini", False, {}),
        ("gpt-5.5", False, {"reasoning_effort": "none"}),
        ("gpt-5.5-pro", True, {}),
        ("gpt-5.6-sol", False, {"reasoning_effort": "none"}),
        ("gpt-6-astra", True, {}),
        ("gpt-6-sol", False, {"reasoning_effort": "none"}),
        ("gpt-6.1-sol", True, {}),
        ("gpt-6.1-terra", False, {"reasoning_effort": "none"}),
    ],
)
def test_of_openai_s_models_those_that_always_reason_refuse_a_temperature(
    model: str, refuses: bool, extra: dict[str, str]
) -> None:
    resolved = vendors()["openai"].resolve(model)
    abilities = resolved.abilities(f"openai/{model}", Limits())
    assert (abilities.parameters["temperature"].support == "refused") is refuses
    assert (abilities.parameters["logprobs"].support == "refused") is refuses
    assert resolved.profile.dialect.get("extra", {}) == extra
