"""`andthen serve`, as it is started and what it says; the keys of a running server."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from andthen.cli.serve import banner
from tests.cli.running import environment, run
from tests.serving import ANDTHEN, free_port

START_S = 30

Start = Callable[..., tuple[subprocess.Popen[str], list[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server and gives it with the lines of its banner, once it serves."""
    started: list[subprocess.Popen[str]] = []

    def serve(*arguments: str) -> tuple[subprocess.Popen[str], list[str]]:
        process = subprocess.Popen(
            [ANDTHEN, "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(tmp_path),
        )
        started.append(process)
        assert process.stdout is not None
        lines: list[str] = []
        while not (lines and lines[-1].startswith("curl ")):
            line = process.stdout.readline()
            assert line, process.communicate()
            lines.append(line.removesuffix("\n"))
        return process, lines

    yield serve
    for process in started:
        process.terminate()
        process.communicate(timeout=START_S)


def curl(lines: list[str], key: str | None = None) -> subprocess.CompletedProcess[str]:
    """Pastes the banner's last line into a shell."""
    return subprocess.run(
        ["bash", "-c", lines[-1] + " --silent --show-error --write-out '\\n%{http_code}'"],
        env={"PATH": "/usr/bin:/bin", "KEY": key or "", "no_proxy": "*"},
        capture_output=True,
        text=True,
        check=True,
    )


def test_the_first_start_shows_a_key_and_a_line_to_paste_that_works(start: Start, tmp_path: Path) -> None:
    process, lines = start("--port", "0")
    done = curl(lines)
    body, status = done.stdout.rsplit("\n", 1)
    assert status == "200", done
    assert json.loads(body)["model"] == "local/tale"
    assert len([line for line in lines if "at-" in line]) == 2
    assert len(lines) < 12
    process.send_signal(signal.SIGINT)
    out, log = process.communicate(timeout=START_S)
    assert process.returncode == 0
    assert out.strip() == ""
    assert "at-" not in log
    assert all(json.loads(line)["event"] for line in log.splitlines())


def test_a_later_start_shows_how_to_make_a_key(start: Start, tmp_path: Path) -> None:
    made = run(tmp_path, "keys", "create", "--name", "mine").stdout.strip()
    _, lines = start("--port", "0")
    (how,) = [line for line in lines if line.startswith("A key: ")]
    assert not [line for line in lines if "at-" in line]
    key = subprocess.run(
        ["bash", "-c", how.removeprefix("A key: ").replace("NAME", "other") + '; echo "$KEY"'],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    for secret in (key, made):
        assert curl(lines, secret).stdout.endswith("\n200")
    assert curl(lines, "at-wrong").stdout.endswith("\n401")


def test_a_key_is_in_force_at_once_and_its_end_within_a_second(start: Start, tmp_path: Path) -> None:
    _, lines = start("--port", "0")
    url = lines[-1].split()[1].removesuffix("/v4/beta/completions")
    key = run(tmp_path, "keys", "create", "--name", "ci").stdout.strip()
    request = urllib.request.Request(f"{url}/v1/models", headers={"x-api-key": key})
    with urllib.request.urlopen(request, timeout=START_S) as reply:
        assert reply.status == 200
    run(tmp_path, "keys", "revoke", "ci")
    ended_s = time.monotonic()
    with pytest.raises(urllib.error.HTTPError) as caught:
        while True:
            with urllib.request.urlopen(request, timeout=START_S):
                time.sleep(0.02)
    assert time.monotonic() - ended_s < 1
    assert caught.value.code == 401
    caught.value.close()


def test_a_port_that_was_asked_for_and_is_taken_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run(home, "serve", "--port", str(taken.getsockname()[1]))
    assert (done.returncode, done.stdout) == (1, "")
    assert "taken" in done.stderr
    assert "--port" in done.stderr
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "Error: --workers must be an integer, at least 1"),
        (["--port", "70000"], "Error: --port must be an integer"),
        (["--model", "x=/nowhere.gguf"], "/nowhere.gguf can't be read"),
        (["--config", "/nowhere.toml"], "/nowhere.toml: there is no such settings file"),
    ],
)
def test_a_wrong_setting_is_an_error_before_anything_is_written(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    home = tmp_path / "home"
    done = run(home, "serve", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not home.exists()


def test_the_host_can_be_chosen(start: Start) -> None:
    port = free_port()
    _, lines = start("--host", "localhost", "--port", str(port))
    assert f"http://127.0.0.1:{port}/" in lines[-1]


def test_the_line_to_paste_is_one_shell_command() -> None:
    for key in ("at-x", None):
        (line,) = [line for line in banner("http://[::1]:1", "local/tale", key).splitlines() if line.startswith("curl")]
        assert shlex.split(line)[-1] == '{"model": "local/tale", "prompt": "Once upon a time", "max_tokens": 64}'
    assert "other addresses" in banner("http://127.0.0.1:8001", "local/tale", None, open_to_all=True)
    assert re.search("port 8000 is taken", banner("http://127.0.0.1:8001", "local/tale", None, moved=True))


def test_other_names_are_told_and_how_many_are_left_out_shows() -> None:
    def told(*more: str) -> str:
        return banner(
            "http://127.0.0.1:1", "local/tale", None, more=more, command="ANDTHEN_HOME=/x andthen"
        ).splitlines()[1]

    assert told() == ""
    assert told("team/any", "openai/…") == "and team/any, openai/…: `ANDTHEN_HOME=/x andthen models` tells"
    assert told(*"abcdefgh").startswith("and a, b, c, d, e, f, …: ")


def test_more_keys_are_made_where_this_server_finds_them(start: Start) -> None:
    _, lines = start("--port", "0")
    (first,) = [line.split()[-1] for line in lines if line.startswith("Your key")]
    (line,) = [line.partition(": ")[2] for line in lines if line.startswith("More keys: ")]
    made = subprocess.run(
        ["bash", "-c", line], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert curl([lines[-1].replace(first, made.stdout.strip())]).stdout.endswith("\n200")
