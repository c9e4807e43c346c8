"""Limits that several machines share, counted in Redis or Valkey.

A take is one script and a settlement is one, so each is whole or not at all, and the time is Redis' own. A grant holds
a lease there that is renewed while it runs: what a process leaves behind that died is free again `lease_s` later. The
tokens that it reserved stay counted, for nobody knows what it used, until they slide out of the window.

While Redis does not answer, keys with bounds are refused or admitted, as the settings say. Settlements that it missed
are told once it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import structlog
from msgspec import Struct

from andthen.books import scripts
from andthen.books.limits import (
    WINDOW_MS,
    Bounds,
    Grant,
    Kind,
    Refused,
    Standing,
    State,
    check_possible,
    limited,
    slot_ms,
)
from andthen.contract.errors import LimitsUnavailable
from andthen.descriptors import or_refusal
from andthen.redis_link import LONGEST_PROBE_S, TIMEOUT_S, Away, RedisLink, Script, end

LEASE_S = 15.0

_RENEWALS_A_LEASE = 3
_PREFIX = "andthen:limits"
_MOST = 2**53 - 1
"""The largest whole number that a script can count."""
_KINDS: tuple[Kind, ...] = ("requests", "tokens", "concurrent")

_LOG = structlog.get_logger("andthen.limits")

Gone = Literal["closed", "open"]


class _Owed(Struct, frozen=True):
    """What Redis is yet to be told of a grant."""

    key_id: str
    tokens: int
    forget: bool
    until_s: float
    """By `time.monotonic`: later it makes no difference."""


class SharedLimiter:
    """The `Limiter` in Redis: `async with SharedLimiter(url, gone="closed") as limiter`.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        gone: what becomes of keys with bounds while Redis is gone: closed refuses them, open admits them.
        on_gone: called for each request that found no Redis.
        prefix: begins the names of all its keys in Redis.
    """

    def __init__(
        self,
        url: str,
        *,
        gone: Gone,
        on_gone: Callable[[], object] = lambda: None,
        window_ms: int = WINDOW_MS,
        lease_s: float = LEASE_S,
        timeout_s: float = TIMEOUT_S,
        prefix: str = _PREFIX,
    ) -> None:
        self._gone = gone
        self._on_gone = on_gone
        self._window_ms = window_ms
        self._lease_s = lease_s
        self._prefix = prefix
        self._redis = RedisLink(url, "limits", timeout_s)
        self._running: dict[str, str] = {}
        """A grant's id → its key's."""
        self._owed: dict[str, _Owed] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        await self._redis.probe(self._probe)
        self._keeper = asyncio.create_task(self._keep(), name="andthen-limits")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await end(self._keeper)
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._pay()
        await self._redis.close()

    @property
    def state(self) -> State:
        if not self._redis.away:
            return "ok"
        return "refusing" if self._gone == "closed" else "uncounted"

    async def take(self, key_id: str, bounds: Bounds, tokens: int) -> Grant:
        """As the protocol says."""
        if bounds.unbounded:
            return Grant("", key_id)
        check_possible(bounds, tokens)
        if self._redis.away:
            return self._without(key_id)
        grant_id = secrets.token_hex(8)
        # In a task of its own, so that a cancellation never cuts a reply in two.
        asking = self._spawn(self._take(grant_id, key_id, bounds, tokens))
        try:
            reply = await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._owe(grant_id, key_id, 0, forget=True)
            asking.add_done_callback(lambda _: self._spawn(self._tell(grant_id)))
            raise
        except Away:
            self._owe(grant_id, key_id, 0, forget=True)  # it may have been counted, and only the reply was lost
            return self._without(key_id)
        refused_for, wait_ms, requests, used, reset_ms = reply
        standing = Standing(requests, used, reset_ms)
        if refused_for:
            kind = _KINDS[refused_for - 1]
            wait = None if kind == "concurrent" else wait_ms
            raise limited(bounds, Refused(kind, wait, standing), tokens)
        self._running[grant_id] = key_id
        return Grant(grant_id, key_id, bounds, standing)

    async def settle(self, grant: Grant, tokens: int) -> None:
        """As the protocol says."""
        if self._running.pop(grant.id, None) is None:
            return
        self._owe(grant.id, grant.key_id, tokens, forget=False)
        await asyncio.shield(self._spawn(self._tell(grant.id)))

    def _without(self, key_id: str) -> Grant:
        self._on_gone()
        if self._gone == "open":
            return Grant("", key_id)
        raise or_refusal(LimitsUnavailable("This key's limits can't be counted at the moment: send the request again."))

    async def _take(self, grant_id: str, key_id: str, bounds: Bounds, tokens: int) -> list[int]:
        most = (
            -1 if bound is None else min(bound, _MOST) for bound in (bounds.requests, bounds.tokens, bounds.concurrent)
        )
        return await self._run(scripts.TAKE, self._names(key_id), [*self._spans(), grant_id, min(tokens, _MOST), *most])

    def _owe(self, grant_id: str, key_id: str, tokens: int, *, forget: bool) -> None:
        until_s = time.monotonic() + max(self._lease_s, self._window_ms / 1000)
        self._owed[grant_id] = _Owed(key_id, tokens, forget, until_s)

    async def _pay(self) -> None:
        for grant_id in list(self._owed):
            await self._tell(grant_id)

    async def _tell(self, grant_id: str) -> None:
        owed = self._owed.get(grant_id)
        if owed is None or self._redis.away:
            return
        arguments: list[str | int] = [*self._spans(), grant_id, owed.tokens, int(owed.forget)]
        with contextlib.suppress(Away):
            await self._run(scripts.SETTLE, self._names(owed.key_id), arguments)
            self._owed.pop(grant_id, None)

    async def _keep(self) -> None:
        """Renews the leases and tells what is owed, and waits for a Redis that is gone."""
        interval_s = self._lease_s / _RENEWALS_A_LEASE
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._redis.lost.wait(), interval_s)
            try:
                if self._redis.away:
                    await self._redis.wait_back(self._probe)
                await self._look_after()
            except Exception:
                _LOG.exception("limits_not_looked_after")
                await asyncio.sleep(LONGEST_PROBE_S)

    async def _look_after(self) -> None:
        now_s = time.monotonic()
        self._owed = {grant_id: owed for grant_id, owed in self._owed.items() if owed.until_s > now_s}
        await self._pay()
        await self._renew()

    async def _renew(self) -> None:
        by_key: dict[str, list[str]] = {}
        for grant_id, key_id in self._running.items():
            by_key.setdefault(key_id, []).append(grant_id)
        with contextlib.suppress(Away):
            for key_id, ids in by_key.items():
                await self._run(scripts.RENEW, self._names(key_id), [*self._spans(), *ids])
                for grant_id in ids:
                    if grant_id not in self._running and grant_id not in self._owed:
                        # It was settled meanwhile, and the renewal may have come after that.
                        self._owe(grant_id, key_id, 0, forget=False)
            await self._pay()

    async def _probe(self) -> None:
        """A renewal for a key that is nobody's: it needs all that the others need, scripts and writes."""
        await self._redis.execute([Script(scripts.RENEW, self._names("probe"), [*self._spans(), "probe"])])

    async def _run(self, script: str, names: Sequence[str], arguments: Sequence[str | int]) -> list[int]:
        """Raises Away."""
        return await self._redis.run_script(Script(script, names, arguments))

    def _names(self, key_id: str) -> list[str]:
        """In braces is what a cluster shards by."""
        return [f"{self._prefix}:{{{key_id}}}:{part}" for part in ("log", "slots", "running")]

    def _spans(self) -> list[int]:
        return [self._window_ms, slot_ms(self._window_ms), round(self._lease_s * 1000)]

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
