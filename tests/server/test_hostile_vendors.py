"""A vendor that means harm: what it sends stops no worker and fills no memory, what it tells of its usage empties no
budget, and nothing of the key that it was sent comes out anywhere but in a generated text.

Black boxes: a server process, a vendor on a socket. A vendor's address says what it does: /LANGUAGE/SCENARIO.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from andthen.books.policy import Policy
from andthen.books.store import open_sqlite
from andthen.ledger.records import Budget
from tests.posted import WAIT_S as POSTED_WITHIN_S
from tests.posted import rows
from tests.server.running import Answer, Running, running
from tests.upstream.vendor import Playing, Sent, chunk, json_reply

KEY = "quixotic_zebra_7f3b9d_wharf"
OTHERS_KEY = "another-vendors-hush-4411"
MIB = 2**20
STOP_S = 2.0
"""Of the event loop, on a machine at work. Before there were bounds it was 4 to 8 s."""
TRIES = 3
"""What the machine does besides stops the probe now and then; what a reply does, it does each time."""
GROWTH_BYTES = 160 * MIB
"""Before there were bounds it was 480 MiB."""
MAX_TOKENS = 16
PROMPT = "Hello"
WORST_TOKENS = len(PROMPT) + 64 + MAX_TOKENS
HUGE = 10**18

LANGUAGES = (
    "openai_completions", "openai_chat", "anthropic_messages", "gemini", "cohere", "ollama", "mistral_chat",
    "mistral_fim", "bedrock_converse",
)  # fmt: skip
CHATS = ("openai_chat", "mistral_chat", "mistral_fim")
STREAMING = tuple(language for language in LANGUAGES if language != "bedrock_converse")
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def whole(language: str, text: str, reason: str = "", told: str = "x", usage: tuple[int, int] = (4, 3)) -> Any:
    """A reply in one piece; `told` stands wherever a text of the vendor's own may be."""
    named = {"id": told, "model": told, "object": told, "created": 1, "system_fingerprint": told}
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    match language:
        case "openai_completions":
            choices: list[Any] = [{"index": 0, "text": text, "finish_reason": reason or "stop"}]
            return named | {"choices": choices, "usage": counts}
        case "openai_chat" | "mistral_chat" | "mistral_fim":
            said = {"role": told, "content": text}
            choices = [{"index": 0, "message": said, "delta": said, "finish_reason": reason or "stop"}]
            return named | {"choices": choices, "usage": counts}
        case "anthropic_messages":
            own = {"input_tokens": usage[0], "output_tokens": usage[1]}
            content = [{"type": "text", "text": text}]
            return named | {"type": "message", "content": content, "stop_reason": reason or "end_turn", "usage": own}
        case "gemini":
            own = {"promptTokenCount": usage[0], "candidatesTokenCount": usage[1]}
            one = {"content": {"parts": [{"text": text}]}, "finishReason": reason or "STOP", "finishMessage": told}
            return named | {"candidates": [one], "usageMetadata": own, "modelVersion": told}
        case "cohere":
            counted: Any = {"tokens": {"input_tokens": usage[0], "output_tokens": usage[1]}}
            return named | {
                "finish_reason": reason or "COMPLETE",
                "message": {"content": [{"text": text}]},
                "usage": counted,
            }
        case "ollama":
            own = {"prompt_eval_count": usage[0], "eval_count": usage[1]}
            return named | {"response": text, "done": True, "done_reason": reason or "stop"} | own
    own = {"inputTokens": usage[0], "outputTokens": usage[1]}
    return {"output": {"message": {"content": [{"text": text}]}}, "stopReason": reason or "end_turn", "usage": own}


def streamed(language: str, text: str, reason: str = "", told: str = "x", usage: tuple[int, int] = (4, 3)) -> bytes:
    """The same as a stream."""
    reply = whole(language, text, reason, told, usage)
    match language:
        case "ollama":
            return json.dumps(reply).encode() + b"\n"
        case "anthropic_messages":
            begun = reply | {"content": [], "usage": {"input_tokens": usage[0], "output_tokens": 1}}
            events: list[Any] = [
                {"type": "message_start", "message": begun},
                {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}},
                {"type": "message_delta", "delta": {"stop_reason": reply["stop_reason"]}, "usage": reply["usage"]},
                {"type": "message_stop"},
            ]
        case "cohere":
            end = {"finish_reason": reply["finish_reason"], "usage": reply["usage"]}
            events = [
                {"type": "content-delta", "delta": {"message": {"content": {"type": "text", "text": text}}}},
                {"type": "message-end", "delta": end},
            ]
        case _:
            events = [reply]
    done = b"data: [DONE]\n\n" if language in ("openai_completions", *CHATS) else b""
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + done


