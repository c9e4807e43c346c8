"""generateContent: what no single exchange can show. The exchanges themselves are cases, in `cases/gemini`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from andthen.contract.errors import UpstreamFailed, UpstreamGarbled
from andthen.contract.events import Event, Finished, Text
from andthen.contract.limits import Limits
from andthen.contract.request import CompletionRequest
from andthen.plan.abilities import Ability
from andthen.vendors.rows import vendors
from andthen.wire.base import Target
from andthen.wire.gemini import Language

ADDRESS = "https://generativelanguage.googleapis.com/v1beta"
ENDS = {"STOP": "stop", "MAX_TOKENS": "length", "CONTINUATION": "length"}
FILTERS = (
    "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "ESCALATION", "MODEL_ARMOR",
    "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION",
)  # fmt: skip
FAILURES = (
    "OTHER", "MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS",
    "MISSING_THOUGHT_SIGNATURE", "IMAGE_OTHER", "NO_IMAGE", "PUP_LIMITED_DISABLED",
)  # fmt: skip


def asked(**fields: Any) -> CompletionRequest:
    return CompletionRequest(model="gemini/any", prompts=("Once",), given=tuple(fields), **fields)


def aimed(model: str = "gemini-3.8-flash") -> Target:
    return Target(vendor="Gemini", address=ADDRESS, model=model, key="KEY")


def read(reply: object, *, streams: bool = False, **fields: Any) -> list[Event]:
    decoder = Language().decoder(asked(**fields), aimed(), streams=streams)
    body = json.dumps(reply)
    events = decoder.feed((f"data: {body}\n\n" if streams else body).encode())
    return [*events, *decoder.end()]


def reply(reason: str | None, text: str = "", **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": reason, **more}]}


def ability(name: str, parameter: str) -> Ability:
    prefix, _, model = name.partition("/")
    return vendors()[prefix].resolve(model).abilities(name, Limits()).parameters[parameter]


@pytest.mark.parametrize(("reason", "ours"), [*ENDS.items(), *((reason, "content_filter") for reason in FILTERS)])
def test_a_reason_to_end_is_one_of_ours(reason: str, ours: str) -> None:
    assert read(reply(reason)) == [Finished(0, 0, ours)]  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", FAILURES)
def test_any_other_reason_is_a_failure_that_names_it(reason: str) -> None:
    with pytest.raises(UpstreamFailed, match=reason):
        read(reply(reason, finishMessage="It failed."))


def test_a_reason_that_nobody_knows_is_a_failure_without_its_name() -> None:
    with pytest.raises(UpstreamFailed, match="It failed") as caught:
        read(reply("ONE_OF_TOMORROW", finishMessage="It failed."))
    assert "TOMORROW" not in caught.value.message


@pytest.mark.parametrize("reason", [None, "FINISH_REASON_UNSPECIFIED"])
@pytest.mark.parametrize("streams", [False, True])
def test_without_a_reason_a_reply_is_cut_short(reason: str | None, streams: bool) -> None:
    decoder = Language().decoder(asked(), aimed(), streams=streams)
    body = json.dumps(reply(reason, " there"))
    decoder.feed((f"data: {body}\n\n" if streams else body).encode())
    with pytest.raises(UpstreamGarbled, match="before it was complete"):
        decoder.end()


@pytest.mark.parametrize("index", [1, 7])
def test_a_candidate_that_was_not_asked_is_garbled(index: int) -> None:
    with pytest.raises(UpstreamGarbled, match="more candidates"):
        read(reply("STOP", " there", index=index))


def test_a_blocked_prompt_ends_all_candidates() -> None:
    events = read({"promptFeedback": {"blockReason": "SAFETY"}}, n=2)
    assert events == [Finished(0, 0, "content_filter"), Finished(0, 1, "content_filter")]


def test_alternatives_of_another_number_than_tokens_are_garbled() -> None:
    scored = {"chosenCandidates": [{"token": "a", "tokenId": 1, "logProbability": -1.0}], "topCandidates": []}
    with pytest.raises(UpstreamGarbled, match="alternatives"):
        read(reply("STOP", "a", logprobsResult=scored), logprobs=1)


def test_the_chosen_token_bears_one_number_also_among_its_alternatives() -> None:
    near = {"token": "a", "tokenId": 1, "logProbability": -0.2500001}
    other = {"token": "b", "tokenId": 2, "logProbability": -1.5}
    scored = {
        "chosenCandidates": [{"token": "a", "tokenId": 1, "logProbability": -0.25}],
        "topCandidates": [{"candidates": [near, other]}],
    }
    (text, _) = read(reply("STOP", "a", logprobsResult=scored), logprobs=2)
    assert isinstance(text, Text)
    assert [(one.text, one.logprob) for one in text.tokens[0].top or ()] == [("a", -0.25), ("b", -1.5)]


@pytest.mark.parametrize("fields", [{"logprobs": 0}, {"n": 2}])
def test_what_google_does_not_stream_is_asked_for_whole(fields: dict[str, Any]) -> None:
    call = Language().encode(asked(**fields), aimed(), streams=True)
    assert not call.streams
    assert call.url.endswith(":generateContent")


def test_a_models_name_stays_one_part_of_the_path() -> None:
    call = Language().encode(asked(), aimed("../../v1/files?x=#"), streams=False)
    assert call.url == f"{ADDRESS}/models/..%2F..%2Fv1%2Ffiles%3Fx%3D%23:generateContent"


@pytest.mark.parametrize("model", ["gemini-3.8-flash", "gemini-3.6-flash", "gemini-3.5-flash-lite", "gemini-9-any"])
@pytest.mark.parametrize("parameter", ["temperature", "top_p", "top_k"])
def test_what_a_model_would_ignore_is_refused(model: str, parameter: str) -> None:
    for prefix in ("gemini", "vertex"):
        assert ability(f"{prefix}/{model}", parameter).support == "refused"


@pytest.mark.parametrize("model", ["gemini-3.5-flash", "gemini-3.1-pro-preview", "gemini-2.5-flash"])
def test_what_a_model_honours_is_native(model: str) -> None:
    for prefix in ("gemini", "vertex"):
        assert ability(f"{prefix}/{model}", "temperature").support == "native"
