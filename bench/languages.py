"""What a request and a streamed chunk cost on the way through each language, beside a vendor that costs nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop
from msgspec import Struct

from bench.clients import Address
from bench.cpu import process_cpu_s, resident_bytes
from bench.replies import CHUNKS, LANGUAGES
from bench.vendor import AT_ONCE, PACE_S
from tests.serving import serving

CONNECTIONS = 32
_REQUESTS = 24
"""Of each connection in a run."""
_ALONE = 100
"""Of one connection."""
_BODY_BYTES = 600
_WARM = 4
_END = b"\r\n0\r\n\r\n"
"""Of a chunked body."""

ABOUT = f"""\
A vendor on loopback answers each language with a prepared reply of {CHUNKS} tokens, and costs next to nothing; `andthen
serve`, one worker, stands before it with all that is on by default. Requests' bodies have {_BODY_BYTES} bytes;
connections are kept. Streams have {CHUNKS} chunks that come {1000 * PACE_S:g} ms apart, {CONNECTIONS} streams at a
time, so that each chunk is read, turned and written alone; *at once* are streams whose chunks come in one piece. A
chunk's CPU time is without what the request costs without chunks. CPU time is the worker's own.

- **none**: no server between the load's generator and the vendor; the CPU time is the vendor's.
- **relay**: our HTTP server and client with nothing between them: no body is read.
"""
_HEAD = (
    f"requests/s, {CONNECTIONS} connections", "CPU µs of a request", "p50 of one connection, ms",
    "CPU µs of a chunk", "chunks/s, at once",
)  # fmt: skip


class Row(Struct, frozen=True):
    """A run, in the columns' order."""

    requests_per_s: float
    request_us: float
    alone_ms: float
    chunk_us: float
    chunks_per_s: float

    def cells(self) -> str:
        return " | ".join(
            (
                f"{self.requests_per_s:,.0f}",
                f"{self.request_us:,.0f}",
                f"{self.alone_ms:.2f}",
                f"{self.chunk_us:,.1f}",
                f"{self.chunks_per_s:,.0f}",
            )
        )


def languages(rounds: int) -> Iterator[str]:
    """The table."""
    found: dict[str, list[Row]] = {}
    with ExitStack() as running:
        vendor, vendor_pid = running.enter_context(serving_vendor())
        home = running.enter_context(tempfile.TemporaryDirectory())
        server = running.enter_context(serving(Path(home), settings=_settings(vendor)))
        pid = server.process.pid
        at_start = resident_bytes(pid)
        measured = [("none", Address(f"{vendor}/openai_completions", ""), vendor_pid)]
        relay, relay_pid = running.enter_context(_relay(measured[0][1].url))
        measured.append(("relay", Address(relay, ""), relay_pid))
        measured += [(name, Address(f"{server.url}/v1", f"bench/{name}", server.key), pid) for name in LANGUAGES]
        for _ in range(rounds):
            for name, address, measured_pid in measured:
                found.setdefault(name, []).append(uvloop.run(_measure(address, measured_pid)))
        at_end = resident_bytes(pid)
    yield "| through | " + " | ".join(_HEAD) + " |"
    yield "|---|" + "---|" * len(_HEAD)
    for name, rows in found.items():
        medians = map(statistics.median, zip(*map(msgspec.structs.astuple, rows), strict=True))
        yield f"| {name} | {Row(*medians).cells()} |"
    yield ""
    yield f"The worker's resident memory: {at_start / 2**20:,.0f} MiB at start, {at_end / 2**20:,.0f} MiB at the end.\n"


@contextmanager
def serving_vendor() -> Iterator[tuple[str, int]]:
    """The vendor's address and process."""
    command = [sys.executable, "-m", "bench.vendor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready "):
                raise SystemExit(f"{command!r} said {line!r}")
            yield line.removeprefix("ready ").strip(), process.pid
        finally:
            process.kill()


@contextmanager
def _relay(address: str) -> Iterator[tuple[str, int]]:
    """The relay's address and process."""
    with socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS) as listening:
        descriptor = listening.fileno()
        command = [sys.executable, "-m", "bench.relay", str(descriptor), f"{address}/completions"]
        with subprocess.Popen(command, pass_fds=[descriptor]) as process:
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1", process.pid
            finally:
                process.kill()


