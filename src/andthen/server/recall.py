"""What the cache is to one request: its reply may be there already, and the one that is made may be kept.

Names and replies are sealed with the caller's own API key. So a key finds what it was given itself and nothing else,
cannot tell by a reply or its delay what others have asked, and who reads the store learns neither.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, NamedTuple

from andthen import __version__
from andthen.books.sealing import Seal, Unreadable
from andthen.cache.replies import Answerer, Kept, Recorder, is_settled, read, subject
from andthen.cache.settings import CacheSettings
from andthen.cache.store import ReplyStore
from andthen.complete import Work
from andthen.contract.events import Event
from andthen.contract.request import CompletionRequest
from andthen.server.access import sent_secret
from andthen.server.http import Exchange
from andthen.sources import Deployment

Outcome = Literal["hit", "miss", "bypass"]

_PURPOSE = "cache"
_AT_ONCE = 256
"""Events of a kept reply that are sent together, so that a slow reader makes the rest wait."""


@dataclass(frozen=True)
class Cache:
    """What all requests of a worker share."""

    settings: CacheSettings
    store: ReplyStore
    count: Callable[[Outcome], None]


class Recall:
    """One request's; `found` comes first.

    Args:
        cache: None where it is off.
    """

    def __init__(self, cache: Cache | None, exchange: Exchange, request: CompletionRequest, work: Work) -> None:
        self._cache = cache
        self._exchange = exchange
        self._request = request
        self._work = work
        self._seal = Seal(sent_secret(exchange) or "", _PURPOSE) if self._may_be_kept else None
        self._keeps = False
        self._found: Kept | None = None

    async def found(self) -> bool:
        """Whether the reply is there already. The reply's headers tell."""
        if self._cache is None:
            return False
        wish = _Wish.of(self._exchange)
        self._keeps = wish.keeps
        outcome: Outcome = "bypass"
        if wish.looks and self._seal is not None and self._is_settled(self._work.deployment):
            self._found = await self._look(self._cache, self._seal, wish.max_age_s)
            outcome = "miss" if self._found is None else "hit"
        self._cache.count(outcome)
        self._exchange.reply_headers.append((b"x-andthen-cache", outcome.encode()))
        if self._found is not None:
            self._exchange.reply_headers.append((b"age", b"%d" % _age_s(self._found)))
        return self._found is not None

    def events(self) -> AsyncGenerator[list[Event]]:
        """The kept reply's, else the work's. To be closed, as those."""
        if self._found is not None:
            return self._replayed(self._found)
        if self._cache is not None and self._seal is not None and self._keeps:
            return self._recorded(self._cache, self._seal)
        return self._work.events()

    @property
    def _may_be_kept(self) -> bool:
        """Whether any of those who may answer has the text settled."""
        return self._cache is not None and any(self._is_settled(deployment) for deployment, _ in self._work.candidates)

    def _is_settled(self, deployment: Deployment) -> bool:
        return is_settled(self._request, deterministic=deployment.abilities.deterministic)

    async def _look(self, cache: Cache, seal: Seal, max_age_s: float) -> Kept | None:
        name = self._name(seal, self._work.deployment)
        sealed = await cache.store.get(name)
        if sealed is None:
            return None
        try:
            kept = read(seal.open(sealed, name.hex()))
        except Unreadable:
            return None
        return None if kept is None or _age_s(kept) >= max_age_s else kept

    async def _replayed(self, kept: Kept) -> AsyncGenerator[list[Event]]:
        self._work.fingerprint = kept.fingerprint
        events = kept.events
        for start in range(0, len(events), _AT_ONCE):
            yield events[start : start + _AT_ONCE]

    async def _recorded(self, cache: Cache, seal: Seal) -> AsyncGenerator[list[Event]]:
        recorder = Recorder(self._request, cache.settings.reply_bytes)
        async with aclosing(self._work.events()) as batches:
            async for events in batches:
                recorder.feed(events)
                yield events
        answered = self._work.deployment
        kept = recorder.kept(time.time(), self._work.fingerprint)
        if kept is not None and self._is_settled(answered):
            name = self._name(seal, answered)
            await cache.store.put(name, seal.close(kept, name.hex()))

    def _name(self, seal: Seal, deployment: Deployment) -> bytes:
        """By which the deployment's reply is found."""
        return seal.digest(subject(self._request, Answerer(__version__, deployment.model, deployment.identity)))


class _Wish(NamedTuple):
    """What the caller's `cache-control` says (RFC 9111, section 5.2.1)."""

    looks: bool
    keeps: bool
    max_age_s: float = float("inf")

    @classmethod
    def of(cls, exchange: Exchange) -> _Wish:
        lines = [value.decode("latin-1") for name, value in exchange.headers if name == b"cache-control"]
        parts = [part.strip().lower().partition("=") for part in ",".join(lines).split(",")]
        said = {name: value for name, _, value in parts}
        if "no-store" in said:
            return cls(looks=False, keeps=False)
        if "no-cache" in said:
            return cls(looks=False, keeps=True)
        if (most := said.get("max-age")) is not None:
            most = most.strip('"')
            # What is no number is taken for 0: a reply that is made anew can't be wrong.
            return cls(looks=True, keeps=True, max_age_s=float(most) if most.isdecimal() else 0.0)
        return cls(looks=True, keeps=True)


def _age_s(kept: Kept) -> float:
    """Not below 0: another machine's clock may be ahead of ours."""
    return max(0.0, time.time() - kept.made_at_s)
