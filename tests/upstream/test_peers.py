"""What gateways and servers of this contract are known to get wrong, asked of a real server before a recording vendor.

Found by running them: LiteLLM 1.103.6, Portkey 1.15.2, vllm-router, llama-server, new-api.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
import urllib.error
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Server, serving
from tests.upstream.vendor import (
    DONE,
    END,
    STREAM,
    CutOff,
    Play,
    Playing,
    Sent,
    choice,
    completion,
    frame,
    json_reply,
    scored,
)

WAIT_S = 10


async def chat(sent: Sent) -> AsyncIterator[bytes]:
    """Chat completions: one token a choice, each with its own log-probability."""
    n = sent.body.get("n", 1)

    def content(index: int) -> dict[str, Any]:
        text, value = f" t{index}", -0.5 - index
        entry = {"token": text, "bytes": list(text.encode()), "logprob": value, "top_logprobs": []}
        return {"text": text, "logprobs": {"content": [entry]} if sent.body.get("logprobs") else None}

    usage = {"prompt_tokens": 4, "completion_tokens": n, "total_tokens": 4 + n}
    if not sent.body.get("stream"):
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": content(i)["text"]},
                "logprobs": content(i)["logprobs"],
                "finish_reason": "length",
            }
            for i in range(n)
        ]
        yield json_reply({"id": "x", "choices": choices, "usage": usage})
        return
    yield STREAM
    for i in reversed(range(n)):
        delta = {"content": content(i)["text"]}
        yield frame(
            {"choices": [{"index": i, "delta": delta, "logprobs": content(i)["logprobs"], "finish_reason": None}]}
        )
    for i in range(n):
        yield frame({"choices": [{"index": i, "delta": {}, "finish_reason": ["stop", "length"][i % 2]}]})
    yield frame({"choices": [], "usage": usage})
    yield DONE + END


async def slow_text(sent: Sent) -> AsyncIterator[bytes]:
    yield STREAM
    number = 0
    while not sent.left.is_set():
        yield frame(completion(choice(f" {number}", logprobs=None), usage=None))
        number += 1
        await asyncio.sleep(0.02)


async def cut_text(sent: Sent) -> AsyncIterator[bytes]:
    yield STREAM + frame(completion(choice(" once"), usage=None))
    await asyncio.sleep(0.1)
    raise CutOff


async def plain_text(sent: Sent) -> AsyncIterator[bytes]:
    logprobs = scored((" a", -1.0)) if "logprobs" in sent.body else None
    yield json_reply(completion(choice(" a", reason="length", logprobs=logprobs), usage=(3, 1)))


@pytest.fixture(scope="module")
def playing() -> Iterator[Playing]:
    one = Playing(chat)
    yield one
    one.close()


@pytest.fixture(scope="module")
def server(playing: Playing, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    address = f'address = "http://127.0.0.1:{playing.port}/v1"'
    settings = f"""
[limits]
max_stops = 8

[models."team/chat"]
{address}
language = "openai_chat"

[models."team/text"]
{address}
language = "openai_completions"

[models."team/either"]
deployments = [{{ model = "team/chat" }}, {{ model = "team/text", order = 1 }}]

[models."team/llama"]
vendor = "llamacpp"
{address}
"""
    with serving(tmp_path_factory.mktemp("peers"), settings=settings) as running:
        yield running


@pytest.fixture(autouse=True)
def played(playing: Playing) -> None:
    playing.vendor.sent.clear()
    playing.vendor.play = chat


def refused(server: Server, status: int = 400, **fields: Any) -> dict[str, Any]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.complete(**fields)
    with caught.value as reply:
        assert reply.code == status
        return dict(json.load(reply)["error"])


def stream(server: Server, **fields: object) -> tuple[list[dict[str, Any]], bytes]:
    """The chunks, and all the bytes. A connection that breaks ends them."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=WAIT_S)
    body = json.dumps({"prompt": "Hi", "stream": True} | fields)
    connection.request("POST", "/v4/beta/completions", body, {"x-api-key": server.key})
    raw = b""
    try:
        reply = connection.getresponse()
        while piece := reply.read1():
            raw += piece
    except http.client.IncompleteRead as cut:
        raw += cut.partial
    finally:
        connection.close()
    frames = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
    return [json.loads(one) for one in frames], raw