def _settings(vendor: str) -> str:
    tables = []
    for name in LANGUAGES:
        key = "AKID\\nSECRET" if name == "bedrock_converse" else "secret"
        dialect = 'dialect = { region = "us-east-1" }\n' if name == "bedrock_converse" else ""
        table = f'address = "{vendor}/{name}/v1"\nlanguage = "{name}"\nkey = "{key}"\nmodel = "draft-1"\n{dialect}'
        tables.append(f'[models."bench/{name}"]\n{table}')
    return "\n".join(tables)


async def _measure(address: Address, pid: int) -> Row:
    plain, paced, at_once = (prepared_request(address, **how) for how in _WAYS)
    await load(address, plain, 1, _WARM)
    before_s, began_s = process_cpu_s(pid), time.perf_counter()
    await load(address, plain, CONNECTIONS, _REQUESTS)
    wall_s, cpu_s = time.perf_counter() - began_s, process_cpu_s(pid) - before_s
    requests = CONNECTIONS * _REQUESTS
    alone_s = statistics.median(await load(address, plain, 1, _ALONE))
    before_s = process_cpu_s(pid)
    await load(address, paced, CONNECTIONS, 1)
    chunk_s = (process_cpu_s(pid) - before_s - CONNECTIONS * cpu_s / requests) / (CONNECTIONS * CHUNKS)
    began_s = time.perf_counter()
    await load(address, at_once, CONNECTIONS, _WARM)
    at_once_s = (time.perf_counter() - began_s) / (CONNECTIONS * _WARM * CHUNKS)
    return Row(requests / wall_s, 1e6 * cpu_s / requests, 1e3 * alone_s, 1e6 * chunk_s, 1 / at_once_s)


_WAYS: tuple[dict[str, bool], ...] = (
    {"stream": False, "at_once": False},
    {"stream": True, "at_once": False},
    {"stream": True, "at_once": True},
)


def prepared_request(address: Address, *, stream: bool, at_once: bool) -> bytes:
    """Head and body."""
    fields: dict[str, object] = {"model": address.model, "max_tokens": CHUNKS, "temperature": 0.7, "stream": stream}
    begin = AT_ONCE if at_once else "One by one."
    empty = len(json.dumps({**fields, "prompt": begin}))
    prompt = begin + (" once upon a time" * _BODY_BYTES)[: _BODY_BYTES - empty]
    body = json.dumps({**fields, "prompt": prompt}).encode()
    place = urlsplit(address.url)
    head = f"POST {place.path}/completions HTTP/1.1\r\nhost: {place.netloc}\r\nx-api-key: {address.key}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def load(address: Address, request: bytes, connections: int, times: int) -> list[float]:
    """Sends the request so often on each of so many connections; the seconds that each reply took.

    Raises:
        SystemExit: a reply is none.
    """
    place, loop = urlsplit(address.url), asyncio.get_running_loop()
    clients = [_Client(request, times) for _ in range(connections)]
    for client in clients:
        await loop.create_connection(lambda own=client: own, place.hostname or "", place.port or 0)  # type: ignore[misc]
    for client in clients:
        client.send()
    return [took_s for client in clients for took_s in await client.done]


class _Client(asyncio.Protocol):
    """One connection, one request after another."""

    def __init__(self, request: bytes, times: int) -> None:
        self.done: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._request = request
        self._times = times
        self._took_s: list[float] = []
        self._began_s = 0.0
        self._received = bytearray()
        self._whole_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(SystemExit(f"the connection was closed after {bytes(self._received[-500:])!r}"))

    def send(self) -> None:
        self._received.clear()
        self._whole_bytes = 0
        self._began_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._whole_bytes:
            self._head()
        whole = len(self._received) >= self._whole_bytes if self._whole_bytes > 0 else self._received.endswith(_END)
        if not whole:
            return
        self._took_s.append(time.perf_counter() - self._began_s)
        if len(self._took_s) < self._times:
            self.send()
        else:
            self.done.set_result(self._took_s)
            self._transport.close()

    def _head(self) -> None:
        """Learns how long the reply is: -1 for one in chunks."""
        head, _, _ = bytes(self._received).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            self.done.set_exception(SystemExit(f"the reply was {bytes(self._received[:2000])!r}"))
            self._transport.abort()
            return
        length = head.lower().partition(b"\r\ncontent-length: ")[2]
        self._whole_bytes = len(head) + 4 + int(length.split(b"\r\n")[0]) if length else -1
