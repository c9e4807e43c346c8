"""Prompts and completions that a real server keeps, and where they are not."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import pytest

from andthen.books.store import open_sqlite
from andthen.books.store.texts import KeptText
from tests.serving import Server, serving

WAIT_S = 10
SETTINGS = """
[books]
keep_text_days = 30
text_characters = 60

[redact]
customer = 'C-\\d{6}'
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("texts"), settings=SETTINGS) as running:
        yield running


def kept(server: Server, request_id: str) -> KeptText:
    deadline = time.monotonic() + WAIT_S
    with closing(open_sqlite(server.home / "andthen.db")) as store:
        while (text := store.read_text(request_id)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    return text


def test_a_request_and_its_reply_are_kept_redacted_and_cut(server: Server) -> None:
    prompt = "Dear C-123456, write to ada@mail.example. Once upon a time there was"
    reply = server.complete(prompt=prompt, n=2, max_tokens=8, seed=1, echo=True)
    text = kept(server, reply["id"])
    assert text.prompts == ["Dear [customer], write to [email]. Once upon a time t"]
    assert text.completions == [choice["text"].removeprefix(prompt)[:60] for choice in reply["choices"]]


def test_a_stream_is_kept_as_far_as_it_came(server: Server) -> None:
    body = json.dumps({"model": server.model, "prompt": "Once", "stream": True, "max_tokens": 6, "seed": 1}).encode()
    headers = {"x-api-key": server.key, "content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/completions", body, headers)) as reply:
        lines = [line[6:] for line in reply.read().decode().split("\n\n") if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    told = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert kept(server, chunks[0]["id"]).completions == [told]


def test_no_log_and_no_file_but_the_database_has_a_text(server: Server) -> None:
    reply = server.complete(prompt="A very particular beginning", max_tokens=2)
    kept(server, reply["id"])
    holders = [
        path.name for path in server.home.rglob("*")
        if path.is_file() and b"very particular" in path.read_bytes()
    ]  # fmt: skip
    assert {name.removesuffix("-wal") for name in holders} <= {"andthen.db"}