def test_a_stream_of_two_choices_keeps_their_numbers_logprobs_and_finish_reasons(server: Server) -> None:
    chunks, _ = stream(server, model="team/chat", n=2, logprobs=0)
    choices = [one for chunk in chunks for one in chunk["choices"]]
    assert {one["index"]: one["text"] for one in choices if one["text"]} == {0: " t0", 1: " t1"}
    values = {one["index"]: one["logprobs"]["token_logprobs"] for one in choices if one["text"]}
    assert values == {0: [-0.5], 1: [-1.5]}
    assert {one["index"]: one["finish_reason"] for one in choices if one["finish_reason"]} == {0: "stop", 1: "length"}


def test_no_stop_is_left_out_where_the_vendor_takes_fewer(server: Server, playing: Playing) -> None:
    stops = ["v", "w", "x", "y", " t0"]
    reply = server.complete(model="team/chat", stop=stops)
    assert (reply["choices"][0]["text"], reply["choices"][0]["finish_reason"]) == ("", "stop")
    assert playing.vendor.bodies[0]["stop"] == stops[:4]


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 9), ("n", 0), ("max_tokens", -1), ("logprobs", 99), ("top_p", 2)]
)
def test_what_is_out_of_range_is_refused_and_neither_clamped_nor_sent_on(
    server: Server, playing: Playing, field: str, value: Any
) -> None:
    assert refused(server, model="team/chat", **{field: value})["param"] == field
    assert playing.vendor.sent == []


def test_what_is_not_of_the_contract_is_named_and_not_dropped_in_silence(server: Server, playing: Playing) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=WAIT_S)
    body = json.dumps({"model": "team/chat", "prompt": "Hi", "tools": [], "mirostat": 2})
    connection.request("POST", "/v4/beta/completions", body, {"x-api-key": server.key})
    reply = connection.getresponse()
    assert (reply.status, reply.headers["x-andthen-ignored"]) == (200, "tools, mirostat")
    connection.close()
    assert not {"tools", "mirostat"} & playing.vendor.bodies[0].keys()


def test_on_a_chat_model_best_of_is_ranked_and_echo_put_in_front_and_neither_is_sent(
    server: Server, playing: Playing
) -> None:
    reply = server.complete(model="team/chat", prompt="Hi", n=1, best_of=3, echo=True)
    assert reply["choices"][0]["text"] == "Hi t0"
    assert reply["usage"]["completion_tokens"] == 3
    (body,) = playing.vendor.bodies
    assert not {"best_of", "echo", "suffix"} & body.keys()


def test_a_suffix_on_a_chat_model_is_refused_and_names_a_model_that_takes_it(server: Server) -> None:
    error = refused(server, model="team/chat", suffix="end")
    assert (error["param"], error["code"]) == ("suffix", "unsupported_parameter")
    assert "local/tale" in error["message"]


def test_logprobs_of_a_chat_model_are_there_with_offsets_from_the_prompts_start(server: Server) -> None:
    assert server.complete(model="team/chat", prompt="Hi", logprobs=0)["choices"][0]["logprobs"] == {
        "tokens": [" t0"], "token_logprobs": [-0.5], "top_logprobs": None, "text_offset": [2],
    }  # fmt: skip


def test_two_prompts_are_two_conversations_and_not_one_with_two_turns(server: Server, playing: Playing) -> None:
    reply = server.complete(model="team/chat", prompt=["one", "two"])
    assert len(reply["choices"]) == 2
    messages = sorted(body["messages"][0]["content"] for body in playing.vendor.bodies)
    assert messages == ["one", "two"]
    assert all(len(body["messages"]) == 1 for body in playing.vendor.bodies)


def test_token_ids_for_a_model_whose_tokens_are_not_ours_are_a_clear_400(server: Server) -> None:
    error = refused(server, model="team/chat", prompt=[1, 2, 3])
    assert (error["param"], error["code"]) == ("prompt", "unsupported_parameter")


