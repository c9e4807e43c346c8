"""The real server, started as people start it: `andthen serve` on a free port, with a state folder of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANDTHEN = Path(sys.executable).parent / "andthen"
LOG = "server.log"
START_S = 30
STOP_S = 30


@dataclass(frozen=True)
class Server:
    url: str
    key: str
    model: str
    """The name of the model that ships with the package."""
    home: Path
    process: subprocess.Popen[str]

    def get(self, path: str) -> bytes:
        request = urllib.request.Request(self.url + path, headers={"x-api-key": self.key})
        with urllib.request.urlopen(request, timeout=START_S) as reply:
            return bytes(reply.read())

    def complete(self, path: str = "/v4/beta/completions", **fields: object) -> dict[str, Any]:
        """Raises urllib.error.HTTPError where the server refuses."""
        body = json.dumps({"model": self.model, "prompt": "Once upon a time"} | fields).encode()
        headers = {"x-api-key": self.key, "content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=START_S) as reply:
            return dict(json.load(reply))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def andthen(*arguments: str, home: Path) -> str:
    """What the command prints on stdout."""
    environment = os.environ | {"ANDTHEN_HOME": str(home)}
    done = subprocess.run([ANDTHEN, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(home: Path, port: int, *arguments: str, command: Sequence[str | Path] = (ANDTHEN,)) -> subprocess.Popen[str]:
    """`andthen serve` with its state in this folder; what it says is added to the log there."""
    whole: list[str | Path] = [*command, "serve", *arguments, "--port", str(port)]
    with (home / LOG).open("a") as output:
        return subprocess.Popen(
            whole, env=os.environ | {"ANDTHEN_HOME": str(home)}, stdout=output, stderr=subprocess.STDOUT, text=True
        )


@contextmanager
def serving(
    home: Path,
    *arguments: str,
    settings: str = "",
    policy: Sequence[str] = (),
    command: Sequence[str | Path] = (ANDTHEN,),
) -> Iterator[Server]:
    """A server that is ready, stopped by SIGTERM at the end. `settings` is the text of its TOML file, and `policy` what
    its key is made with."""
    config = home / "andthen.toml"
    config.write_text(settings)
    key = andthen("keys", "create", "--name", "tests", *policy, home=home).strip()
    port = free_port()
    process = start(home, port, *arguments, "--config", str(config), command=command)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, home)
        request = urllib.request.Request(f"{url}/v1/models", headers={"x-api-key": key})
        with urllib.request.urlopen(request, timeout=START_S) as reply:
            model = json.load(reply)["data"][0]["id"]
        yield Server(url, key, model, home, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def wait_until_ready(url: str, process: subprocess.Popen[str], home: Path) -> None:
    log = home / LOG
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}:\n{log.read_text()}"
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=START_S):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise AssertionError(f"not ready after {START_S} s:\n{log.read_text()}")
