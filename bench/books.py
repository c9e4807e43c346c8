"""The price of the books: what keys, limits, budgets and the ledger add to a request."""

from __future__ import annotations

import os
import secrets
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import uvloop
from msgspec import Struct

from andthen.books.settings import Durability
from andthen.books.store import open_store
from bench.clients import Address
from bench.cpu import family_cpu_s
from bench.languages import CONNECTIONS, load, prepared_request, serving_vendor
from tests.serving import ANDTHEN, serving

_REQUESTS = 24
"""Of each connection in a run."""
_ALONE = 150
"""Of one connection."""
_WARM = 8
_POSTGRES = os.environ.get("TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
_REDIS = "redis://127.0.0.1:6379/15"
_LANGUAGE = "openai_completions"
_BOUNDS = (
    "--rpm", "10000000", "--tpm", "100000000000", "--concurrent", "10000", "--max-tokens", "4096", "--model", "bench/*",
    "--address", "127.0.0.0/8", "--budget", "month=1000000", "--budget", "day=1000000000000t",
)  # fmt: skip
_WAITS: tuple[Durability, ...] = ("process", "power")

ABOUT = f"""\
`andthen serve`, one worker, before a vendor on loopback that answers at once, with everything of the books and with
nothing. *Nothing* is a ledger that writes nothing and a key without bounds; *everything* is the ledger, and a key with
limits of requests, tokens and concurrency and with budgets in money and in tokens. CPU time is that of all processes of
`andthen`, with {CONNECTIONS} connections at once; what is added is the median of one connection's requests less that
of the server with nothing. The databases run on the same machine, and their own time is not counted.
"""
_HEAD = ("CPU µs of a request", "times that with nothing", "p50 of one connection, ms", "added, ms")


class _Books(Struct, frozen=True):
    """How a server keeps them."""

    name: str
    settings: str = ""
    bounds: Sequence[str] = _BOUNDS
    command: Sequence[str | Path] = (ANDTHEN,)


class _Run(Struct, frozen=True):
    request_us: float
    alone_ms: float


def books(rounds: int) -> Iterator[str]:
    """The table."""
    found: dict[str, list[_Run]] = {}
    with ExitStack() as running:
        address, _ = running.enter_context(serving_vendor())
        servers = []
        for kept in _all(running):
            home = running.enter_context(tempfile.TemporaryDirectory())
            server = running.enter_context(serving(
                Path(home), settings=_settings(address) + kept.settings, policy=kept.bounds, command=kept.command
            ))  # fmt: skip
            servers.append((kept.name, Address(f"{server.url}/v1", "bench/draft", server.key), server.process.pid))
        for _ in range(rounds):
            for name, own, pid in servers:
                found.setdefault(name, []).append(uvloop.run(_measure(own, pid)))
    yield "| books | " + " | ".join(_HEAD) + " |"
    yield "|---|" + "---|" * len(_HEAD)
    least, *_ = found.values()
    for name, runs in found.items():
        together = list(zip(runs, least, strict=True))
        cells = (
            f"{statistics.median(run.request_us for run in runs):,.0f}",
            f"{statistics.median(run.request_us / none.request_us for run, none in together):.2f}",
            f"{statistics.median(run.alone_ms for run in runs):.2f}",
            f"{statistics.median(run.alone_ms - none.alone_ms for run, none in together):.2f}",
        )
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def _all(running: ExitStack) -> Iterator[_Books]:
    yield _Books("nothing", bounds=(), command=(sys.executable, "-m", "bench.bookless"))
    for durability in _WAITS:
        yield _Books(f"SQLite, `{durability}`", f'[books]\ndurability = "{durability}"\n')
    if not (_reachable(_POSTGRES, 5432) and _reachable(_REDIS, 6379)):
        return
    for durability in _WAITS:
        database = running.enter_context(_database())
        tables = f'[books]\ndurability = "{durability}"\ndatabase = "{database}"\nredis = "{_REDIS}"\n'
        yield _Books(f"PostgreSQL and Redis, `{durability}`", tables)


def _settings(address: str) -> str:
    return f"""\
[models."bench/draft"]
address = "{address}/{_LANGUAGE}/v1"
language = "{_LANGUAGE}"
key = "secret"
model = "draft-1"
[prices."bench/draft"]
prompt = "2.00"
completion = "8.00"
"""


def _reachable(url: str, port: int) -> bool:
    place = urlsplit(url)
    try:
        socket.create_connection((place.hostname or "127.0.0.1", place.port or port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def _database() -> Iterator[str]:
    """The address of a new database, with its tables."""
    name = f"andthen_bench_{secrets.token_hex(6)}"
    with psycopg.connect(_POSTGRES, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
        try:
            address = urlsplit(_POSTGRES)._replace(path=f"/{name}").geturl()
            open_store(address, migrate=True).close()
            yield address
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def _measure(address: Address, pid: int) -> _Run:
    request = prepared_request(address, stream=False, at_once=False)
    await load(address, request, 1, _WARM)
    await load(address, request, CONNECTIONS, 1)
    before_s = family_cpu_s(pid)
    await load(address, request, CONNECTIONS, _REQUESTS)
    cpu_s = family_cpu_s(pid) - before_s
    alone_s = statistics.median(await load(address, request, 1, _ALONE))
    return _Run(1e6 * cpu_s / (CONNECTIONS * _REQUESTS), 1e3 * alone_s)