def test_a_text_prompt_is_one_call(server: Server, playing: Playing) -> None:
    playing.vendor.play = plain_text
    server.complete(model="team/text", prompt="one")
    assert len(playing.vendor.sent) == 1


def test_a_server_that_scores_no_prompts_is_not_asked_to_and_an_evaluation_is_told_so(
    server: Server, playing: Playing
) -> None:
    error = refused(server, model="team/llama", prompt="a b", echo=True, logprobs=1, max_tokens=0)
    assert (error["param"], error["code"]) == ("echo", "unsupported_parameter")
    assert playing.vendor.sent == []


def test_a_server_that_tells_no_logprobs_though_asked_is_an_error_and_not_a_reply_without(
    server: Server, playing: Playing
) -> None:
    async def silent(sent: Sent) -> AsyncIterator[bytes]:
        yield json_reply(completion(choice(" a", reason="length"), usage=(3, 1)))

    playing.vendor.play = silent
    assert "no log-probabilities" in refused(server, 502, model="team/text", logprobs=1)["message"]


def test_a_stream_that_the_vendor_cut_is_an_error_and_a_broken_connection(server: Server, playing: Playing) -> None:
    playing.vendor.play = cut_text
    _, raw = stream(server, model="team/text", max_tokens=99)
    assert b'" once"' in raw
    assert b"event: error" in raw
    assert b"upstream_garbled" in raw
    assert b"[DONE]" not in raw
    assert b'finish_reason":"' not in raw


def test_a_caller_who_leaves_ends_the_vendors_work_and_what_was_made_is_counted(
    server: Server, playing: Playing
) -> None:
    playing.vendor.play = slow_text
    host, _, port = server.url.removeprefix("http://").partition(":")
    body = json.dumps({"model": "team/text", "prompt": "Hi", "stream": True, "max_tokens": 999}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {server.key}\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), WAIT_S) as link:
        link.sendall(head.encode() + body)
        seen = b""
        while b" 3" not in seen:
            seen += link.recv(4096)
    deadline = time.monotonic() + WAIT_S
    while not playing.vendor.sent[0].left.is_set():
        assert time.monotonic() < deadline, "the vendor goes on for a caller who left"
        time.sleep(0.01)
    while True:
        lines = [line for line in (server.home / "server.log").read_text().splitlines() if "499" in line]
        if lines:
            break
        assert time.monotonic() < deadline, "no line in the log"
        time.sleep(0.05)


def test_the_plan_and_the_figures_are_those_of_the_deployment_that_answered(server: Server, playing: Playing) -> None:
    async def only_text(sent: Sent) -> AsyncIterator[bytes]:
        if "chat" in sent.path:
            yield json_reply({"error": {"message": "busy"}}, 500)
        else:
            async for piece in plain_text(sent):
                yield piece

    async def nothing(sent: Sent) -> AsyncIterator[bytes]:
        yield json_reply({"error": {"message": "busy"}}, 500)

    def plan_and_model(play: Play) -> tuple[int, str, str]:
        playing.vendor.play = play
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=WAIT_S)
        body = json.dumps({"model": "team/either", "prompt": "Hi"})
        connection.request("POST", "/v4/beta/completions", body, {"x-api-key": server.key})
        reply = connection.getresponse()
        told = json.loads(reply.read())
        connection.close()
        return reply.status, reply.headers["x-andthen-plan"], told.get("model", "")

    assert plan_and_model(only_text) == (200, "prompt=native", "team/text")
    assert b'andthen_first_text_seconds_count{model="team/text"}' in server.get("/metrics")
    assert plan_and_model(nothing) == (502, "prompt=native", "")


def test_the_keys_of_vendors_are_told_nobody(server: Server, playing: Playing, tmp_path: Path) -> None:
    async def unauthenticated(sent: Sent) -> AsyncIterator[bytes]:
        yield json_reply({"error": {"message": "bad key sk-live-0123456789abcdef0123456789", "code": "bad"}}, 401)

    playing.vendor.play = unauthenticated
    assert "sk-live" not in refused(server, 502, model="team/text")["message"]
    assert "sk-live" not in (server.home / "server.log").read_text()
