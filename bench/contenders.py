"""Who is measured: processes that are started once and then get one load after another."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from andthen.engine.settings import ENVIRONMENT
from bench.clients import Address, ask
from bench.cpu import family_cpu_s
from bench.load import Load, Setup
from tests.serving import serving

Contender = Callable[[Load], float]
"""Runs a load; the seconds it took."""


class Measured(Struct, frozen=True):
    """A run."""

    tokens_per_s: float
    tokens_per_cpu_s: float


class Field(Struct):
    """All contenders, in the order of the table, with the process whose family's time is theirs."""

    contenders: dict[str, tuple[Contender, int]] = {}

    def measure(self, name: str, load: Load) -> Measured:
        contender, pid = self.contenders[name]
        before_s = family_cpu_s(pid)
        wall_s = contender(load)
        return Measured(load.tokens / wall_s, load.tokens / (family_cpu_s(pid) - before_s))


class _Child:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = self._read("ready").strip()

    def __call__(self, load: Load) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(load).decode() + "\n")
        self.process.stdin.flush()
        return float(self._read(""))

    def _read(self, beginning: str) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith(beginning) or not line:
            raise SystemExit(f"{self.process.args!r} said {line!r}")
        return line.removeprefix(beginning)


@contextmanager
def _child(name: str, setup: Setup) -> Iterator[_Child]:
    """One of `bench.inside`. Its libraries wait at barriers without spinning, as the engine's process does."""
    command = [sys.executable, "-m", "bench.inside", name, msgspec.json.encode(setup).decode()]
    environment = os.environ | ENVIRONMENT
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield _Child(process)
        finally:
            process.kill()


def over_http(address: Address, *, stream: bool) -> Contender:
    def run(load: Load) -> float:
        began_s = time.perf_counter()
        ask(address, load, stream=stream)
        return time.perf_counter() - began_s

    return run


@contextmanager
def our_server(setup: Setup) -> Iterator[tuple[Address, int]]:
    """`andthen serve` as people start it, and its process."""
    flag = str(setup.deterministic).lower()
    settings = f'[engine]\nthreads = {setup.threads}\n[models."local/bench"]\npath = "{setup.path}"\n'
    with ExitStack() as running:
        home = running.enter_context(tempfile.TemporaryDirectory())
        server = running.enter_context(serving(Path(home), settings=f"{settings}deterministic = {flag}\n"))
        yield Address(server.url, "local/bench", server.key), server.process.pid


@contextmanager
def everybody(setup: Setup) -> Iterator[Field]:
    """Starts all contenders."""
    field = Field()
    with ExitStack() as running:

        def start(label: str, name: str) -> _Child:
            child = running.enter_context(_child(name, setup))
            field.contenders[label] = child, child.process.pid
            return child

        start("bare loop", "bare")
        if setup.known().streams:
            start("bare loop in streams", "bare in streams")
        start("engine", "engine")
        ours, pid = running.enter_context(our_server(setup))
        field.contenders["server, whole replies"] = over_http(ours, stream=False), pid
        field.contenders["server, streams"] = over_http(ours, stream=True), pid
        child = start("llama-server, in process", "llama-server")
        theirs = Address(child.url, "")
        field.contenders["llama-server, whole replies"] = over_http(theirs, stream=False), child.process.pid
        field.contenders["llama-server, streams"] = over_http(theirs, stream=True), child.process.pid
        yield field
