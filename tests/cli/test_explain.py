"""`andthen explain`: the plan and the calls, and nothing sent."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from andthen.vendors.rows import vendors
from tests.cli.running import run

SECRET = "hunter2"
TOML = """
[models."team/chat"]
address = "http://127.0.0.1:9/v1"
language = "openai_chat"
model = "chatty"
key_variable = "TEAM_KEY"
headers = { X-Team = "red" }

[models."team/text"]
address = "http://127.0.0.1:9/v1"
language = "openai_completions"
takes = { n = false, seed = "it forgot how" }

[models."team/any"]
deployments = [{ model = "team/text", weight = 3 }, { model = "team/chat", order = 1 }]

[models."team/bare"]
alias = "team/text"
"""


def explain(home: Path, request: object, *options: str) -> subprocess.CompletedProcess[str]:
    (home / "andthen.toml").write_text(TOML)
    stdin = request if isinstance(request, bytes) else json.dumps(request).encode()
    return run(home, "explain", *options, stdin=stdin, variables={"TEAM_KEY": SECRET})


def words(shown: str) -> dict[str, str]:
    plan = shown.split("\n\n")[1]
    return {line.split()[0]: line.split()[1] for line in plan.splitlines()}


def body(call: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(call.split("\n\n", 1)[1])
    return found


def test_the_plan_and_the_call_are_told_with_secrets_blanked(tmp_path: Path) -> None:
    done = explain(tmp_path, {"prompt": "Once", "max_tokens": 5, "temperature": 0.5}, "--model", "team/chat")
    assert (done.returncode, done.stderr) == (0, "")
    assert words(done.stdout) == {"prompt": "message", "max_tokens": "native", "temperature": "native"}
    _, call = done.stdout.split("--- call 1 of 1")
    assert "POST http://127.0.0.1:9/v1/chat/completions" in call
    assert "authorization: Bearer ***" in call
    assert "x-team: ***" in call
    assert SECRET not in done.stdout
    assert "red" not in done.stdout
    sent = body(call)
    assert (sent["model"], sent["temperature"]) == ("chatty", 0.5)
    assert sent["messages"] == [{"role": "user", "content": "Once"}]
    assert not list(tmp_path.glob("*.db"))


def test_every_call_of_a_request_is_told(tmp_path: Path) -> None:
    done = explain(tmp_path, {"model": "team/text", "prompt": ["a", "b"], "n": 2})
    assert words(done.stdout)["n"] == "fan-out"
    calls = done.stdout.split("--- call ")[1:]
    assert len(calls) == 2
    assert all(body(call)["prompt"] == ["a", "b"] for call in calls)


def test_a_refusal_is_told_for_each_parameter_and_is_exit_code_2(tmp_path: Path) -> None:
    request = {"prompt": "a", "suffix": "b", "seed": 1, "n": 2}
    done = explain(tmp_path, request, "--model", "team/text")
    assert done.returncode == 2
    assert words(done.stdout) == {"prompt": "native", "n": "fan-out", "seed": "refused", "suffix": "refused"}
    errors = [json.loads(line[4:])["error"] for line in done.stdout.splitlines() if line.startswith("400 ")]
    assert [error["param"] for error in errors] == ["seed", "suffix"]
    assert "because" not in errors[0]["message"]
    assert "it forgot how" in errors[0]["message"]
    assert "team/chat" in errors[0]["message"]
    assert "local/tale" in errors[1]["message"]
    assert "--- call" not in done.stdout
    assert done.stderr.startswith("Error: `seed` is not taken by team/text")


def test_a_name_for_several_is_told_for_each(tmp_path: Path) -> None:
    done = explain(tmp_path, {"prompt": "a", "seed": 1}, "--model", "team/any")
    assert done.returncode == 0
    first, second = done.stdout.split("=== team/any, order ")[1:]
    assert first.startswith("0, weight 3:\nmodel team/text")
    assert "seed    refused" in first
    assert second.startswith("1, weight 1:\nmodel team/chat")
    assert "--- call 1 of 1" in second


def test_an_alias_is_told_as_the_model_it_stands_for(tmp_path: Path) -> None:
    assert "model team/text" in explain(tmp_path, {"prompt": "a"}, "--model", "team/bare").stdout


def test_a_local_model_calls_nobody(tmp_path: Path) -> None:
    done = explain(tmp_path, {"prompt": "a", "n": 2}, "--model", "tale")
    assert words(done.stdout) == {"prompt": "native", "n": "native"}
    assert done.stdout.endswith("Nothing goes upstream: the embedded engine answers.\n")


def test_a_reply_that_needs_no_model_calls_nobody(tmp_path: Path) -> None:
    done = explain(tmp_path, {"prompt": "a", "max_tokens": 0}, "--model", "team/chat")
    assert done.stdout.endswith("No call is made: the reply needs nothing of the model.\n")


def test_a_call_may_be_printed_as_a_curl_command(tmp_path: Path) -> None:
    done = explain(tmp_path, {"prompt": "it's\u009b1m"}, "--model", "team/chat", "--curl")
    line = next(line for line in done.stdout.splitlines() if line.startswith("curl "))
    command = shlex.split(line)
    assert command[:4] == ["curl", "-X", "POST", "http://127.0.0.1:9/v1/chat/completions"]
    assert json.loads(command[-1])["messages"][0]["content"] == "it's\u009b1m"
    assert "\u009b" not in done.stdout


def test_no_vendors_call_shows_its_secrets(tmp_path: Path) -> None:
    variables: dict[str, str] = {}
    for row in vendors().values():
        for name in re.findall(r"\{(\w+)\}", row.address):
            variables[name] = "https://x.example" if row.address.startswith("{") else "eu-west-1"
        for word in row.key_variable.split():
            variables[word.removesuffix("?")] = f"{SECRET}-{len(variables)}"
    tables = [f"[vendors.{prefix}]\n" for prefix, row in vendors().items() if not row.key_variable]
    shares = ", ".join(f"{{ model = '{prefix}/any' }}" for prefix in vendors())
    (tmp_path / "andthen.toml").write_text("".join(tables) + f"[models.'team/all']\ndeployments = [{shares}]\n")
    request = json.dumps({"model": "team/all", "prompt": "Once", "max_tokens": 5}).encode()
    done = run(tmp_path, "explain", stdin=request, variables=variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert SECRET not in done.stdout
    for told in done.stdout.split("=== team/all")[1:]:
        assert "\nPOST http" in told, told
        assert "***" in told or "http://127.0.0.1" in told, told


@pytest.mark.parametrize(
    ("request_body", "options", "message"),
    [
        (b"{", ["--model", "team/chat"], "not valid JSON"),
        (b"[]", ["--model", "team/chat"], "not a JSON object"),
        ({"prompt": "a"}, [], "`model` is missing"),
        (
            {"prompt": "a"},
            ["--model", "openai/x"],
            "openai/x is not configured (OpenAI is switched on by OPENAI_API_KEY): `andthen models`",
        ),
        ({"prompt": "a", "n": 0}, ["--model", "team/chat"], "`n` must be"),
    ],
)
def test_a_request_that_is_none_is_exit_code_2(
    tmp_path: Path, request_body: object, options: list[str], message: str
) -> None:
    done = explain(tmp_path, request_body, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
