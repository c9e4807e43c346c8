"""The response cache, as one request uses it: a stored reply is replayed, and a new one is stored.

Names and replies are encrypted with the caller's own API key. So a key finds only replies to its own requests, a hit or
its delay reveals nothing about other keys' requests, and neither does the store.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from andthen import __version__
from andthen.books.sealing import Seal, Unreadable
from andthen.cache.replies import Answerer, Kept, Recorder, is_settled, read, subject
from andthen.cache.store import Cache, CacheOutcome
from andthen.gateway.backend import Deployment, Receiver
from andthen.gateway.context import RequestContext

_PURPOSE = "cache"
_BATCH = 256
"""Events of a stored reply that are sent together; after each batch a slow client is waited for."""


class CacheLookup:
    """One request's use of the cache."""

    def __init__(self, ctx: RequestContext) -> None:
        self._cache = ctx.services.cache
        self._ctx = ctx
        self.found: Kept | None = None
        """The stored reply."""
        self._seal: Seal | None = None
        self._stores = False
        self._recorder: Recorder | None = None

    async def find(self) -> bool:
        """Looks the reply up; a hit needs no work and costs nothing. Sets the reply's headers."""
        ctx, cache = self._ctx, self._cache
        if cache is None:
            return False
        if any(self._is_settled(deployment) for deployment, _ in ctx.planned):
            self._seal = Seal(ctx.secret or "", _PURPOSE)
        control = _CacheControl.of(ctx)
        self._stores = control.stores
        outcome: CacheOutcome = "bypass"
        if control.reads and self._seal is not None and self._is_settled(ctx.answering):
            self.found = await self._look(cache, self._seal, control.max_age_s)
            outcome = "miss" if self.found is None else "hit"
        cache.count(outcome)
        ctx.reply_headers.append((b"x-andthen-cache", outcome.encode()))
        if self.found is not None:
            ctx.origin = "cache"
            ctx.reply_headers.append((b"age", b"%d" % _age_s(self.found)))
        return self.found is not None

    def recorder(self) -> Recorder | None:
        """Records the events of a reply that may be stored."""
        if self._cache is not None and self._seal is not None and self._stores and self.found is None:
            self._recorder = Recorder(self._ctx.asked, self._cache.settings.reply_bytes)
        return self._recorder

    async def replay(self, receiver: Receiver) -> None:
        """Gives `receiver` the stored events."""
        if self.found is None:
            raise RuntimeError("there is no stored reply")
        ctx = self._ctx
        ctx.fingerprint = self.found.fingerprint
        events = self.found.events
        for start in range(0, len(events), _BATCH):
            receiver(events[start : start + _BATCH])
            await ctx.drain()

    async def store(self) -> None:
        """Stores the reply that was recorded."""
        cache, seal, ctx = self._cache, self._seal, self._ctx
        if cache is None or seal is None or self._recorder is None:
            return
        kept = self._recorder.kept(time.time(), ctx.fingerprint)
        if kept is not None and self._is_settled(ctx.answering):
            name = self._name(seal, ctx.answering)
            await cache.store.put(name, seal.close(kept, name.hex()))

    def _is_settled(self, deployment: Deployment) -> bool:
        return is_settled(self._ctx.asked, deterministic=deployment.abilities.deterministic)

    async def _look(self, cache: Cache, seal: Seal, max_age_s: float) -> Kept | None:
        name = self._name(seal, self._ctx.answering)
        sealed = await cache.store.get(name)
        if sealed is None:
            return None
        try:
            kept = read(seal.open(sealed, name.hex()))
        except Unreadable:
            return None
        return None if kept is None or _age_s(kept) >= max_age_s else kept

    def _name(self, seal: Seal, deployment: Deployment) -> bytes:
        """The name under which the deployment's reply is stored."""
        return seal.digest(subject(self._ctx.asked, Answerer(__version__, deployment.model, deployment.identity)))


class _CacheControl(NamedTuple):
    """The request's `cache-control` (RFC 9111, section 5.2.1)."""

    reads: bool
    stores: bool
    max_age_s: float = float("inf")

    @classmethod
    def of(cls, ctx: RequestContext) -> _CacheControl:
        lines = [value.decode("latin-1") for name, value in ctx.http.headers if name == b"cache-control"]
        parts = [part.strip().lower().partition("=") for part in ",".join(lines).split(",")]
        said = {name: value for name, _, value in parts}
        if "no-store" in said:
            return cls(reads=False, stores=False)
        if "no-cache" in said:
            return cls(reads=False, stores=True)
        if (most := said.get("max-age")) is not None:
            most = most.strip('"')
            # An invalid number counts as 0: a new reply is never wrong.
            return cls(reads=True, stores=True, max_age_s=float(most) if most.isdecimal() else 0.0)
        return cls(reads=True, stores=True)


def _age_s(kept: Kept) -> float:
    """Not below 0: another machine's clock may be ahead of ours."""
    return max(0.0, time.time() - kept.made_at_s)
