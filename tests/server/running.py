"""A server with the scripted engine on a real port, and the bare sockets to ask it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from andthen.books.store import open_store

WAIT_S = 15
COMPLETIONS = "/v4/beta/completions"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of the error."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return str(error["code"])


class Running:
    """A server process. Every method fails after `WAIT_S` rather than wait for ever."""

    def __init__(self, home: Path, process: subprocess.Popen[bytes], port: int, key: str) -> None:
        self.home = home
        self.process = process
        self.port = port
        self.key = key

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of this name."""
        return [line for line in map(json.loads, self.log.splitlines()) if line["event"] == name]

    def pid(self, place: str) -> int:
        """Of the child that was started last in this place."""
        return int([line["pid"] for line in self.events("process_started") if line["place"] == place][-1])

    def ask(
        self, method: str, path: str, body: bytes | str | dict[str, Any] | None = None, **headers: str | None
    ) -> Answer:
        """One request on a connection of its own; `x_api_key=None` leaves the key out."""
        sent = {"content-type": "application/json", "x-api-key": self.key}
        for name, value in headers.items():
            name = name.replace("_", "-")
            sent.pop(name, None)
            if value is not None:
                sent[name] = value
        data = json.dumps(body) if isinstance(body, dict) else body
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            connection.request(method, path, data, sent)
            reply = connection.getresponse()
            return Answer(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def complete(self, prompt: str, path: str = COMPLETIONS, **fields: Any) -> Answer:
        return self.ask("POST", path, {"model": "local/count", "prompt": prompt} | fields)

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        client = socket.socket()
        client.settimeout(WAIT_S)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            client.connect(("127.0.0.1", self.port))
        except OSError:
            client.close()
            raise
        return client

    def send(self, client: socket.socket, prompt: str, *headers: str, **fields: Any) -> None:
        """A completion request, on a socket that is there."""
        body = json.dumps({"model": "local/count", "prompt": prompt} | fields).encode()
        lines = [f"POST {COMPLETIONS} HTTP/1.1", "host: x", f"x-api-key: {self.key}", "content-type: application/json"]
        lines += [f"content-length: {len(body)}", *headers]
        client.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    @contextmanager
    def sent(self, prompt: str, *headers: str, **fields: Any) -> Iterator[socket.socket]:
        with self.connect() as client:
            self.send(client, prompt, *headers, **fields)
            yield client

    def until_closed_by_client(self, client: socket.socket) -> None:
        """Closes the client's socket and waits until the server has closed its own. It can't know at once: a client
        that only shuts down its sending side looks the same until it is written to."""
        ends = [f"0100007F:{port:04X}" for port in (self.port, client.getsockname()[1])]

        def inode() -> str:
            lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
            return next((line[9] for line in lines if line[1:3] == ends), "0")

        self.until(lambda: inode() != "0", "the connection is accepted")
        opened = f"socket:[{inode()}]"
        client.close()
        pids = [self.process.pid, *(line["pid"] for line in self.events("process_started"))]
        self.until(lambda: not any(opened in open_files(pid) for pid in pids), "the server closed its socket")

    def jobs(self) -> int:
        """Open in the engine."""
        return int(self.ask("POST", "/tokenize", {"prompt": "jobs"}).json["tokens"][0])

    def until(self, true: Callable[[], bool], why: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not true():
            assert time.monotonic() < deadline, f"not so after {WAIT_S} s: {why}\n{self.log}"
            time.sleep(0.02)

    def until_jobs(self, count: int) -> None:
        self.until(lambda: self.jobs() == count, f"{count} jobs open")

    def ready(self) -> bool:
        try:
            return self.ask("GET", "/readyz").status == 200
        except OSError:
            return False

    def stop(self, told: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(told)
        return self.process.wait(WAIT_S)


def read_all(client: socket.socket) -> bytes:
    """Until the end of the connection."""
    received = b""
    with suppress(ConnectionResetError):
        while data := client.recv(65536):
            received += data
    return received


def read_until(client: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        data = client.recv(65536)
        assert data, f"the connection ended without {mark!r}: {received!r}"
        received += data
    return received


def alive(pid: int) -> bool:
    try:
        return "Z" not in re.findall(r"State:\s+(\S)", Path(f"/proc/{pid}/status").read_text())
    except FileNotFoundError:
        return False


def open_files(pid: int) -> set[str]:
    """What the process has open; nothing if it has ended."""
    found = set()
    with suppress(FileNotFoundError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.add(str(file.readlink()))
    return found


@contextmanager
def running(home: Path, settings: str = "", *, database: str = "", temporary: Path | None = None) -> Iterator[Running]:
    """A server under these settings (the lines of `[server]`), killed at the end if it still runs.

    Args:
        database: an empty one in PostgreSQL; none: the SQLite file in `home`.
        temporary: the folder for temporary files; none: `home`.
    """
    home.mkdir(exist_ok=True)
    books = f'[books]\ndatabase = "{database}"\n' if database else ""
    (home / "andthen.toml").write_text(f"[server]\nport = 0\n{settings}\n{books}")
    with closing(open_store(database or home / "andthen.db", migrate=True)) as store:
        key = store.create_key("tests").secret
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.scripted_server", str(home)],
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"TMPDIR": str(temporary or home)},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield Running(home, process, int(line) if line else 0, key)
    finally:
        process.kill()
        process.communicate()
