"""Settings read again while the server runs: whole or not at all, on every worker, and under no one's feet."""

from __future__ import annotations

import asyncio
import http.client
import os
import pty
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import fields, replace

from andthen.config import SECTIONS, load
from andthen.reload import RestartNeeded, check_live
from andthen.server.renewal import Offers, offered
from andthen.server.worker import LiveSettings
from tests.cli.running import run
from tests.server.running import Running, read_all, read_until, running

COUNT = '[models."local/count"]\npath = "count.gguf"\n'
SEVERAL = 24
"""So many connections that both of two workers serve some."""


@pytest.fixture(params=[1, 2], ids=["alone", "two workers"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "count.gguf").write_bytes(b"GGUF")
    with running(home, f"workers = {request.param}\n{COUNT}") as server:
        server.until(lambda: len(server.events("serving")) == request.param, "all serve")
        yield server


def write(server: Running, more: str, port: int = 0) -> None:
    """Other settings, but for the number of workers."""
    workers = len({line["place"] for line in server.events("serving")})
    (server.home / "andthen.toml").write_text(f"[server]\nport = {port}\nworkers = {workers}\n{more}")


def statuses(server: Running, model: str) -> set[int]:
    return {server.complete("go", model=model, max_tokens=1).status for _ in range(SEVERAL)}


def test_what_is_new_works_at_once_and_what_runs_goes_on(server: Running) -> None:
    assert statuses(server, "team/new") == {404}
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    kept.request("GET", "/healthz")
    kept.getresponse().read()
    connection = kept.sock
    with server.sent("slow", "connection: close", stream=True, max_tokens=25) as client:
        received = read_until(client, b'" 1"')
        write(
            server,
            'done_frame = "never"\n[limits]\nmax_stops = 9\n'
            f'{COUNT}[models."team/new"]\nalias = "local/count"\n[prices."local/count"]\nprompt = 3\ncompletion = 5\n',
        )
        done = run(server.home, "reload")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"reloaded {server.home / 'andthen.toml'}\n"
        assert statuses(server, "team/new") == {200}
        assert server.complete("go", model="team/new", stop=list("abcdefghi")).status == 200
        assert b"[DONE]" not in server.complete("go", stream=True).body
        price = server.ask("GET", "/v1/models/team/new").json["price"]
        assert (price["prompt"], price["completion"]) == ("3", "5")
        received += read_all(client)
    assert b'" 25"' in received
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), "under the settings that it began with"
    kept.request("GET", "/healthz")
    assert kept.getresponse().status == 200
    assert kept.sock is connection
    kept.close()
    assert not server.events("process_died")


def test_what_is_no_longer_there_is_gone(server: Running) -> None:
    alias = '[models."team/old"]\nalias = "local/count"\n'
    write(server, COUNT + alias)
    assert run(server.home, "reload").returncode == 0
    assert statuses(server, "team/old") == {200}
    write(server, COUNT)
    assert run(server.home, "reload").returncode == 0
    assert statuses(server, "team/old") == {404}


@pytest.mark.parametrize(
    ("more", "line", "why"),
    [
        (f'{COUNT}[models."team/new"]\nalias = "local/nobody"\n', 7, "no such model is configured"),
        ("max_stops = 9", 5, "no setting `max_stops`"),
        ("x = = 1", 5, "Invalid value"),
        (f'{COUNT}[prices."local/count"]\nprompt = -1\ncompletion = 5\n', 8, "must be an amount"),
    ],
)
def test_a_file_that_is_wrong_changes_nothing_and_is_told(server: Running, more: str, line: int, why: str) -> None:
    write(server, 'done_frame = "never"\n' + more)
    done = run(server.home, "reload")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: nothing was changed: {server.home / 'andthen.toml'}")
    assert f"line {line}" in done.stderr
    assert why in done.stderr
    assert {b"[DONE]" in server.complete("go", stream=True).body for _ in range(SEVERAL)} == {True}
    (told,) = server.events("not_reloaded")
    assert (told["level"], told["reason"]) == ("error", done.stderr.removeprefix("Error: ").rstrip("\n"))
    assert not server.events("reloaded")


def test_what_only_a_start_can_change_is_named_and_keeps_the_rest_from_changing(server: Running) -> None:
    (server.home / "more.gguf").write_bytes(b"GGUF")
    more = '[models."local/more"]\npath = "more.gguf"\n'
    write(
        server,
        f'done_frame = "never"\n[engine]\nthreads = 1\n[books]\nredis_gone = "open"\n{COUNT}{more}',
        port=20_001,
    )
    done = run(server.home, "reload")
    assert (done.returncode, done.stdout) == (1, "")
    named = '[server] port, [models."local/more"], [engine] threads, [books] redis_gone. Nothing was changed'
    assert done.stderr.startswith(f"Error: restart to change {named}")
    assert b"[DONE]" in server.complete("go", stream=True).body
    write(server, f'done_frame = "never"\n{COUNT}')
    assert run(server.home, "reload").returncode == 0
    assert b"[DONE]" not in server.complete("go", stream=True).body


