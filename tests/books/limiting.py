"""The homes of the limits, each as a pair of limiters that share their counts, and a plain model of the rule."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from andthen.books.hub import Hub, HubLimiter
from andthen.books.limits import WINDOW_MS, Limiter, slot_ms
from andthen.books.memory import MemoryLimiter
from andthen.books.shared import SharedLimiter

REDIS = "redis://127.0.0.1:6379/0"
HOMES = ("memory", "hub", "redis")

_numbers = itertools.count()


def fresh_prefix() -> str:
    return f"andthen-tests:{os.getpid()}:{next(_numbers)}"


def shared(url: str = REDIS, *, prefix: str, **settings: object) -> SharedLimiter:
    """Patient, so that a machine at work passes for no Redis that is gone."""
    given = {"gone": "closed", "timeout_s": 5.0} | settings
    return SharedLimiter(url, prefix=prefix, **given)  # type: ignore[arg-type]


@asynccontextmanager
async def two(home: str, folder: Path, window_ms: int = WINDOW_MS) -> AsyncIterator[tuple[Limiter, Limiter]]:
    """Two replicas or workers; in one process the same limiter twice."""
    async with AsyncExitStack() as stack:
        if home == "memory":
            limiter = MemoryLimiter(window_ms=window_ms)
            yield limiter, limiter
        elif home == "hub":
            path = str(folder / "limits")
            await stack.enter_async_context(Hub(path, window_ms=window_ms))
            yield (
                await stack.enter_async_context(HubLimiter(path)),
                await stack.enter_async_context(HubLimiter(path)),
            )
        else:
            prefix = fresh_prefix()
            one, other = (shared(prefix=prefix, window_ms=window_ms) for _ in range(2))
            yield await stack.enter_async_context(one), await stack.enter_async_context(other)


async def until(true: Callable[[], Awaitable[bool]], why: str, within_s: float = 10) -> None:
    deadline_s = time.monotonic() + within_s
    while not await true():
        assert time.monotonic() < deadline_s, f"not so after {within_s} s: {why}"
        await asyncio.sleep(0.01)


class PlainModel:
    """The rule in its plainest words: a list of what was admitted, and a sum over it."""

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._admitted: list[list[int]] = []

    def used(self, now_ms: int, longer_ms: int = 0) -> tuple[int, int]:
        """Requests and tokens of the last window, or of one that is longer."""
        since_ms = now_ms - self._window_ms - longer_ms
        inside = [tokens for at_ms, tokens in self._admitted if at_ms > since_ms]
        return len(inside), sum(inside)

    def fits(self, now_ms: int, requests: int, tokens: int, needed: int, longer_ms: int = 0) -> bool:
        used = self.used(now_ms, longer_ms)
        return used[0] + 1 <= requests and used[1] + needed <= tokens

    def admit(self, now_ms: int, tokens: int) -> int:
        self._admitted.append([now_ms, tokens])
        return len(self._admitted) - 1

    def settle(self, number: int, tokens: int) -> None:
        self._admitted[number][1] = tokens

    @property
    def slack_ms(self) -> int:
        return slot_ms(self._window_ms)


@contextmanager
def redis_of_its_own(folder: Path, port: int | None = None, *options: str) -> Iterator[OwnRedis]:
    server = OwnRedis(folder, port or free_port())
    server.start(*options)
    try:
        yield server
    finally:
        server.kill()


class OwnRedis:
    """A Redis that a test may kill."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self, *options: str) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        assert program, "these tests need redis-server or valkey-server"
        given = ("--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder))
        self._process = subprocess.Popen([program, *given, *options], stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline_s
                time.sleep(0.02)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])
