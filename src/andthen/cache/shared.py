"""Replies in Redis or Valkey, where all workers and machines find them.

While Redis does not answer, nothing is found and nothing is kept, and no request waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from andthen.redis_link import TIMEOUT_S, Away, RedisLink, end

_PREFIX = "andthen:cache"


class SharedStore:
    """The `ReplyStore` in Redis: `async with SharedStore(url, keep_s) as store`.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        keep_s: how long each is kept.
        prefix: begins the names of all its keys in Redis.
    """

    def __init__(self, url: str, keep_s: float, *, timeout_s: float = TIMEOUT_S, prefix: str = _PREFIX) -> None:
        self._redis = RedisLink(url, "cache", timeout_s)
        self._keep_ms = round(keep_s * 1000)
        self._prefix = prefix

    async def __aenter__(self) -> Self:
        await self._redis.probe(self._probe)
        self._keeper = asyncio.create_task(self._keep(), name="andthen-cache")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await end(self._keeper)
        await self._redis.close()

    async def get(self, name: bytes) -> bytes | None:
        """As the protocol says."""
        try:
            found = await self._redis.run(lambda: self._redis.client.get(self._key(name)))
        except Away:
            return None
        return found if isinstance(found, bytes) else None

    async def put(self, name: bytes, kept: bytes) -> None:
        """As the protocol says."""
        with contextlib.suppress(Away):
            await self._redis.run(lambda: self._redis.client.set(self._key(name), kept, px=self._keep_ms))

    async def _keep(self) -> None:
        """Waits for a Redis that is gone."""
        while True:
            await self._redis.lost.wait()
            await self._redis.wait_back(self._probe)

    async def _probe(self) -> None:
        """A write: one that takes none, because it is full, is as good as gone."""
        await self._redis.client.set(self._key(b"probe"), b"", px=self._keep_ms)

    def _key(self, name: bytes) -> str:
        return f"{self._prefix}:{name.hex()}"
