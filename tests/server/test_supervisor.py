"""Processes that die and processes that are told to stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from andthen import supervisor
from andthen.gateway.settings import FIRST_PORT, LAST_PORT
from tests.server.running import Running, alive, read_all, read_until, running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "home", "drain_s = 0.6\nstream_open_after_s = 0.5") as server:
        yield server


def error_of(stream: bytes) -> str:
    """The code in the last frame."""
    return str(json.loads(stream.split(b"event: error\ndata: ")[1].split(b"\n\n")[0])["error"]["code"])


def open_sockets(pid: int) -> int:
    count = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed in between
            count += str(file.readlink()).startswith("socket:")
    return count


def left_behind(server: Running) -> list[Path]:
    return list(server.home.glob("andthen-*"))


def test_a_killed_engine_ends_its_requests_honestly_and_comes_back(server: Running) -> None:
    with server.sent("slow", stream=True, max_tokens=1000) as streaming, server.sent("hold") as waiting:
        read_until(streaming, b'" 1"')
        server.until_jobs(2)
        first = server.pid("engine")
        os.kill(first, signal.SIGKILL)
        received = read_all(streaming)
        assert error_of(received) == "engine_restarted"
        assert not received.endswith(b"0\r\n\r\n")
        reply = read_until(waiting, b"}}").lower()
        assert reply.startswith(b"http/1.1 503 ")
        assert b'"code":"engine_restarted"' in reply
        assert b"\r\nretry-after: 1\r\n" in reply
        assert b"\r\nx-should-retry: true\r\n" in reply
    assert server.ask("GET", "/healthz").status == 200
    server.until(server.ready, "the engine is back")
    assert server.complete("go").status == 200
    assert server.pid("engine") != first
    assert not alive(first)
    (died,) = server.events("process_died")
    assert (died["place"], died["by"]) == ("engine", "SIGKILL")
    assert 'andthen_process_deaths_total{process="engine"} 1.0' in server.ask("GET", "/metrics").body.decode()


def test_without_an_engine_the_server_says_so(server: Running) -> None:
    for _ in range(4):  # so often that the next start is some time away
        died = len(server.events("process_died"))
        os.kill(server.pid("engine"), signal.SIGKILL)
        server.until(lambda died=died: len(server.events("process_died")) > died, "it died")  # type: ignore[misc]
        if died < 3:
            server.until(server.ready, "the engine is back")
    refused = server.complete("go")
    assert (refused.status, refused.code) == (503, "engine_restarted")
    assert server.ask("GET", "/readyz").status == 503
    assert server.ask("GET", "/healthz").status == 200
    assert server.ask("GET", "/v1/models").status == 200, "what is configured stays known"
    delays = [line["restart_in_s"] for line in server.events("process_died")]
    assert delays == [0.2, 0.4, 0.8, 1.6]
    assert server.stop() == 0, "also while a start is waited for"


def test_an_engine_that_dies_by_a_request_dies_for_that_one_alone(server: Running) -> None:
    assert server.complete("die").code == "engine_restarted"
    server.until(server.ready, "the engine is back")
    assert server.complete("go").status == 200


HANG_S = 2.0
"""Long beside what a busy machine may keep a thread waiting."""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", ["its process is stopped", "its thread never returns"])
def test_an_engine_that_hangs_is_replaced_and_its_requests_end_honestly(tmp_path: Path, how: str, workers: int) -> None:
    with running(tmp_path / "home", f"workers = {workers}\n[engine]\nhang_s = {HANG_S}") as server:
        server.until(server.ready, "it serves")
        with ExitStack() as opened:
            streaming = opened.enter_context(server.sent("slow", stream=True, max_tokens=1000))
            waiting = opened.enter_context(server.sent("hold"))
            read_until(streaming, b'" 1"')
            server.until_jobs(2)
            first = server.pid("engine")
            if how == "its process is stopped":
                os.kill(first, signal.SIGSTOP)
            late = opened.enter_context(server.sent("hang"))
            server.until(lambda: not server.ready(), "the server says that it can't serve")
            for reply in (read_until(waiting, b"}}"), read_until(late, b"}}")):
                assert reply.startswith(b"HTTP/1.1 503 ")
                assert b'"code":"engine_restarted"' in reply
            assert error_of(read_all(streaming)) == "engine_restarted"
        server.until(server.ready, "another engine is there")
        assert server.complete("go").status == 200
        assert server.pid("engine") != first
        assert not alive(first)
        (hung,) = server.events("engine_hung")
        assert hung["silent_s"] == HANG_S
        assert [line["by"] for line in server.events("process_died")] == ["SIGKILL"]


def test_a_long_step_and_a_long_rest_are_no_hang(tmp_path: Path) -> None:
    with running(tmp_path / "home", f"[engine]\nhang_s = {HANG_S}") as server:
        first = server.pid("engine")
        assert server.complete(f"compute {HANG_S + 1}").status == 200
        assert server.complete(f"late {HANG_S + 1}").status == 200
        assert server.pid("engine") == first
        assert not server.events("engine_hung")


def test_an_engine_may_hang_where_the_operator_lets_it(tmp_path: Path) -> None:
    with running(tmp_path / "home", "drain_s = 0.5\n[engine]\nhang_s = 0") as server, server.sent("hang") as waiting:
        first = server.pid("engine")
        os.kill(first, signal.SIGSTOP)
        assert server.stop() == 0, "and yet it ends with the server"
        assert b'"code":"shutting_down"' in read_until(waiting, b"}}")
        assert not server.events("engine_hung")


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_within_the_bound_ends_well(server: Running, told: signal.Signals) -> None:
    with server.sent("slow", stream=True, max_tokens=4) as client:
        received = read_until(client, b'" 1"')
        server.process.send_signal(told)
        received += read_all(client)
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert server.process.wait(10) == 0
    assert not alive(server.pid("engine"))
    assert left_behind(server) == []


def test_what_does_not_end_within_the_bound_is_ended_with_an_error(server: Running) -> None:
    with server.sent("slow", stream=True, max_tokens=1000) as streaming, server.sent("hold") as waiting:
        read_until(streaming, b'" 1"')
        server.until_jobs(2)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        received = read_all(streaming)
        assert error_of(received) == "shutting_down"
        assert not received.endswith(b"0\r\n\r\n")
        reply = read_until(waiting, b"}}")
        assert reply.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"shutting_down"' in reply
    assert server.process.wait(10) == 0
    assert time.monotonic() - began < 3
    assert "Traceback" not in server.log


def test_a_stopping_server_accepts_no_connection_and_keeps_no_idle_one(server: Running) -> None:
    with server.connect() as idle, server.sent("hold"):
        server.until_jobs(1)
        server.process.send_signal(signal.SIGTERM)
        assert read_all(idle) == b""
        with pytest.raises(ConnectionRefusedError):
            server.connect()
    assert server.process.wait(10) == 0


def test_interrupted_twice_it_stops_at_once(tmp_path: Path) -> None:
    with running(tmp_path / "home", "drain_s = 100") as server, server.sent("hold"):
        server.until_jobs(1)
        server.process.send_signal(signal.SIGINT)
        server.until(lambda: bool(server.events("stopping")), "it drains")
        assert server.process.poll() is None
        assert server.stop(signal.SIGINT) == 130
        server.until(lambda: not alive(server.pid("engine")), "no engine is left")
        assert left_behind(server) == []


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with running(tmp_path / "home", "workers = 2\ndrain_s = 0.5") as server:
        server.until(server.ready, "a worker is ready")
        children = [server.pid(place) for place in ("engine", "worker-0", "worker-1")]
        server.process.kill()
        server.until(lambda: not any(map(alive, children)), "no child is left")


def test_the_next_start_removes_the_folders_of_killed_servers_and_no_others(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    with running(tmp_path / "1", temporary=shared) as killed:
        (dead,) = shared.iterdir()
        killed.process.kill()
        killed.process.wait()
        assert list(shared.iterdir()) == [dead]
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(dead, elsewhere, ignore=lambda folder, names: [n for n in names if is_socket(folder, n)])
    before = sorted(elsewhere.iterdir())
    linked, empty, file = others = [shared / f"andthen-{name}" for name in ("00000000", "abcdefgh", "ijklmnop")]
    linked.symlink_to(elsewhere)
    empty.mkdir()
    file.touch()
    with running(tmp_path / "2", temporary=shared) as first:
        (own,) = set(shared.iterdir()).difference(others)
        assert own != dead
        with running(tmp_path / "3", temporary=shared) as second:
            assert len(set(shared.iterdir()).difference(others)) == 2
            assert first.complete("go").status == second.complete("go").status == 200
            assert second.stop() == 0
        assert first.ask("GET", "/metrics").status == 200
        assert first.stop() == 0
    assert set(shared.iterdir()) == set(others)
    assert sorted(elsewhere.iterdir()) == before


def is_socket(folder: str, name: str) -> bool:
    return (Path(folder) / name).is_socket()


def test_an_engine_that_can_not_start_ends_the_server(tmp_path: Path) -> None:
    broken = '[models."local/broken"]\npath = "model.gguf"'
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "model.gguf").write_bytes(b"GGUF")
    with running(tmp_path / "home", broken) as server:
        assert server.process.wait(10) == 1
        assert server.port == 0, "it never said that it serves"
        assert "this engine can't start" in server.log
        assert left_behind(server) == []


def test_workers_share_the_port_and_one_that_is_killed_takes_only_its_own_down(tmp_path: Path) -> None:
    with running(tmp_path / "home", "workers = 2\ndrain_s = 1") as server:
        server.until(lambda: len(server.events("serving")) == 2, "both serve")
        killed = server.pid("worker-1")
        idle = {pid: open_sockets(pid) for pid in (killed, server.pid("worker-0"))}
        with ExitStack() as opened:
            streams: list[socket.socket] = []
            while not all(open_sockets(pid) > count for pid, count in idle.items()):
                streams.append(opened.enter_context(server.connect()))
                server.send(streams[-1], "slow", "connection: close", stream=True, max_tokens=30)
                read_until(streams[-1], b"data: ")
            os.kill(killed, signal.SIGKILL)
            received = [read_all(stream) for stream in streams]
        cut = [reply for reply in received if not reply.endswith(b"0\r\n\r\n")]
        assert 0 < len(cut) < len(received), "both workers served, and one of them died"
        assert all(b"[DONE]" not in reply for reply in cut)
        server.until_jobs(0)
        server.until(lambda: server.pid("worker-1") != killed, "it was started again")
        page = server.ask("GET", "/metrics").body.decode()
        assert 'andthen_process_deaths_total{process="worker"} 1.0' in page
        assert f'andthen_requests_total{{route="completions",status="200"}} {len(received) - len(cut):.1f}' in page
        assert server.stop() == 0
        assert not any(alive(server.pid(place)) for place in ("engine", "worker-0", "worker-1"))


def test_workers_drain_too(tmp_path: Path) -> None:
    with running(tmp_path / "home", "workers = 2\ndrain_s = 5") as server:
        with server.sent("slow", stream=True, max_tokens=6) as client:
            received = read_until(client, b'" 1"')
            server.process.send_signal(signal.SIGTERM)
            received += read_all(client)
        assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert server.process.wait(10) == 0


def test_a_key_that_is_revoked_is_refused_within_a_second(server: Running) -> None:
    from andthen.books.store import open_sqlite

    store = open_sqlite(server.home / "andthen.db")
    store.revoke_key("tests")
    store.close()
    time.sleep(1)
    assert server.complete("go").code == "invalid_api_key"


def test_an_asked_for_port_that_is_taken_is_an_error_with_the_remedy() -> None:
    with supervisor.bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(supervisor.CannotListen, match=rf"port {port} of 127\.0\.0\.1 is taken: .* --port"):
            supervisor.bind("127.0.0.1", port)


def test_without_a_port_the_first_free_one_of_twenty_is_taken() -> None:
    host = "127.0.0.77"  # nobody else's
    with ExitStack() as taken:
        ports = [taken.enter_context(supervisor.bind(host, None)).getsockname()[1] for _ in range(20)]
        assert ports == list(range(FIRST_PORT, LAST_PORT + 1))
        with pytest.raises(supervisor.CannotListen, match=r"8000 to 8019 .* are all taken: .* --port"):
            supervisor.bind(host, None)


def test_a_host_that_is_none_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # the real one asks outside
    with pytest.raises(supervisor.CannotListen, match=r"'no such host' is no address .* --host"):
        supervisor.bind("no such host", 0)


def test_it_listens_on_ipv6_too() -> None:
    with supervisor.bind("::1", 0) as listening, socket.create_connection(listening.getsockname()[:2]):
        listening.accept()[0].close()
