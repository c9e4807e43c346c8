"""SIGKILL in the midst of many requests: what their clients see, and that the server comes back by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.error
from collections import Counter
from pathlib import Path

import pytest
import uvloop

from tests.serving import Server, serving
from tests.soak.asking import ask, gauge, is_idle, is_whole, until

STREAMS = 32
OTHERS = 8
TOKENS = 900
APART_S = 0.01
"""So long after another that not the same worker takes them all: who wakes takes everybody that waits."""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]


def pid(server: Server, place: str) -> int:
    """Of the process that was started last in this place."""
    log = (server.home / "server.log").read_text().splitlines()
    started = [json.loads(line) for line in log if '"process_started"' in line]
    return [int(line["pid"]) for line in started if line["place"] == place][-1]


def is_ready(server: Server) -> bool:
    try:
        return bool(server.get("/readyz"))
    except (urllib.error.HTTPError, ConnectionError):
        return False


async def kill_among(server: Server, place: str) -> list[bytes]:
    """Kills a process when streams and whole replies are under way; what their clients got."""
    asking = []
    for number in range(STREAMS + OTHERS):
        asking.append(asyncio.create_task(ask(server, stream=number < STREAMS, max_tokens=TOKENS, ignore_eos=True)))
        await asyncio.sleep(APART_S)
    await until(lambda: gauge(server, "andthen_engine_running") >= STREAMS, "they run")
    os.kill(pid(server, place), signal.SIGKILL)
    return await asyncio.gather(*asking)


def ending(reply: bytes) -> str:
    """How a reply ended, in words."""
    if not reply:
        return "connection closed"
    error = next((code for code in ("engine_restarted",) if f'"code":"{code}"'.encode() in reply), "")
    if reply.startswith(b"HTTP/1.1 503 "):
        return f"503 {error}"
    if error:
        return f"error event {error}" + (", then [DONE]" if b"[DONE]" in reply else "")
    return "whole" if is_whole(reply) or b"content-length" in reply.partition(b"\r\n\r\n")[0].lower() else "cut"


def test_the_engine_dies(tmp_path: Path) -> None:
    async def run(server: Server) -> None:
        before = server.complete(seed=7, max_tokens=24)["choices"]
        endings = Counter(map(ending, await kill_among(server, "engine")))
        back_s = await until(lambda: is_ready(server), "the engine is back")
        print(f"\nengine killed: {dict(endings)}; ready {back_s:.2f} s after the last reply")
        assert endings == {"error event engine_restarted": STREAMS, "503 engine_restarted": OTHERS}
        assert server.complete(seed=7, max_tokens=24)["choices"] == before
        await until(lambda: is_idle(server), "nothing is left behind")

    with serving(tmp_path) as server:
        uvloop.run(run(server))


def test_a_worker_dies(tmp_path: Path) -> None:
    async def run(server: Server) -> None:
        killed = pid(server, "worker-1")
        endings = Counter(map(ending, await kill_among(server, "worker-1")))
        back_s = await until(lambda: pid(server, "worker-1") != killed, "it was started again")
        print(f"\nworker killed: {dict(endings)}; started again {back_s:.2f} s after the last reply")
        assert set(endings) <= {"whole", "cut", "connection closed"}
        assert endings["whole"] > 0, "the other worker's clients saw nothing of it"
        assert endings.total() - endings["whole"] > 0, "it served some"
        await until(lambda: is_idle(server), "its work was cancelled in the engine")
        assert all(server.complete(max_tokens=1)["choices"] for _ in range(20))

    with serving(tmp_path, "--workers", "2") as server:
        uvloop.run(run(server))