def error_of(told: str) -> dict[str, Any]:
    """All that languages read of an error, and more."""
    names = ("message", "type", "code", "status", "param", "detail", "title", "error_type", "__type", "Message")
    inner: dict[str, Any] = dict.fromkeys(names, told)
    details = [{"reason": told, "retryDelay": told}]
    return inner | {"error": inner | {"details": details}, "errors": [inner]}


def encoded(key: str) -> str:
    """A key in the ways in which servers write one, each beside other letters."""
    basic = [base64.b64encode(f"{user}{key}".encode()).decode() for user in ("", "u:", "us:", "usr:")]
    forms = [key.upper(), quote(key), key.encode().hex(), f"Bearer {key}", f"{key[:12]}...", f"...{key[-9:]}", *basic]
    return "Wrong: " + ", ".join(forms)


def values(count: int, one: str) -> bytes:
    return b",".join([one.encode()] * count)


def many_tokens(language: str, count: int) -> bytes:
    if language == "openai_chat":
        entries = values(count, '{"token":"a","logprob":-1,"top_logprobs":[]}')
        inner = b'"message":{"content":"a"},"logprobs":{"content":[' + entries + b"]}"
    else:
        tokens, numbers, tops = values(count, '"a"'), values(count, "-1"), values(count, '{"a":-1}')
        arrays = b'"tokens":[%s],"token_logprobs":[%s],"top_logprobs":[%s]' % (tokens, numbers, tops)
        inner = b'"text":"a","logprobs":{' + arrays + b"}"
    return b'{"choices":[{"index":0,"finish_reason":"stop",' + inner + b"}]}"


async def repeated(first: bytes, piece: bytes, sent: Sent) -> AsyncIterator[bytes]:
    yield first
    while not sent.left.is_set():
        yield piece


async def play(sent: Sent) -> AsyncIterator[bytes]:
    _, language, scenario, *_ = sent.path.split("/")
    streams = bool(sent.body.get("stream")) or "stream" in sent.path
    pieces = _tell(language, scenario, streams) if scenario in TELLING else _flood(language, scenario, sent, streams)
    async for piece in pieces:
        yield piece


async def _tell(language: str, scenario: str, streams: bool) -> AsyncIterator[bytes]:
    """Its key, in all that it sends but the generated text."""
    told = encoded(KEY) if scenario == "encoded" else OTHERS_KEY if scenario == "others" else KEY
    match scenario:
        case "reason" | "names":
            reason = told if scenario == "reason" else ""
            if streams:
                yield CHUNKED + chunk(streamed(language, "Hi", reason, told)) + chunk(b"")
            else:
                yield json_reply(whole(language, "Hi", reason, told))
        case "event":
            event = json.dumps(error_of(told) | {"type": "error"}).encode()
            yield CHUNKED + chunk(event + b"\n" if language == "ollama" else b"event: error\ndata: " + event + b"\n\n")
            yield chunk(b"")
        case "error":
            yield json_reply(error_of(told))
        case _:
            status = int(scenario) if scenario.isdecimal() else 400
            yield json_reply(error_of(told), status, x_amzn_errortype=told, x_request_id=told, retry_after=told)


async def _flood(language: str, scenario: str, sent: Sent, streams: bool) -> AsyncIterator[bytes]:
    event = streamed(language, "Hi").partition(b"\n\n")[0] + b"\n\n"
    head = EVENTS if streams else EVENTS.replace(b"text/event-stream", b"application/json")
    match scenario:
        case "tokens":
            body = many_tokens(language, 300_000)
            yield head + (b"data: " + body + b"\n\n" if streams else body)
        case "choices":
            yield head + b'{"choices":[' + values(2_000_000, "{}") + b'],"candidates":[' + values(9, "{}") + b"]}"
        case "text":
            text = "word " * 100_000
            yield CHUNKED + chunk(streamed(language, text)) if streams else json_reply(whole(language, text))
        case "usage":
            huge = (HUGE, HUGE)
            if streams:
                yield CHUNKED + chunk(streamed(language, "Hi", usage=huge)) + chunk(b"")
            else:
                yield json_reply(whole(language, "Hi", usage=huge))
        case "believable":  # a preamble of the vendor's own, which is more than is reserved
            yield json_reply(whole(language, "Hi", usage=(500, 3)))
        case "events":
            event = event.replace(b'"finish_reason": "stop"', b'"finish_reason": null')
            async for piece in repeated(head, event * 400, sent):
                yield piece
        case "interim":
            async for piece in repeated(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 2000, sent):
                yield piece
        case "headers":
            async for piece in repeated(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 2000, sent):
                yield piece
        case _:
            floods = {"comments": b": hello\n\n", "empty": b"data:\n", "line": b"x" * 8, "values": b"{},"}
            first = {"line": b'data: {"a": "', "values": b'data: {"choices": ['}.get(scenario, b"")
            async for piece in repeated(head + first, floods[scenario] * 8000, sent):
                yield piece


