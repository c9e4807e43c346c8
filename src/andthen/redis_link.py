"""Connections to Redis or Valkey that nobody waits on for long. The only file that knows its client, an extra of the
package; who needs it imports this file only then. Knows nothing of what is kept there.

Once Redis does not answer, or not as it should, nothing is asked of it until a probe with growing delays has found it
back.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.maint_notifications import MaintNotificationsConfig

TIMEOUT_S = 0.25
LONGEST_PROBE_S = 2.0

_FIRST_PROBE_S = 0.1
_CONNECTIONS = 16
_AT_ONCE = 128
"""Scripts that are asked for together."""

_LOG = structlog.get_logger("andthen.redis")

_Answer = TypeVar("_Answer")


class Away(Exception):
    """Redis does not answer, or not as it should."""


class Script(NamedTuple):
    """A script to be run, which answers whole numbers."""

    text: str
    keys: Sequence[str]
    arguments: Sequence[str | int]


class RedisLink:
    """The connections, and whether they lead anywhere.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        use: what the log says it is needed for.
        timeout_s: how long an answer may take.
    """

    def __init__(self, url: str, use: str, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        self._told = {"use": use, "address": f"{parts.hostname or parts.path}:{parts.port or 6379}"}
        self._timeout_s = timeout_s
        self._room = asyncio.Semaphore(_CONNECTIONS)
        pool = redis.asyncio.ConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS + 1,  # one to probe with
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            # Else a connection that Redis has closed is not noticed before it is used (redis-py 8.1.0).
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        self.client = redis.asyncio.Redis.from_pool(pool)
        """To be asked within `run` alone."""
        self._away_since_s: float | None = None
        self.lost = asyncio.Event()
        """Set while it is away."""
        self._asked: list[tuple[Script, asyncio.Future[list[int]]]] = []
        self._asking: asyncio.Task[None] | None = None

    @property
    def away(self) -> bool:
        return self._away_since_s is not None

    async def run(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """What `ask` answers. The wait behind others of this process has no bound: it is no fault of Redis'.

        Raises:
            Away
        """
        async with self._room:
            if self.away:
                raise Away
            return await self._run(ask)

    async def run_script(self, script: Script) -> list[int]:
        """What a script answers. Those that gather while others are asked for go out together, in their order: one by
        one, the client's work for each is most of what it costs.

        Raises:
            Away
        """
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._asked.append((script, answer))
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="andthen-redis")
        return await answer

    async def _ask(self) -> None:
        while asked := self._asked[:_AT_ONCE]:
            del self._asked[:_AT_ONCE]
            try:
                found = await self.run(functools.partial(self.execute, [script for script, _ in asked]))
            except Exception as error:  # whatever it was, nobody must wait for ever
                for _, answer in asked:
                    if not answer.done():
                        answer.set_exception(error)
            else:
                for (_, answer), numbers in zip(asked, found, strict=True):
                    if not answer.done():
                        answer.set_result(numbers)

    async def execute(self, scripts: Sequence[Script]) -> list[list[int]]:
        """What each of them answers. To be asked within `run` or a probe alone."""
        found = await self._together(scripts)
        if unknown := [place for place, answer in enumerate(found) if isinstance(answer, NoScriptError)]:
            for text in {scripts[place].text for place in unknown}:
                await self.client.script_load(text)
            again = await self._together([scripts[place] for place in unknown])
            for place, answer in zip(unknown, again, strict=True):
                found[place] = answer
        for answer in found:
            if isinstance(answer, Exception):
                raise answer
        return found

    async def _together(self, scripts: Sequence[Script]) -> list[Any]:
        if len(scripts) == 1:  # for one alone a pipeline is the dearer way
            ((text, keys, arguments),) = scripts
            try:
                return [await self.client.evalsha(_digest(text), len(keys), *keys, *arguments)]
            except NoScriptError as error:
                return [error]
        async with self.client.pipeline(transaction=False) as pipeline:
            for text, keys, arguments in scripts:
                pipeline.evalsha(_digest(text), len(keys), *keys, *arguments)
            return list(await pipeline.execute(raise_on_error=False))

    async def _run(self, ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await ask()
        except (RedisError, OSError, TimeoutError) as error:
            self._lose(error)
            raise Away from error

    async def probe(self, ask: Callable[[], Awaitable[Any]]) -> bool:
        """Whether it answers what it will be asked for."""
        try:
            await self._run(ask)
        except Away:
            return False
        return True

    async def wait_back(self, ask: Callable[[], Awaitable[Any]]) -> None:
        """Until a probe is answered."""
        delay_s = _FIRST_PROBE_S
        with contextlib.suppress(RedisError, OSError):
            await self.client.connection_pool.disconnect(inuse_connections=False)  # from the Redis that was
        while not await self.probe(ask):
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, LONGEST_PROBE_S)
        if self._away_since_s is not None:
            _LOG.info("redis_back", **self._told, after_s=round(time.monotonic() - self._away_since_s, 1))
        self._away_since_s = None
        self.lost.clear()

    async def close(self) -> None:
        await self.client.aclose()

    def _lose(self, error: Exception) -> None:
        if self._away_since_s is None:
            self._away_since_s = time.monotonic()
            _LOG.error("redis_gone", **self._told, reason=f"{type(error).__name__}: {error}")
        self.lost.set()


async def end(task: asyncio.Task[None]) -> None:
    """Cancels a task that asks Redis, as often as it takes: the client may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)


@functools.cache
def _digest(script: str) -> str:
    """By which Redis knows it."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
