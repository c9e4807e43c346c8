"""What deploy/compose.yaml starts, started by hand: two replicas with the variables that it gives them, a database of
their own in PostgreSQL, a Redis of their own, and Caddy with the very file. Needs `caddy` (apt-get install caddy).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.books.limiting import redis_of_its_own
from tests.books.sites import Books
from tests.deploying import DEPLOY, environment, written_secrets
from tests.postgres import own_database
from tests.serving import ANDTHEN, free_port

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]

WAIT_S = 60
BODY = {"model": "local/tale", "prompt": "Once upon a time", "temperature": 0}
SERVICES = msgspec.yaml.decode((DEPLOY / "compose.yaml").read_bytes())["services"]


def until(true: Callable[[], bool], why: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline_s, why
        time.sleep(0.05)


class Site:
    """The replicas and the proxy."""

    def __init__(self, variables: dict[str, str], folder: Path) -> None:
        self._variables = variables
        self._homes = [folder / "replica-1", folder / "replica-2"]
        self.ports = [free_port() for _ in self._homes]
        self.proxy_port = free_port()
        self.key = ""

    def command(self, name: str, replica: int = 0) -> tuple[list[str], dict[str, str]]:
        """A service's command, and the variables that it has."""
        home = self._homes[replica]
        home.mkdir(exist_ok=True)
        own = {"ANDTHEN_HOME": str(home), "ANDTHEN_SERVER_PORT": str(self.ports[replica])}
        return [str(ANDTHEN), *SERVICES[name]["command"]], self._variables | own

    @contextmanager
    def replica(self, number: int) -> Iterator[subprocess.Popen[bytes]]:
        """A replica that is ready; killed at the end."""
        command, variables = self.command(f"replica-{number + 1}", number)
        with (self._homes[number] / "log").open("ab") as log:
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            until(lambda: self.status(self.ports[number], "/readyz") == 200, "the replica is ready")
            yield process
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def proxy(self) -> Iterator[None]:
        program = shutil.which("caddy")
        assert program, "this test needs caddy: apt-get install caddy"
        variables = {
            "SITE": f":{self.proxy_port}",
            "REPLICAS": " ".join(f"127.0.0.1:{port}" for port in self.ports),
            "HOME": str(self._homes[0]),
        }
        process = subprocess.Popen([program, "run", "--config", DEPLOY / "Caddyfile"], env=variables)
        try:
            until(lambda: self.status(self.proxy_port, "/readyz") == 200, "the proxy is ready")
            yield
        finally:
            process.kill()
            process.wait()

    def status(self, port: int, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        try:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    def open_requests(self, number: int) -> int:
        """Of a replica, but for this very question."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[number], timeout=WAIT_S)
        connection.request("GET", "/metrics", headers={"x-api-key": "metrics"})
        page = connection.getresponse().read().decode()
        connection.close()
        (told,) = re.findall(r"^andthen_open_requests (\S+)$", page, re.MULTILINE)
        return int(float(told)) - 1

    @contextmanager
    def asked(self, **fields: Any) -> Iterator[http.client.HTTPResponse]:
        """A completion, through the proxy."""
        with self.connected() as connection:
            self.send(connection, **fields)
            yield connection.getresponse()

    def connected(self) -> closing[http.client.HTTPConnection]:
        return closing(http.client.HTTPConnection("127.0.0.1", self.proxy_port, timeout=WAIT_S))

    def send(self, connection: http.client.HTTPConnection, **fields: Any) -> None:
        headers = {"x-api-key": self.key, "content-type": "application/json"}
        connection.request("POST", "/v4/beta/completions", json.dumps(BODY | fields), headers)

    def complete(self) -> int:
        with self.asked(max_tokens=4) as reply:
            reply.read()
            return reply.status


def test_the_replicas_behind_the_proxy(tmp_path: Path) -> None:
    with ExitStack() as opened:
        address = opened.enter_context(own_database()).render_as_string(hide_password=False)
        redis = opened.enter_context(redis_of_its_own(tmp_path))
        secrets = written_secrets(tmp_path, database_url=address, metrics_key="metrics")
        given = environment(SERVICES["replica-1"], secrets)
        assert given["ANDTHEN_BOOKS_REDIS"] == "redis://limits:6379/0"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ANDTHEN_")}
        site = Site(kept | given | {"ANDTHEN_BOOKS_REDIS": redis.url, "ANDTHEN_SERVER_HOST": "127.0.0.1"}, tmp_path)

        command, variables = site.command("replica-1")
        early = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert (early.returncode, "andthen migrate" in early.stderr) == (1, True)
        command, variables = site.command("migrate")
        subprocess.run(command, env=variables, check=True)

        books = opened.enter_context(closing(Books(address)))
        site.key, key_id = books.issue("tests", requests_per_minute=10_000)
        first = opened.enter_context(site.replica(0))
        second = opened.enter_context(site.replica(1))
        opened.enter_context(site.proxy())

        def under_way() -> int:
            return sum(row["settled_at_ms"] is None for row in books.requests(key_id).values())

        assert site.status(site.proxy_port, "/metrics") == 404
        assert site.status(site.ports[0], "/metrics", **{"x-api-key": "metrics"}) == 200

        with site.asked(stream=True, max_tokens=400) as reply:
            assert b"data: " in reply.read1()
            assert under_way() == 1, "the stream's first text is here, and its last is not made"
        until(lambda: under_way() == 0, "who leaves ends the work, through the proxy too")
        with site.connected() as connection:
            site.send(connection, max_tokens=400)
            until(lambda: under_way() == 1, "it is under way")
        until(lambda: under_way() == 0, "also who waits for a reply that is not streamed")
        for left in books.requests(key_id).values():
            assert (left["ended_by"], left["completion_tokens"] < 400) == ("caller", True)

        with site.asked(stream=True, max_tokens=200) as reply:
            reply.read1()
            busy = first if site.open_requests(0) else second
            busy.send_signal(signal.SIGTERM)
            assert {site.complete() for _ in range(20)} == {200}, "the other takes what comes"
            assert reply.read().endswith(b"data: [DONE]\n\n"), "and the one that stops ends what it has"
        assert busy.wait(WAIT_S) == 0

        number = 0 if busy is first else 1
        opened.enter_context(site.replica(number))
        other = second if busy is first else first
        other.kill()
        told = [site.complete() for _ in range(20)]
        assert set(told[1:]) == {200}, "one is killed, and the proxy goes on"
        assert told[0] in (200, 502), "what met the death itself may have been worked on, and is not sent again"
        assert under_way() == 0
