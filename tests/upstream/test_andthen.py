"""andthen behind andthen: the whole contract comes through, byte for byte but for ids."""

from __future__ import annotations

import http.client
import json
import re
from typing import Any

import pytest

from tests.serving import Server

INNER = "local/tale"
OUTER = "team/tale"
WAIT_S = 20

LONG = "Once upon a time there was a"
IDS = [12, 400, 51, 7]
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no prompt": {"prompt": None},
    "an empty prompt": {"prompt": "", "seed": 4, "max_tokens": 5},
    "a list": {"prompt": [LONG, "The king", ""], "seed": 2, "max_tokens": 6},
    "token ids": {"prompt": IDS, "max_tokens": 6, "seed": 1},
    "lists of token ids": {"prompt": [IDS, IDS[:1]], "max_tokens": 6, "seed": 1},
    "n": {"n": 3, "seed": 5, "max_tokens": 8},
    "n of a list": {"prompt": [LONG, "The king"], "n": 2, "seed": 5, "max_tokens": 4, "logprobs": 1},
    "best_of": {"n": 2, "best_of": 4, "seed": 5, "max_tokens": 8},
    "best_of with logprobs": {"best_of": 3, "seed": 5, "max_tokens": 8, "logprobs": 2},
    "echo": {"echo": True, "seed": 3},
    "echo of a list": {"prompt": [LONG, "", "The king"], "echo": True, "seed": 3, "n": 2},
    "echo of token ids": {"prompt": IDS, "echo": True, "seed": 3},
    "echo and logprobs": {"echo": True, "logprobs": 2, "seed": 3, "max_tokens": 4},
    "echo and logprobs of a list": {"prompt": [LONG, "", "The king"], "echo": True, "logprobs": 1, "max_tokens": 2},
    "echo and logprobs of token ids": {"prompt": [IDS, IDS[:1]], "echo": True, "logprobs": 5, "max_tokens": 2},
    "scores": {"echo": True, "logprobs": 0, "max_tokens": 0},
    "scores of a list": {"prompt": [LONG, "", "The king"], "echo": True, "logprobs": 3, "max_tokens": 0},
    "scores of token ids": {"prompt": [IDS, IDS[:1]], "echo": True, "logprobs": 1, "max_tokens": 0},
    "scores with n": {"echo": True, "logprobs": 1, "max_tokens": 0, "n": 2},
    "as lm-eval asks": {"prompt": [IDS], "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234},
    "nothing": {"max_tokens": 0},
    "an echo alone": {"max_tokens": 0, "echo": True},
    "logprobs 0": {"logprobs": 0, "seed": 1},
    "logprobs 5": {"logprobs": 5, "seed": 1},
    "logprobs of characters in parts": {"prompt": "Ω≈ç√ 東京 🦊", "echo": True, "logprobs": 2, "max_tokens": 3},
    "characters begun by token ids": {"prompt": [230, 160], "logprobs": 1, "max_tokens": 3, "temperature": 0},
    "suffix": {"suffix": " The end.", "max_tokens": 4, "seed": 1},
    "suffix of token ids": {"suffix": " The end.", "prompt": IDS, "max_tokens": 4, "seed": 1},
    "a greedy text": {"temperature": 0, "max_tokens": 12},
    "a hot text": {"temperature": 2, "seed": -5, "max_tokens": 24, "logprobs": 2},
    "the least top_p": {"top_p": 0, "max_tokens": 12},
    "top_p": {"top_p": 0.5, "seed": 2**63 - 1, "n": 2, "max_tokens": 8},
    "penalties": {"frequency_penalty": 1.5, "presence_penalty": -0.5, "seed": 6, "max_tokens": 24},
    "logit_bias": {"logit_bias": {"267": 100, "16": -100}, "max_tokens": 4, "logprobs": 1, "seed": 1},
    "a stop": {"stop": " the", "seed": 9, "max_tokens": 40, "logprobs": 1},
    "stops": {"stop": [" boys were", "\n", ".", ","], "temperature": 0, "max_tokens": 40, "n": 2},
    "no stops": {"stop": [], "seed": 9},
    "a user": {"user": "reader-17", "seed": 1},
    "extensions": {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 3, "seed": 1, "max_tokens": 12},
    "no end": {"ignore_eos": True, "seed": 1, "max_tokens": 64, "temperature": 0},
    "other ends": {"stop_token_ids": [267], "max_tokens": 30, "seed": 5, "logprobs": 1},
    "special tokens": {"prompt": "<|im_start|>user\nHi<|im_end|>", "echo": True, "logprobs": 0, "max_tokens": 2},
    "special tokens as text": {
        "prompt": "<|im_start|>user", "parse_special": False, "echo": True, "logprobs": 0, "max_tokens": 2,
    },
    "unknown fields": {"wanted": 1, "seed": 1},
    "nulls": {"seed": None, "logprobs": None, "stop": None, "n": None},
    "a format of text": {"response_format": {"type": "text"}, "seed": 1},
}  # fmt: skip

