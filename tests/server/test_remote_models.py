"""A server whose models all stand upstream: what it tells of them, without calling anyone."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving import Server, serving

TOML = """
[models."local/tale"]
enabled = false

[models."team/text"]
address = "http://127.0.0.1:9"
language = "openai_completions"
context = 2048
takes = { stop = [1, 2], temperature = [0, 1], suffix = true, seed = "it forgot how" }

[models."team/chat"]
address = "http://127.0.0.1:9"
language = "openai_chat"

[models."team/any"]
deployments = [{ model = "team/chat", order = 1 }, { model = "team/text" }]

[prices."team/text"]
prompt = "0.20"
completion = 0.6
"""


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("home"), settings=TOML) as running:
        yield running


def ask(server: Server, path: str, body: dict[str, object] | None = None) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(server.url + path, data=json.dumps(body).encode() if body else None)
    request.add_header("x-api-key", server.key)
    request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_all_are_listed(remote: Server) -> None:
    status, listed = ask(remote, "/v4/beta/models")
    assert (status, {card["id"] for card in listed["data"]}) == (200, {"team/text", "team/chat", "team/any"})


def test_a_card_is_the_whole_row(remote: Server) -> None:
    _, card = ask(remote, "/v4/beta/models/team/text")
    assert (card["context_length"], card["vocab_size"], card["fill_in_the_middle"]) == (2048, None, True)
    assert card["prompt_forms"]["token_ids"] == {"how": "native", "why": None}
    assert card["prompt_logprobs"]["how"] == "native"
    told = card["capabilities"]
    assert told["seed"] == {"how": "refused", "why": "it forgot how"}
    assert (told["temperature"]["minimum"], told["temperature"]["maximum"]) == (0, 1)
    assert (told["stop"]["how"], told["stop"]["word"]) == ("emulated", "scanned")
    assert (told["stop"]["maximum"], told["stop"]["native_maximum"]) == (4, 2)


def test_a_card_says_how_a_prompt_is_taken_and_why_a_seed_is_only_tried(remote: Server) -> None:
    _, card = ask(remote, "/v1/models/team/chat")
    assert card["prompt_forms"]["text"] == {"how": "emulated", "why": None, "word": "message"}
    assert card["prompt_forms"]["token_ids"]["how"] == card["prompt_logprobs"]["how"] == "refused"
    assert card["capabilities"]["seed"]["word"] == "best-effort"
    assert card["capabilities"]["seed"]["why"]


def test_a_name_for_several_has_the_card_of_the_first(remote: Server) -> None:
    _, card = ask(remote, "/v1/models/team/any")
    assert (card["id"], card["context_length"]) == ("team/any", 2048)


def test_a_card_tells_the_price_where_it_is_known(remote: Server) -> None:
    for name in ("team/text", "team/any"):
        _, card = ask(remote, f"/v1/models/{name}")
        assert (card["price"]["prompt"], card["price"]["completion"]) == ("0.2", "0.6")
        assert card["price"]["long_prompts"] == card["price"]["other_hours"] == []
    assert ask(remote, "/v1/models/team/chat")[1]["price"] is None


def test_unknown_names_are_404_also_the_engines(remote: Server) -> None:
    for name in ("local/tale", "team/none", "openai/gpt-4o"):
        assert ask(remote, f"/v1/models/{name}")[0] == 404


def test_a_refusal_names_who_takes_the_parameter(remote: Server) -> None:
    status, reply = ask(remote, "/v1/completions", {"model": "team/text", "prompt": "a", "seed": 1})
    assert (status, reply["error"]["code"], reply["error"]["param"]) == (400, "unsupported_parameter", "seed")
    assert "it forgot how" in reply["error"]["message"]
    assert "team/chat" in reply["error"]["message"]