def test_a_signal_does_the_same(server: Running) -> None:
    write(server, f'[logs]\nlevel = "warning"\n{COUNT}[models."team/new"]\nalias = "local/count"\n')
    server.process.send_signal(signal.SIGHUP)
    server.until(lambda: statuses(server, "team/new") == {200}, "the alias is known")
    told = len(server.events("request"))
    server.complete("go")
    write(server, "[[")
    server.process.send_signal(signal.SIGHUP)
    server.until(lambda: bool(server.events("not_reloaded")), "it is refused")
    assert len(server.events("request")) == told, "the log's level too"
    assert server.process.poll() is None


def test_connections_that_are_there_get_the_bounds_that_are_new(server: Running) -> None:
    with server.connect() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        read_until(client, b"}")
        write(server, f"header_bytes = 1024\nbody_bytes = 1024\n{COUNT}")
        assert run(server.home, "reload").returncode == 0
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-long: " + b"x" * 2000 + b"\r\n\r\n")
        assert b" 431 " in read_until(client, b"}")
    assert server.complete("x" * 2000).status == 413


def test_a_worker_that_dies_afterwards_starts_with_what_is_new(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "count.gguf").write_bytes(b"GGUF")
    with running(home, f"workers = 2\n{COUNT}") as server:
        server.until(lambda: len(server.events("serving")) == 2, "both serve")
        write(server, f'{COUNT}[models."team/new"]\nalias = "local/count"\n')
        assert run(home, "reload").returncode == 0
        for place in ("worker-0", "worker-1"):
            os.kill(server.pid(place), signal.SIGKILL)
        server.until(lambda: len(server.events("serving")) == 4, "both are back")
        assert statuses(server, "team/new") == {200}


def test_the_command_finds_only_servers_that_live(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    done = run(home, "reload")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no server runs on the state in {home}" in done.stderr
    with running(home) as server:
        (control,) = home.glob("serve-*.socket")
        assert control.stat().st_mode & 0o777 == 0o600
        server.process.kill()
        server.process.wait()
        assert run(home, "reload").returncode == 1
        assert not control.exists()
    with running(other) as server:
        assert server.stop() == 0
        assert not [*other.glob("serve-*.socket")]


def test_a_terminal_that_closes_stops_the_server(tmp_path: Path) -> None:
    (tmp_path / "andthen.toml").write_text("[server]\nport = 0\n")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.server.scripted_server", str(tmp_path)],
            os.environ | {"TMPDIR": str(tmp_path)},
        )
    try:
        shown = b""
        while not re.search(rb"^[0-9]+\r$", shown, re.MULTILINE):  # the port
            shown += os.read(terminal, 65_536)
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not [*tmp_path.glob("serve-*.socket")]


def taking(taken: list[bytes]) -> Callable[[bytes], Callable[[], None]]:
    return lambda settings: lambda: taken.append(settings)


async def test_none_takes_what_one_can_not(tmp_path: Path) -> None:
    taken: list[bytes] = []

    def wrong(_settings: bytes) -> Callable[[], None]:
        raise ValueError("not these")

    async with Offers(tmp_path / "good", taking(taken)), Offers(tmp_path / "bad", wrong):
        with pytest.raises(OSError, match="did not take"):
            async with AsyncExitStack() as offers:
                for name in ("good", "bad"):
                    await offers.enter_async_context(offered(tmp_path / name, b"settings"))
        await asyncio.sleep(0)
        assert taken == []
        async with offered(tmp_path / "good", b"others") as take:
            assert taken == []
            await take()
        assert taken == [b"others"]


async def test_a_worker_that_is_about_to_be_there_is_waited_for(tmp_path: Path) -> None:
    taken: list[bytes] = []

    async def offer() -> None:
        async with offered(tmp_path / "late", b"settings") as take:
            await take()

    offering = asyncio.create_task(offer())
    await asyncio.sleep(0.1)
    async with Offers(tmp_path / "late", taking(taken)):
        await offering
    assert taken == [b"settings"]


SETTINGS = [(section, field.name) for section, kind in SECTIONS.items() for field in fields(kind)]


@pytest.mark.parametrize(("section", "name"), [one for one in SETTINGS if one != ("engine", "models")])
def test_a_setting_is_taken_or_named(section: str, name: str, tmp_path: Path) -> None:
    """Also one that will be made one day."""
    config = load({"ANDTHEN_HOME": str(tmp_path)})
    other = replace(config, **{section: Differing(getattr(config, section), name)})
    if hasattr(LiveSettings, section) and name not in ("host", "port", "workers"):
        check_live(config, other)
    else:
        with pytest.raises(RestartNeeded, match=rf"^restart to change \[{section}\] {name}\. "):
            check_live(config, other)


class Differing:
    """A section, but for one setting."""

    def __init__(self, section: Struct, name: str) -> None:
        self._section = section
        self._name = name

    def __getattr__(self, name: str) -> object:
        return object() if name == self._name else getattr(self._section, name)
