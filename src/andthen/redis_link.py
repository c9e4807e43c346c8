"""Connections to Redis or Valkey that nobody waits on for long. The only file that knows its client, an extra of the
package; who needs it imports this file only then. Knows nothing of what is kept there.

Once Redis does not answer, or not as it should, nothing is asked of it until a probe with growing delays has found it
back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

TIMEOUT_S = 0.25
LONGEST_PROBE_S = 2.0

_FIRST_PROBE_S = 0.1
_CONNECTIONS = 16

_LOG = structlog.get_logger("andthen.redis")

_Answer = TypeVar("_Answer")


class Away(Exception):
    """Redis does not answer, or not as it should."""


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
