"""The cases of the battery beside the vendors' own clients, each in an environment of its own: what a client's types
say of the fields that we send, what it would send for them itself, and what it reads of the reply.

`make test` makes the environments. What differs and why is in `known.toml`; whatever differs otherwise fails.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace

from andthen.contract.events import Event, Finished, Text, Usage
from tests.clients.test_clients import TIMEOUT_S, python
from tests.wire.test_battery import Run, inherited_cases, load, opened, own_cases, run

HERE = Path(__file__).parent
KNOWN: dict[str, dict[str, str]] = tomllib.loads((HERE / "known.toml").read_text())
OWN = {
    "anthropic": "anthropic",
    "cohere": "cohere",
    "fireworks": "fireworks-ai",
    "gemini": "google-genai",
    "groq": "groq",
    "mistral": "mistralai",
    "ollama": "ollama",
    "together": "together",
    "vertex": "google-genai",
}
"""Prefix → the client that its vendor publishes. OpenAI's stands for all others: it is what they tell to use."""
BY_BOTOCORE = {"bedrock", "bedrock_converse"}
LAYOUT_OF_ITS_OWN = "together"
REASONS = {
    "stop": (
        *("stop", "eos", "end_turn", "stop_sequence", "STOP", "COMPLETE", "STOP_SEQUENCE"),
        *("tool_calls", "tool_use", "TOOL_CALL"),
    ),
    "length": ("length", "model_length", "max_tokens", "model_context_window_exceeded", "MAX_TOKENS"),
    "content_filter": ("content_filter", "refusal", "SAFETY", "sensitive"),
}
NO_STREAM = ("stream", False)
NOT_NAMED = re.compile(r"(\w+): not named")


class Candidate(Struct):
    text: str = ""
    tokens: list[tuple[str, float | None]] = []
    reason: str | None = None


class Exchange(Struct, frozen=True):
    name: str
    sdk: str
    run: Run

    @property
    def call(self) -> Any:
        return self.run.wire.encode(self.run.request, self.run.target, streams=self.run.part.streams)

    def line(self) -> str:
        call, reply = self.call, self.run.case.reply
        told = {"url": call.url, "key": self.run.target.key, "body": json.loads(call.body), "streams": call.streams}
        body = base64.b64encode(reply.body()).decode()
        return json.dumps(told | {"status": reply.status, "headers": reply.headers, "reply": body})


@cache
def exchanges() -> dict[str, Exchange]:
    found = {}
    for folder, name in (map(str, case.values) for case in own_cases()):
        prefix = load(folder, name).request["model"].partition("/")[0]
        if prefix not in BY_BOTOCORE:
            sdk = OWN.get(prefix, "anthropic" if folder == "anthropic_messages" else "openai")
            found[f"{folder}-{name}"] = Exchange(f"{folder}-{name}", sdk, opened(folder, name))
    for language, name, model in (map(str, case.values) for case in inherited_cases()):
        prefix = model.partition("/")[0]
        told = load(language, name)
        if prefix in OWN and prefix != LAYOUT_OF_ITS_OWN and not told.request["model"].startswith(f"{prefix}/"):
            told = replace(told, environment=load(prefix, "plain").environment)
            found[f"{prefix}-{name}"] = Exchange(f"{prefix}-{name}", OWN[prefix], run(told, language, model))
    return found


@cache
def answers(sdk: str) -> dict[str, dict[str, Any]]:
    """Exchange → what the client made of it. One process for all of a client's."""
    mine = [one for one in exchanges().values() if one.sdk == sdk]
    script = HERE / "scripts" / f"{sdk.replace('-', '_')}_.py"
    lines = "\n".join([*(one.line() for one in mine), spoilt(mine)])
    command: list[str | Path] = [python(sdk), "-W", "ignore", script]
    done = subprocess.run(command, input=lines, env={}, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip([*(one.name for one in mine), "spoilt"], map(json.loads, done.stdout.splitlines()), strict=True))


def spoilt(mine: list[Exchange]) -> str:
    """A client's plain exchange with a field that no vendor has, and values that no reply has."""
    one = next(one for one in mine if one.name.endswith("-plain") and one.run.case.reply.json)
    told = json.loads(one.line())
    reply = {name: [[value]] for name, value in one.run.case.reply.json.items()}
    told["body"]["no_such_field"] = 1
    told["reply"] = base64.b64encode(json.dumps(reply).encode()).decode()
    return json.dumps(told)


@cache
def differences(name: str) -> frozenset[str]:
    one = exchanges()[name]
    return frozenset(different(one, answers(one.sdk)[name]))


def different(one: Exchange, answer: dict[str, Any]) -> set[str]:
    found = {f"request: {said}" for said in answer["against_request"]} | unlike_what_it_sends(one, answer)
    events, error = one.run.outcome([one.run.case.reply.body()])
    if one.run.case.reply.status != 200:
        return found if answer["error"] else found | {"raises nothing"}
    if error is not None:
        return found
    if answer["error"]:
        return found | {f"raises {answer['error'].partition(':')[0]}"}
    return found | {f"reply: {said}" for said in answer["against_reply"]} | unlike_what_it_reads(one, answer, events)