TELLING = {"reason", "names", "event", "error", "encoded", "others", "400", "401", "429", "500"}
FLOODS: dict[str, tuple[str, bool]] = {
    # scenario/language → streamed; each ends in an error
    "tokens/openai_completions": ("tokens", False),
    "tokens/openai_completions/": ("tokens", True),
    "tokens/openai_chat": ("tokens", False),
    "choices/openai_completions": ("choices", False),
    "choices/openai_chat": ("choices", False),
    "choices/gemini": ("choices", False),
    **{f"text/{language}": ("text", False) for language in LANGUAGES},
    **{f"text/{language}/": ("text", True) for language in STREAMING},
    "events/openai_completions/": ("events", True),
    "events/openai_chat/": ("events", True),
    "interim/openai_completions": ("interim", False),
    "headers/openai_completions": ("headers", False),
    **{
        f"{flood}/{language}/": (flood, True)
        for language in ("openai_chat", "anthropic_messages", "gemini", "cohere")
        for flood in ("comments", "empty", "line", "values")
    },
}


class House:
    """The server, its vendor, and a key that has a budget."""

    def __init__(self, server: Running) -> None:
        self.server = server
        with closing(open_sqlite(server.home / "andthen.db")) as store:
            policy = Policy(budgets=(Budget(window="total", tokens=10**6, micros=10**9),))
            self.bounded = store.create_key("bounded", policy=policy).secret
        self.database = server.home / "andthen.db"

    def ask(
        self, language: str, scenario: str, *, stream: bool = False, key: str | None = None, logprobs: int | None = None
    ) -> Answer:
        """What it answers, also where that breaks off."""
        asked = {"model": f"{language}/{scenario}", "prompt": PROMPT, "max_tokens": MAX_TOKENS, "stream": stream}
        headers = {"content-type": "application/json", "x-api-key": key or self.server.key}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        with closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(asked | {"logprobs": logprobs}), headers)
            reply = connection.getresponse()
            try:
                body = reply.read()
            except http.client.IncompleteRead as broken:
                body = broken.partial
            return Answer(reply.status, dict(reply.getheaders()), body)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Once what was asked is posted: the route that tells of usage waits for that."""
        assert self.server.ask("GET", "/v4/beta/usage").status == 200
        with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as reading:
            return reading.execute(sql).fetchall()

    def row(self, answer: Answer) -> dict[str, Any]:
        """The ledger's row of the request that was answered, once it is posted."""
        (id,) = (value for name, value in answer.headers.items() if name.lower() == "x-request-id")
        deadline_s = time.monotonic() + POSTED_WITHIN_S
        while True:
            found = {row["id"]: row for row in rows(self.server.home, 0)}
            if id in found:
                return found[id]
            assert time.monotonic() < deadline_s, f"{id} is not in {found}"
            time.sleep(0.02)

    @contextmanager
    def watched(self) -> Iterator[list[float]]:
        """Seconds that a probe waited for its reply, the longest last, once the block is left."""
        over, waits = threading.Event(), [0.0]

        def probe() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
            while not over.is_set():
                began_s = time.monotonic()
                connection.request("GET", "/healthz")
                connection.getresponse().read()
                waits.append(time.monotonic() - began_s)
                time.sleep(0.002)
            connection.close()

        thread = threading.Thread(target=probe)
        thread.start()
        try:
            yield waits
        finally:
            over.set()
            thread.join()
            waits.sort()

    def memory(self, which: str) -> int:
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        found = re.search(rf"{which}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with closing(Playing(play)) as vendor:
        tables = ""
        for language in LANGUAGES:
            scenarios = TELLING | {scenario for scenario, _ in FLOODS.values()} | {"usage", "believable"}
            for scenario in scenarios:
                tables += (
                    f'[models."{language}/{scenario}"]\nlanguage = "{language}"\nkey = "{KEY}"\nprivate = true\n'
                    f'address = "http://127.0.0.1:{vendor.port}/{language}/{scenario}"\n'
                )
        settings = f"""
[logs]
level = "debug"
[limits]
max_logprobs = 20
[upstream]
retries = 0
cool_after = 1000
[vendors.andthen]
address = "http://127.0.0.1:{vendor.port}/openai_completions/400"
key = "{KEY}"
private = true
[vendors.together]
address = "http://127.0.0.1:{vendor.port}/none"
key = "{OTHERS_KEY}"
private = true
[prices."*"]
prompt = 1
completion = 1
{tables}"""
        with running(tmp_path_factory.mktemp("hostile"), settings) as server:
            yield House(server)


@pytest.mark.parametrize("name", FLOODS)
def test_a_reply_that_is_far_larger_than_what_was_asked(house: House, name: str) -> None:
    (scenario, stream), language = FLOODS[name], name.split("/")[1]
    Path(f"/proc/{house.server.process.pid}/clear_refs").write_text("5")
    before = house.memory("VmRSS")
    for _ in range(TRIES):
        with house.watched() as waits:
            answer = house.ask(language, scenario, stream=stream, logprobs=1 if scenario == "tokens" else None)
        if waits[-1] < STOP_S:
            break
    else:
        pytest.fail(f"others waited for {waits[-1]:.1f} s, {TRIES} times")
    assert house.memory("VmHWM") - before < GROWTH_BYTES
    assert b"upstream_garbled" in answer.body or b"upstream_failed" in answer.body, answer.body[:300]
    row = house.row(answer)
    assert row["prompt_tokens"] + row["completion_tokens"] <= WORST_TOKENS
    if scenario in ("tokens", "text", "events"):
        assert (row["completion_tokens"], row["source"]) == (MAX_TOKENS, "bounded")
    assert house.server.ask("GET", "/healthz").status == 200


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize(
    ("language", "stream"),
    [*((language, stream) for language in STREAMING for stream in (False, True)), ("bedrock_converse", False)],
)
def test_usage_that_cannot_be_is_bounded_and_marked(house: House, language: str, stream: bool, bounded: bool) -> None:
    answer = house.ask(language, "usage", stream=stream, key=house.bounded if bounded else None)
    row = house.row(answer)
    assert row["prompt_tokens"] + row["completion_tokens"] <= WORST_TOKENS
    assert row["cost_micros"] <= WORST_TOKENS
    assert str(HUGE).encode() not in answer.body
    if answer.status == 200 and b"error" not in answer.body:
        assert row["source"] == "bounded"
    assert max(house.rows("SELECT tokens, micros FROM spending"), default=(0, 0)) < (10_000, 10_000)


@pytest.mark.parametrize("bounded", [False, True])
def test_an_honest_overhead_is_written_down_but_no_budget_is_charged_more_than_was_reserved(
    house: House, bounded: bool
) -> None:
    answer = house.ask("cohere", "believable", key=house.bounded if bounded else None)
    assert answer.json["usage"]["prompt_tokens"] == 500
    row = house.row(answer)
    called = house.rows("SELECT prompt_tokens, completion_tokens, source FROM calls ORDER BY rowid DESC LIMIT 1")
    assert called == [(500, 3, "vendor")]
    if bounded:
        assert row["prompt_tokens"] + row["completion_tokens"] == row["reserved_tokens"] == WORST_TOKENS
    else:
        assert (row["prompt_tokens"], row["completion_tokens"], row["source"]) == (500, 3, "vendor")


def _parts(secret: str) -> Iterator[str]:
    for text in (secret, base64.b64encode(secret.encode()).decode().rstrip("="), secret.encode().hex()):
        yield from (text[at : at + 8].lower() for at in range(len(text) - 7))


def clean(text: str) -> None:
    folded = text.lower()
    for secret in (KEY, OTHERS_KEY):
        for part in _parts(secret):
            at = folded.find(part)
            assert at < 0, folded[max(0, at - 200) : at + 100]


@pytest.mark.parametrize("scenario", sorted(TELLING))
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_of_a_key_comes_back(house: House, language: str, scenario: str, stream: bool) -> None:
    answer = house.ask(language, scenario, stream=stream)
    clean(f"{answer.headers} {answer.body.decode()}")
    if scenario == "names" and (language in STREAMING or not stream):
        assert answer.status == 200


def test_nothing_of_a_key_comes_back_through_another_server_of_this_contract(house: House) -> None:
    told = {"error": {"message": KEY, "type": KEY, "code": "invalid_value", "param": KEY}}
    assert told["error"]["param"].isidentifier()
    for stream in (False, True):
        asked = {"model": "andthen/any", "prompt": PROMPT, "stream": stream}
        answer = house.server.ask("POST", "/v1/completions", asked)
        clean(f"{answer.headers} {answer.body.decode()}")


def test_nothing_of_a_key_is_left_behind(house: House) -> None:
    for language in LANGUAGES:
        for scenario in ("401", "reason", "names", "event"):
            answer = house.ask(language, scenario)
    house.row(answer)
    clean(house.server.log)
    clean(house.server.ask("GET", "/metrics").body.decode())
    for (table,) in house.rows("SELECT name FROM sqlite_master WHERE type = 'table'"):
        clean("\n".join(map(repr, house.rows(f"SELECT * FROM {table}"))))
