"""`andthen complete`: the contract in a terminal, on the real engine."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from andthen.cli.complete import complete
from andthen.config import HOUSE_MODEL, load
from andthen.contract.fields import completion_fields
from andthen.contract.limits import Limits
from tests.cli.running import environment, run
from tests.serving import ANDTHEN

ONCE = "Once upon a time"


def test_every_field_of_the_contract_is_an_option() -> None:
    options = {parameter.name: parameter for parameter in complete.params}
    for field in completion_fields(Limits()):
        if field.name not in ("model", "prompt"):
            assert getattr(options[field.name], "help", "").startswith(field.text)


def test_the_text_is_what_the_response_holds(tmp_path: Path) -> None:
    text = run(tmp_path, "complete", ONCE, "--seed", "7", "--max-tokens", "8")
    reply = run(tmp_path, "complete", ONCE, "--seed", "7", "--max-tokens", "8", "--json")
    assert (text.returncode, text.stderr, reply.returncode, reply.stderr) == (0, "", 0, "")
    (choice,) = json.loads(reply.stdout)["choices"]
    assert text.stdout.removesuffix("\n") == choice["text"].removesuffix("\n")
    assert choice["finish_reason"] in ("stop", "length")
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_engine(tmp_path: Path) -> None:
    counts = ["-n", "2", "--best-of", "3", "--logprobs", "2", "--max-tokens", "3", "--temperature", "0"]
    reply = run(tmp_path, "complete", ONCE, *counts, "--echo", "--json", "--logit-bias", '{"5": 100}')
    assert reply.returncode == 0, reply.stderr
    body = json.loads(reply.stdout)
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert all(choice["text"].startswith(ONCE) for choice in body["choices"])
    assert body["choices"][0]["logprobs"]["token_logprobs"][0] is None
    assert len(set(body["choices"][0]["logprobs"]["tokens"][-3:])) == 1
    assert body["usage"]["completion_tokens"] == 9


def test_a_stream_is_printed_as_events(tmp_path: Path) -> None:
    options = ["--json", "--stream", "--max-tokens", "2", "--stream-options", '{"include_usage": true}']
    done = run(tmp_path, "complete", ONCE, *options)
    frames = [json.loads(frame.removeprefix("data: ")) for frame in done.stdout.strip().split("\n\n")]
    assert frames[-1]["usage"]["completion_tokens"] == 2
    assert [frame["choices"][0]["finish_reason"] for frame in frames[:-1]][-1] == "length"


def test_prompts_come_from_arguments_standard_input_and_json(tmp_path: Path) -> None:
    options = ["--max-tokens", "0", "--echo", "--json"]

    def echoed(*arguments: str, stdin: bytes = b"") -> list[str]:
        done = run(tmp_path, "complete", *arguments, *options, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return [choice["text"] for choice in json.loads(done.stdout)["choices"]]

    assert echoed("one", "two") == ["one", "two"]
    assert echoed("-", stdin="žluťoučký\n\n".encode()) == ["žluťoučký\n"]
    assert echoed("--prompt-json", '["one", "two"]') == ["one", "two"]
    assert len(echoed("--prompt-json", "[[1, 2], [3]]")) == 2


def test_several_choices_stand_one_after_another(tmp_path: Path) -> None:
    done = run(tmp_path, "complete", "one", "two", "--max-tokens", "0", "--echo", "-n", "2")
    assert done.stdout == "--- 0\none\n--- 1\none\n--- 2\ntwo\n--- 3\ntwo\n"


def test_a_model_file_can_be_named(tmp_path: Path) -> None:
    path = load({}).engine.models[HOUSE_MODEL].path
    done = run(tmp_path, "complete", "x", "--max-tokens", "1", "--json", "--model", f"mine={path}")
    assert json.loads(done.stdout)["model"] == "local/mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--temperature", "9"], "`temperature`"),
        (["x", "--temperature", "hot"], "is not a valid float"),
        (["x", "--logit-bias", "{"], "is not JSON"),
        (["x", "--logprobs", "1"], "add --json"),
        (["x", "--model", "nothing"], "local/nothing is not configured: `andthen models` lists the models"),
        (["x", "--model", "a=/no/where"], "/no/where can't be read"),
        (["x", "--model", "/no/where.gguf"], "a file needs a name: --model NAME=/no/where.gguf"),
        (["x", "--response-format", '{"type": "json_object"}'], "`response_format` is not taken by local/tale"),
        (["x", "--max-tokens", "100000"], "context"),
        (["x", "--prompt-json", "[1]"], "Give a PROMPT"),
        (["--prompt-json", "[99999999]"], "vocabulary"),
        (["-"], "is not UTF-8"),
    ],
)
def test_a_wrong_request_is_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(tmp_path, "complete", *arguments, stdin=b"\xff")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


LONG = ["--max-tokens", "1000", "--ignore-eos", "--seed", "1"]


def test_an_interrupt_ends_cleanly(tmp_path: Path) -> None:
    reader, writer = pty.openpty()
    command: list[str | Path] = [ANDTHEN, "complete", ONCE, *LONG]
    with subprocess.Popen(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment(tmp_path)
    ) as process:
        os.close(writer)
        first = os.read(reader, 100)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    os.close(reader)
    assert first
    assert (process.returncode, errors) == (130, "\n")


def test_text_is_shown_as_it_is_made(tmp_path: Path) -> None:
    with subprocess.Popen(
        [ANDTHEN, "complete", ONCE, *LONG], stdout=subprocess.PIPE, env=environment(tmp_path)
    ) as process:
        assert process.stdout is not None
        pieces = 0
        while os.read(process.stdout.fileno(), 65_536):
            pieces += 1
        assert process.wait(10) == 0
    assert pieces > 10
