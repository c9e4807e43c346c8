"""A real llama-server upstream, with the model that the embedded engine has too, in three languages."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Server, serving
from tests.upstream.llama_server import LlamaServer, llama_server

LOCAL = "local/tale"
TEXT, CHAT, MESSAGES = "llamacpp/tale", "team/chat", "team/messages"
EVERY = (TEXT, CHAT, MESSAGES)
PROMPTS = ("Once upon a time", "The king said", "東京 – Ω≈ç√ 🦊", "To the\n")
LONG = 900
WAIT_S = 20
NEAR = 5e-3
"""How far the two may differ in a logarithm: they add up in another order."""


def test_a_greedy_text_is_the_embedded_engines(outer: Server) -> None:
    for prompt in PROMPTS:
        assert text(outer, TEXT, prompt) == text(outer, LOCAL, prompt)


@pytest.mark.parametrize("model", [CHAT, MESSAGES])
def test_a_greedy_answer_to_a_message_is_the_embedded_engines_behind_the_template(
    llama: LlamaServer, outer: Server, model: str
) -> None:
    for prompt in PROMPTS:
        assert text(outer, model, prompt) == text(outer, LOCAL, llama.templated(prompt))


@pytest.mark.parametrize("model", EVERY)
def test_a_stream_says_what_a_whole_reply_does(outer: Server, model: str) -> None:
    said = outer.complete(model=model, temperature=0, max_tokens=24)["choices"][0]["text"]
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "stop": ["\0", said[30:34]]}
    whole = outer.complete(model=model, **asked)
    chunks = streamed(outer, model, stream_options={"include_usage": True}, **asked)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"] == whole["usage"]
    assert {chunk["model"] for chunk in chunks} == {model}


@pytest.mark.parametrize("model", EVERY)
def test_usage_is_what_was_processed(llama: LlamaServer, outer: Server, model: str) -> None:
    own = "Once upon a time" if model == TEXT else llama.templated("Once upon a time")
    counted = outer.complete(model=LOCAL, prompt=own, max_tokens=5, temperature=0)["usage"]
    told = outer.complete(model=model, max_tokens=5, temperature=0)["usage"]
    assert (told["prompt_tokens"], told["completion_tokens"]) == (counted["prompt_tokens"], 5)


@pytest.mark.parametrize("model", EVERY)
def test_candidates_are_calls_of_their_own_and_usage_is_their_sum(outer: Server, model: str) -> None:
    one = outer.complete(model=model, max_tokens=4)["usage"]
    reply = outer.complete(model=model, max_tokens=4, n=3)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert len({choice["text"] for choice in reply["choices"]}) > 1
    assert reply["usage"]["prompt_tokens"] == 3 * one["prompt_tokens"]
    assert reply["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("model", [TEXT, CHAT])
def test_a_candidate_is_drawn_as_alone_with_its_own_seed(outer: Server, model: str) -> None:
    together = outer.complete(model=model, seed=7, n=3, max_tokens=6)["choices"]
    alone = [outer.complete(model=model, seed=7 + i, max_tokens=6)["choices"][0]["text"] for i in range(3)]
    assert [choice["text"] for choice in together] == alone


def test_prompts_of_a_list_are_calls_of_their_own(outer: Server) -> None:
    reply = outer.complete(model=TEXT, prompt=list(PROMPTS), temperature=0, max_tokens=8)
    assert [choice["text"] for choice in reply["choices"]] == [text(outer, LOCAL, one, max_tokens=8) for one in PROMPTS]


def test_token_ids_are_taken_as_they_are(outer: Server) -> None:
    ids = [12, 400, 51, 7]
    assert text(outer, TEXT, ids) == text(outer, LOCAL, ids)


def test_a_stop_that_it_is_not_told_is_scanned_for_and_ends_its_work(llama: LlamaServer, outer: Server) -> None:
    said = outer.complete(model=LOCAL, temperature=0, max_tokens=60, ignore_eos=True)["choices"][0]["text"]
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": LONG, "ignore_eos": True, "stop": said[100:112]}
    assert outer.complete(model="team/scanned", **asked)["choices"] == outer.complete(model=LOCAL, **asked)["choices"]
    until(lambda: not llama.busy, "the server has nothing to do")
    assert llama.most_tokens < LONG / 2


@pytest.mark.parametrize("model", [TEXT, CHAT])
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_the_embedded_engines(llama: LlamaServer, outer: Server, model: str, *, stream: bool) -> None:
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "logprobs": 3}
    prompt = "Once upon a time"
    own = outer.complete(model=LOCAL, prompt=prompt if model == TEXT else llama.templated(prompt), **asked)
    expected = own["choices"][0]["logprobs"]
    told = logprobs(outer, model, stream=stream, **asked)
    assert told["tokens"] == expected["tokens"]
    assert told["token_logprobs"] == pytest.approx(expected["token_logprobs"], abs=NEAR)
    shift = expected["text_offset"][0] - len(prompt)
    assert told["text_offset"] == [offset - shift for offset in expected["text_offset"]]
    for i, top in enumerate(told["top_logprobs"]):
        assert top == pytest.approx(expected["top_logprobs"][i], abs=NEAR)
        assert top[told["tokens"][i]] == told["token_logprobs"][i]


def test_best_of_is_the_candidate_with_the_highest_mean(outer: Server) -> None:
    alone = [outer.complete(model=TEXT, seed=3 + i, max_tokens=6, logprobs=0)["choices"][0] for i in range(4)]
    best = max(alone, key=lambda choice: sum(choice["logprobs"]["token_logprobs"]))
    reply = outer.complete(model=TEXT, seed=3, max_tokens=6, best_of=4)
    assert [choice["text"] for choice in reply["choices"]] == [best["text"]]
    assert reply["usage"]["completion_tokens"] == 24


def test_a_repetition_penalty_reaches_as_far_as_the_embedded_engines(outer: Server) -> None:
    asked: dict[str, Any] = {"repetition_penalty": 1.3, "max_tokens": 120, "ignore_eos": True}
    assert text(outer, TEXT, **asked) == text(outer, LOCAL, **asked)


def test_an_echo_alone_is_put_in_front(outer: Server) -> None:
    for model in EVERY:
        assert text(outer, model, echo=True) == "Once upon a time" + text(outer, model)


@pytest.mark.parametrize("model", EVERY)
def test_what_it_can_not_do_is_refused_with_the_reason(outer: Server, model: str) -> None:
    error = refused(outer, model, status=400, echo=True, logprobs=1)
    assert error["code"] == "unsupported_parameter"
    assert error["param"] == ("logprobs" if model == MESSAGES else "echo")
    assert "no such parameter" in error["message"] or "does not score prompts" in error["message"]
    assert LOCAL in error["message"]


@pytest.mark.parametrize("model", EVERY)
def test_a_prompt_beyond_its_context_is_the_callers_to_shorten(outer: Server, model: str) -> None:
    error = refused(outer, model, status=400, prompt="word " * 1100)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


def test_a_model_that_nobody_has_is_not_found(outer: Server) -> None:
    assert refused(outer, "team/nobody", status=404)["code"] == "model_not_found"


@pytest.mark.parametrize("model", EVERY)
def test_a_caller_who_leaves_frees_the_slot(llama: LlamaServer, outer: Server, model: str) -> None:
    with streaming(outer, model, max_tokens=LONG, temperature=0):
        until(lambda: llama.busy == 1, "the server works")
    until(lambda: not llama.busy, "the server has nothing to do")
    assert llama.most_tokens < LONG / 2


def test_a_server_that_is_killed_ends_its_streams_with_an_error_and_a_cut(tmp_path: Path) -> None:
    with llama_server() as doomed:
        settings = f'[vendors.llamacpp]\naddress = "{doomed.url}/v1"\n'
        with serving(tmp_path, settings=settings) as outer:
            with streaming(outer, TEXT, max_tokens=LONG, ignore_eos=True) as reply:
                doomed.process.kill()
                with pytest.raises(http.client.IncompleteRead) as cut:
                    reply.read()
            last = cut.value.partial.split(b"\n\n")[-2]
            assert last.startswith(b"event: error\ndata: ")
            assert json.loads(last.partition(b"data: ")[2])["error"]["code"] == "upstream_garbled"
            assert refused(outer, TEXT, status=502)["code"] == "upstream_unreachable"
            assert text(outer, LOCAL)


def text(server: Server, model: str, prompt: object = "Once upon a time", **fields: Any) -> str:
    """The greedy one."""
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 24} | fields
    return str(server.complete(model=model, prompt=prompt, **asked)["choices"][0]["text"])


@contextmanager
def streaming(server: Server, model: str, **fields: Any) -> Iterator[http.client.HTTPResponse]:
    """A stream of which the first bytes have come; left at the end, wherever it is."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=WAIT_S)
    body = {"model": model, "prompt": "Once upon a time", "stream": True} | fields
    connection.request("POST", "/v1/completions", json.dumps(body), {"x-api-key": server.key})
    with connection.getresponse() as reply:
        assert reply.status == 200
        assert reply.read(6) == b"data: "
        yield reply
    connection.close()


def streamed(server: Server, model: str, **fields: Any) -> list[dict[str, Any]]:
    with streaming(server, model, **fields) as reply:
        *frames, done, nothing = (b"data: " + reply.read()).split(b"\n\n")
    assert (done, nothing) == (b"data: [DONE]", b"")
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]


def logprobs(server: Server, model: str, *, stream: bool, **fields: Any) -> dict[str, list[Any]]:
    if not stream:
        return dict(server.complete(model=model, **fields)["choices"][0]["logprobs"])
    parts = [choice["logprobs"] for chunk in streamed(server, model, **fields) for choice in chunk["choices"]]
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def refused(server: Server, model: str, *, status: int, **fields: Any) -> dict[str, Any]:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        server.complete(model=model, **fields)
    assert refusal.value.code == status
    return dict(json.load(refusal.value)["error"])


def until(true: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"not so after {WAIT_S} s: {why}"
        time.sleep(0.02)
