"""What a caller writes stays where it belongs: no header, log line, metric label or call to a vendor is made of it."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.server.running import COMPLETIONS, Running, read_all, running
from tests.upstream.vendor import Playing, Sent, choice, completion, json_reply

CANARY = "x-canary"
SPLITS = {
    "CR LF": f"\r\n{CANARY}: 1",
    "LF": f"\n{CANARY}: 1",
    "CR": f"\r{CANARY}: 1",
    "NEL": f"\x85{CANARY}: 1",
    "line separator": f"\u2028{CANARY}: 1",
    "escape": f"\x1b[2J\x1b]0;{CANARY}\x07",
    "NUL": f"\0{CANARY}",
    "encoded": f"%0d%0a{CANARY}:%201",
    "JSON": f'", "event": "{CANARY}", "x": "',
    "format": f"{{{CANARY}}} %s %(x)s ${{jndi:ldap://{CANARY}}}",
    "label": f'{CANARY}"}} 1\nandthen_forged{{x="',
    "markup": f"<script>{CANARY}</script>",
    "huge": CANARY * 4000,
}
HEADERS = (
    "x-selected-account-id", "idempotency-key", "traceparent", "tracestate", "baggage", "x-request-id", "user-agent",
    "origin", "referer", "cookie", "x-forwarded-for", "cache-control", "accept", "if-none-match", "content-type",
    "host",
)  # fmt: skip


async def play(sent: Sent) -> AsyncIterator[bytes]:
    """Answers `go`; quotes any other prompt wherever an error can."""
    prompt = sent.body["prompt"]
    if prompt == "go":
        yield json_reply(completion(choice(" 1", reason="length")))
    else:
        error = {"message": f"It says {prompt}", "code": prompt, "type": prompt, "param": prompt}
        yield json_reply({"error": error}, 400, x_request_id=prompt.splitlines()[-1][:99])


@pytest.fixture(scope="module")
def vendor() -> Iterator[Playing]:
    with closing(Playing(play)) as playing:
        yield playing


@pytest.fixture(scope="module")
def server(vendor: Playing, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = f"""
cors_origins = ["https://page.example"]
[logs]
level = "debug"
[vendors.openai]
address = "http://127.0.0.1:{vendor.port}/v1"
private = true
key = "K"
language = "openai_completions"
[models."team/m"]
address = "http://127.0.0.1:{vendor.port}/v1"
language = "openai_completions"
model = "m"
"""
    with running(tmp_path_factory.mktemp("injected"), settings) as server:
        for model in ("team/m", "openai/any"):
            assert server.complete("go", model=model).status == 200
        assert len(vendor.vendor.sent) == 2
        yield server


def raw(server: Running, method: str, path: str, body: bytes, *lines: bytes) -> bytes:
    head = [f"{method} {path} HTTP/1.1".encode(), b"host: x", f"x-api-key: {server.key}".encode(), *lines]
    head += [b"content-length: %d" % len(body), b"connection: close"]
    with server.connect() as client:
        client.sendall(b"\r\n".join(head) + b"\r\n\r\n" + body)
        return read_all(client)


def check_reply(reply: bytes) -> None:
    """One reply, whose headers are ours."""
    head, _, _ = reply.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    assert re.fullmatch(rb"HTTP/1\.1 [2-5]\d\d [\w' ]+", status), status
    assert CANARY.encode() not in head.replace(quoted_head(head), b"")
    for line in lines:
        assert re.fullmatch(rb"[a-z0-9-]+: [\x20-\x7e]*", line), line
    assert reply.count(b"HTTP/1.1 ") == 1


def quoted_head(head: bytes) -> bytes:
    """The one header that tells what a caller wrote, percent-encoded."""
    found = re.search(rb"\r\nx-andthen-ignored: [^\r\n]*", head)
    return found[0] if found else b"\0"


def check_told(server: Running, vendor: Playing) -> None:
    """Nothing of it is in the log, the metrics or a vendor's headers."""
    log = server.log
    assert CANARY not in log
    for line in log.splitlines():
        assert isinstance(json.loads(line), dict), line
    assert CANARY.encode() not in server.ask("GET", "/metrics").body
    for sent in vendor.vendor.sent:
        assert CANARY not in json.dumps([sent.path, sent.headers])
    vendor.vendor.sent.clear()


@pytest.mark.parametrize("text", SPLITS.values(), ids=SPLITS.keys())
def test_what_stands_in_a_header(server: Running, vendor: Playing, text: str) -> None:
    body = json.dumps({"model": "team/m", "prompt": "go", "max_tokens": 1}).encode()
    for name in HEADERS:
        for coding in ("utf-8", "latin-1"):
            line = f"{name}: a{text}".encode(coding, "replace")
            check_reply(raw(server, "POST", COMPLETIONS, body, line))
    check_told(server, vendor)


@pytest.mark.parametrize("text", SPLITS.values(), ids=SPLITS.keys())
def test_what_stands_in_a_body(server: Running, vendor: Playing, text: str) -> None:
    good: dict[str, Any] = {"model": "team/m", "prompt": "go", "max_tokens": 1}
    wrong = (
        {"prompt": text}, {"user": text}, {"user": text[:256]}, {text: 1}, {"model": text}, {"model": f"local/{text}"},
        {"model": f"openai/{text}"}, {"model": f"{text}/x"}, {"stop": [text]}, {"seed": text},
        {"response_format": {"type": text}}, {"logit_bias": {text: 1}}, {"stream_options": {text: text}},
    )  # fmt: skip
    for fields in wrong:
        check_reply(raw(server, "POST", COMPLETIONS, json.dumps(good | fields).encode()))
    for path in ("/tokenize", "/detokenize"):
        check_reply(raw(server, "POST", path, json.dumps({"model": text, "prompt": text, "tokens": text}).encode()))
    check_told(server, vendor)


@pytest.mark.parametrize("text", SPLITS.values(), ids=SPLITS.keys())
def test_what_stands_in_a_path_or_a_method(server: Running, vendor: Playing, text: str) -> None:
    quoted = urllib.parse.quote(text)
    for path in (
        f"/{quoted}", f"/v1/models/{quoted}", f"/v1/models/local/{quoted}", f"/admin/keys/{quoted}",
        f"/v1/models?{quoted}={quoted}", f"/tokenizer_info?model={quoted}", f"/admin/usage?{quoted}",
    ):  # fmt: skip
        check_reply(raw(server, "GET", path, b""))
    for path in (f"/{text}", f"/v1/models/{text}"):
        check_reply(raw(server, "GET", path.encode().decode("latin-1"), b""))
    check_reply(raw(server, f"GET{text.split(':')[0]}".encode("ascii", "replace").decode(), "/", b""))
    check_told(server, vendor)
