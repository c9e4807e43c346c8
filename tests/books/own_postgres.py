"""A PostgreSQL that a test may stop, stall and start again: a cluster of its own on a free port."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.serving import free_port

WAIT_S = 30
_NO_ROOT = "postgres"
"""Who runs it where root runs the tests, since it refuses to be run by root."""


@contextmanager
def postgres_of_its_own() -> Iterator[OwnPostgres]:
    folder = Path(tempfile.mkdtemp(prefix="andthen-postgres-"))  # where its user may go, unlike a test's own folder
    try:
        server = OwnPostgres(folder, free_port())
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder)


class OwnPostgres:
    def __init__(self, folder: Path, port: int) -> None:
        self._data = folder / "data"
        self._port = port
        self._user = _NO_ROOT if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        if self._user:
            shutil.chown(folder, self._user)
        made = subprocess.run(
            [_program("initdb"), "--pgdata", self._data, "--username", "postgres", "--auth", "trust", "--no-sync"],
            user=self._user, cwd="/", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Until it takes connections. A process that dies loses nothing by what the disk is not told to keep."""
        options = {"port": self._port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        self._process = subprocess.Popen(
            [_program("postgres"), "-D", self._data, *(f"--{name}={value}" for name, value in options.items())],
            user=self._user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline_s = time.monotonic() + WAIT_S
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline_s
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """By SIGINT it ends its connections and writes down what it has; by SIGQUIT it drops everything at once."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(WAIT_S)

    def stand_still(self) -> None:
        """It takes connections and answers none, until it is told to go on."""
        self._signal_all(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        pid = self._process.pid
        for one in (pid, *_children(pid)):
            os.kill(one, number)


def _children(pid: int) -> Sequence[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _program(name: str) -> str:
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    assert found, f"these tests need PostgreSQL's {name}"
    return found
