"""What the way through the server costs beside the engine: CPU of a request and of a streamed chunk."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.clients import Address, ask
from bench.contenders import our_server
from bench.cpu import family, process_cpu_s
from bench.load import SLOTS, Load, Setup

_REQUESTS = 32
"""Of each client in a run."""
_STREAMS = 4


def path(setup: Setup, rounds: int) -> Iterator[str]:
    """The table."""
    vocab_size = setup.known().vocabulary.vocab_size
    requests, chunks = [], []
    with our_server(setup) as (address, pid):
        ask(address, Load(SLOTS, 1, 0, vocab_size), stream=True)
        for turn in range(1, rounds + 1):
            requests.append(_request_us(address, pid, Load(SLOTS, _REQUESTS, 2 * turn, vocab_size)))
            chunks.append(_chunk_us(address, pid, Load(SLOTS, _STREAMS, 2 * turn + 1, vocab_size), requests[-1][0]))
    yield f"| CPU µs, {SLOTS} clients | HTTP worker | engine's process, its computing too |"
    yield "|---|---|---|"
    for name, found in (("request of one token, on a connection of its own", requests), ("streamed chunk", chunks)):
        worker_us, engine_us = (statistics.median(column) for column in zip(*found, strict=True))
        yield f"| {name} | {worker_us:,.0f} | {engine_us:,.0f} |"
    yield ""


def _request_us(address: Address, pid: int, load: Load) -> tuple[float, float]:
    before = _spent_s(pid)
    replies = ask(address, load, stream=False, max_tokens=1)
    worker_s, engine_s = (after - earlier for after, earlier in zip(_spent_s(pid), before, strict=True))
    return worker_s / replies.received * 1e6, engine_s / replies.received * 1e6


def _chunk_us(address: Address, pid: int, load: Load, request_us: float) -> tuple[float, float]:
    """The worker's share is without what the requests cost without chunks."""
    before = _spent_s(pid)
    replies = ask(address, load, stream=True)
    worker_s, engine_s = (after - earlier for after, earlier in zip(_spent_s(pid), before, strict=True))
    return (worker_s * 1e6 - replies.received * request_us) / replies.chunks, engine_s / replies.chunks * 1e6


def _spent_s(pid: int) -> tuple[float, float]:
    """Of the process that serves and of those that it started: the engine."""
    return process_cpu_s(pid), sum(map(process_cpu_s, family(pid)[1:]))