REFUSED: dict[str, dict[str, Any]] = {
    "a context that is too short": {"max_tokens": 100_000},
    "a prompt that is too long": {"prompt": "word " * 5000},
    "an id that is none": {"prompt": [99_999]},
    "a biased id that is none": {"logit_bias": {"99999": 1}},
    "an end that is no id": {"stop_token_ids": [99_999]},
    "best_of in a stream": {"best_of": 2, "stream": True},
    "too high a temperature": {"temperature": 3},
    "suffix and echo": {"suffix": "x", "echo": True},
}
NOT_PASSED_ON: dict[str, Any] = {
    "response_format": {"type": "json_object"},
    "structured_outputs": {"json": {}},
    "return_tokens_as_token_ids": True,
}

STREAMED = {name: case for name, case in CASES.items() if "best_of" not in case}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "usage": {"stream_options": {"include_usage": True}},
    "continuous usage": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
}
_IDS = (
    (re.compile(rb'"id":"cmpl-[^"]+"'), b'"id":""'),
    (re.compile(rb'"created":\d+'), b'"created":0'),
    (re.compile(rb'"model":"(local|team)/tale"'), b'"model":""'),
)


def said(server: Server, model: str, **fields: Any) -> tuple[int, bytes]:
    """Status and body, without ids."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=WAIT_S)
    body = json.dumps({"model": model, "prompt": LONG} | fields)
    headers = {"x-api-key": server.key, "content-type": "application/json"}
    connection.request("POST", "/v4/beta/completions", body, headers)
    with connection.getresponse() as reply:
        told = reply.read()
    connection.close()
    for pattern, instead in _IDS:
        told = pattern.sub(instead, told)
    return reply.status, told


def seeded(case: dict[str, Any]) -> dict[str, Any]:
    """With a seed, since two draws by chance are never alike."""
    return case if case.get("seed") is not None else case | {"seed": 11}


@pytest.mark.parametrize("name", CASES)
def test_a_reply_comes_through(server: Server, outer: Server, name: str) -> None:
    case = seeded(CASES[name])
    said(server, INNER, **case)
    assert said(outer, OUTER, **case) == said(server, INNER, **case)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", STREAMED)
def test_a_stream_comes_through(server: Server, outer: Server, name: str, options: str) -> None:
    case = seeded(STREAMED[name]) | {"stream": True} | OPTIONS[options]
    said(server, INNER, **case)
    mine, theirs = said(outer, OUTER, **case), said(server, INNER, **case)
    if comes_in_one_piece(case) or ends_with_a_shown_token(case):
        assert pieced_together(mine[1]) == pieced_together(theirs[1])
    elif choices(case) > 1:
        assert by_choice(mine[1]) == by_choice(theirs[1])
    else:
        assert mine == theirs


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_comes_through(server: Server, outer: Server, name: str) -> None:
    assert said(outer, OUTER, **REFUSED[name]) == said(server, INNER, **REFUSED[name])


@pytest.mark.parametrize("field", NOT_PASSED_ON)
def test_what_can_not_come_through_is_refused(outer: Server, field: str) -> None:
    status, body = said(outer, OUTER, logprobs=1, **{field: NOT_PASSED_ON[field]})
    error = json.loads(body)["error"]
    assert (status, error["code"], error["param"]) == (400, "unsupported_parameter", field)


def choices(case: dict[str, Any]) -> int:
    prompt = case.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    return prompts * int(case.get("n") or 1)


def comes_in_one_piece(case: dict[str, Any]) -> bool:
    """Where the prompt's tokens are asked for, as they must be for an echo's logprobs, and for an echo or offsets of
    token ids, they stand in one piece with what follows, and are only told apart once all has come."""
    prompt = case.get("prompt")
    ids = isinstance(prompt, list) and not isinstance(prompt[0], str)
    return bool((case.get("logprobs") is not None and (case.get("echo") or ids)) or (case.get("echo") and ids))


def ends_with_a_shown_token(case: dict[str, Any]) -> bool:
    """Only the server that has the model knows a token without text for an end; another waits for the rest of it."""
    return "stop_token_ids" in case and case.get("logprobs") is not None


def by_choice(body: bytes) -> dict[int, list[bytes]]:
    """The frames of each choice in their order, without the usage so far, which counts all; under −1 the others. How
    choices come to stand among each other is chance."""
    told: dict[int, list[bytes]] = {}
    for frame in body.split(b"\n\n"):
        found = re.search(rb'"choices":\[\{"index":(\d+)', frame)
        frame = re.sub(rb',"usage":\{.*', b"", frame) if found else frame
        told.setdefault(int(found[1]) if found else -1, []).append(frame)
    return told


def pieced_together(body: bytes) -> dict[int, Any]:
    """What all chunks of each choice say together; under −1 the usage of the last."""
    told: dict[int, Any] = {}
    *frames, done, nothing = body.split(b"\n\n")
    assert (done, nothing) == (b"data: [DONE]", b"")
    for frame in frames:
        chunk = json.loads(frame.removeprefix(b"data: "))
        told[-1] = chunk.get("usage")
        for choice in chunk["choices"]:
            whole = told.setdefault(choice["index"], {"text": "", "logprobs": {}})
            whole["text"] += choice["text"]
            whole["finish_reason"] = choice["finish_reason"]
            for name, values in (choice["logprobs"] or {}).items():
                whole["logprobs"][name] = [*whole["logprobs"].get(name, []), *(values or [])]
    return told