def unlike_what_it_sends(one: Exchange, answer: dict[str, Any]) -> set[str]:
    """A client sends a default of `stream` that we leave out, and can't be told a field that it doesn't name."""
    (sent,) = answer["sent"]
    unnamed = {match[1] for said in answer["against_request"] if (match := NOT_NAMED.fullmatch(said))}

    def comparable(body: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in body.items() if name not in unnamed and (name, value) != NO_STREAM}

    call = one.call
    headers = sent["headers"]
    found = {f"sends {name}: {headers.get(name)}" for name, value in call.headers if headers.get(name) != value}
    if sent["url"] != call.url:
        found.add(f"sends to {sent['url']}")
    if comparable(sent["body"]) != comparable(json.loads(call.body)):
        found.add("sends another body")
    return found


def unlike_what_it_reads(one: Exchange, answer: dict[str, Any], events: list[Event]) -> set[str]:
    ours, usage = heard(events, one.run.request.n)
    theirs = {int(index): read for index, read in answer["candidates"].items() if read["reasons"] or read["text"]}
    found = {f"reads another {name}" for name, count in answer["usage"].items() if usage.get(name) != count}
    if usage and not answer["usage"]:
        found.add("reads no usage")
    if ours.keys() != theirs.keys():
        found.add("reads other candidates")
    for index in ours.keys() & theirs.keys():
        found |= unlike_one_candidate(ours[index], theirs[index], echo=one.run.request.echo)
    return found


def unlike_one_candidate(ours: Candidate, theirs: dict[str, Any], *, echo: bool) -> set[str]:
    """Of an echo, what was generated: what is before it is compared with the prompt itself, in the cases."""
    found = set[str]()
    text, tokens = theirs["text"], [(token.removeprefix("bytes:"), logprob) for token, logprob in theirs["tokens"]]
    if echo:
        text, tokens = text[max(0, len(text) - len(ours.text)) :], tokens[max(0, len(tokens) - len(ours.tokens)) :]
    if text != ours.text:
        found.add("reads another text")
    if ours.tokens != tokens:
        found.add("reads other tokens" if theirs["tokens"] else "reads no tokens")
    if not theirs["reasons"] or theirs["reasons"][-1] not in REASONS[ours.reason or ""]:
        found.add("reads another finish reason")
    return found


def heard(events: list[Event], n: int) -> tuple[dict[int, Candidate], dict[str, int | None]]:
    candidates: dict[int, Candidate] = {}
    usage: dict[str, int | None] = {}
    for event in events:
        if isinstance(event, Text | Finished):
            candidate = candidates.setdefault(event.prompt * n + event.candidate, Candidate())
            if isinstance(event, Text):
                candidate.text += event.text
                candidate.tokens += [(token.text.removeprefix("bytes:"), token.logprob) for token in event.tokens]
            else:
                candidate.reason = event.reason
        elif isinstance(event, Usage):
            usage = {"prompt": event.prompt_tokens, "completion": event.completion_tokens}
            usage |= {"cached": event.cached_tokens, "reasoning": event.reasoning_tokens}
    return candidates, usage


def of_the_client(one: Exchange) -> set[str]:
    """Known of all of a client's exchanges, whether they show it or not."""
    prefix = one.run.request.model.partition("/")[0]
    return {*KNOWN.get(one.sdk, {}), *KNOWN.get(f"{one.sdk} at {prefix}", {})}


@pytest.mark.parametrize("name", exchanges())
def test_a_vendors_own_client_sends_and_reads_the_same(name: str) -> None:
    one = exchanges()[name]
    found = {*differences(name)}
    if one.sdk == "openai" and one.run.target.vendor not in ("OpenAI", "Example"):
        # Its types are of OpenAI's own parameters: other servers' go through `extra_body`.
        found = {said for said in found if not said.endswith((": not named", ": Extra inputs are not permitted"))}
    assert found - of_the_client(one) == KNOWN.get(name, {}).keys()


@pytest.mark.parametrize("sdk", sorted({"openai", *OWN.values()}))
def test_what_is_not_a_vendors_is_seen(sdk: str) -> None:
    answer = answers(sdk)["spoilt"]
    assert any("no_such_field" in said for said in answer["against_request"])
    assert answer["against_reply"] or answer["error"]


@pytest.mark.parametrize("table", KNOWN)
def test_what_is_known_is_still_so(table: str) -> None:
    mine = [
        one.name
        for one in exchanges().values()
        if table in (one.name, one.sdk) or table == f"{one.sdk} at {one.run.request.model.partition('/')[0]}"
    ]
    assert KNOWN[table].keys() <= {said for name in mine for said in differences(name)}
