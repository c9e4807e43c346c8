"""Many streams for long, some of which leave midway: no error but 503 at the bound, no growth, nothing left behind, and
seeded texts among them as they are alone.

`make soak` runs it for five minutes; `SOAK_S` sets another time.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvloop

from tests.serving import Server, serving
from tests.soak.asking import ask, is_idle, text, until

STREAMS = 500
SETTINGS = "[engine]\nmax_waiting = 440\n"
"""So that nearly all of them are open at once, and yet some meet the bound."""
LEAVING = 0.1
"""The share of requests whose client goes away after its first text."""
DURATION_S = float(os.environ.get("SOAK_S", "300"))
WARM = 0.5
"""The share of the time after which memory has to be flat."""
GROWTH = 1.1
SAMPLE_S = 2.0
SEEDS = 20

pytestmark = [pytest.mark.soak, pytest.mark.timeout(DURATION_S + 300)]


def request(server: Server, dice: random.Random) -> bytes:
    body = {
        "model": server.model,
        "prompt": " ".join(
            dice.choices(("once", "upon", "a", "time", "the", "king", "said", "no"), k=dice.randint(1, 60))
        ),
        "max_tokens": dice.randint(1, 96),
        "n": dice.choice((1, 1, 1, 2)),
        "logprobs": dice.choice((None, None, 2)),
        "stream": True,
    }
    sent = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: soak\r\nx-api-key: {server.key}\r\nconnection: close\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n".encode() + sent


async def one(server: Server, dice: random.Random) -> str:
    """What became of one request."""
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(request(server, dice))
        leaves = dice.random() < LEAVING
        seen = b""
        while part := await reader.read(1 << 16):
            seen = seen + part if len(seen) < 4096 else seen[:2048] + (seen[2048:] + part)[-2048:]
            if leaves and b"data: " in seen:
                return "left"
    finally:
        writer.transport.abort()
    if seen.startswith(b"HTTP/1.1 503 ") and b'"code":"no_capacity"' in seen and b"retry-after: " in seen.lower():
        return "no capacity"
    if seen.startswith(b"HTTP/1.1 200 ") and seen.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        return "whole"
    return f"broken: {seen[:200]!r} … {seen[-200:]!r}"


async def client(server: Server, seed: int, end_s: float, outcomes: Counter[str]) -> None:
    dice = random.Random(seed)
    while time.monotonic() < end_s:
        try:
            outcome = await one(server, dice)
        except OSError as error:
            outcome = f"broken: {error}"
        outcomes[outcome] += 1
        if outcome == "no capacity":
            await asyncio.sleep(1)


def resident_bytes(pid: int) -> dict[int, int]:
    """Of a process and of each that its threads started, by process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    sizes = {pid: pages * os.sysconf("SC_PAGE_SIZE")}
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            sizes |= resident_bytes(int(child))
    return sizes


async def seeded(server: Server, seed: int) -> str | None:
    """Its text; None where the bound refused it."""
    reply = await ask(server, prompt=f"Story number {seed}:", seed=seed, max_tokens=40)
    return None if reply.startswith(b"HTTP/1.1 503 ") else text(reply)


async def compare(server: Server, alone: list[str | None], end_s: float, alike: Counter[bool]) -> None:
    while time.monotonic() < end_s:
        for seed, expected in enumerate(alone):
            if (found := await seeded(server, seed)) is not None:
                alike[found == expected] += 1
            elif time.monotonic() < end_s:
                await asyncio.sleep(1)


async def load(server: Server) -> tuple[Counter[str], Counter[bool], list[dict[int, int]]]:
    """Outcomes, how many seeded texts were as they are alone, and the memory of each process over time."""
    outcomes: Counter[str] = Counter()
    alike: Counter[bool] = Counter()
    sizes: list[dict[int, int]] = []
    alone = [await seeded(server, seed) for seed in range(SEEDS)]
    end_s = time.monotonic() + DURATION_S
    async with asyncio.TaskGroup() as group:
        for seed in range(STREAMS):
            group.create_task(client(server, seed, end_s, outcomes))
        group.create_task(compare(server, alone, end_s, alike))
        while time.monotonic() < end_s:
            await asyncio.sleep(SAMPLE_S)
            sizes.append(resident_bytes(server.process.pid))
    await until(lambda: is_idle(server), "nothing is left behind")
    return outcomes, alike, sizes


def test_many_streams(tmp_path: Path) -> None:
    with serving(tmp_path, settings=SETTINGS) as server:
        server.complete()
        outcomes, alike, sizes = uvloop.run(load(server))
        shown = [{pid: size >> 20 for pid, size in sample.items()} for sample in sizes[:: max(1, len(sizes) // 20)]]
        print(f"\n{dict(outcomes)}\nseeded texts as alone: {dict(alike)}\nMiB by process: {shown}")
        assert {outcome for outcome in outcomes if outcome not in ("whole", "left", "no capacity")} == set()
        assert outcomes["whole"] > STREAMS
        assert outcomes["left"] > STREAMS * LEAVING
        assert set(alike) == {True}
        warm = sizes[int(len(sizes) * WARM)]
        for sample in sizes[-5:]:
            assert {pid for pid, size in sample.items() if size > warm[pid] * GROWTH} == set()
        assert server.complete(max_tokens=1)["choices"]
