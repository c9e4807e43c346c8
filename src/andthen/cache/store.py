"""Where replies are kept, whatever they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from andthen.cache.settings import CacheSettings

CacheOutcome = Literal["hit", "miss", "bypass"]


class ReplyStore(Protocol):
    """What is not found is made anew, so nothing here ever raises, and nothing takes long."""

    async def get(self, name: bytes) -> bytes | None:
        """What was put there last; None where that is gone or can't be had."""

    async def put(self, name: bytes, kept: bytes) -> None:
        """Keeps it if it can, for as long as the settings say."""


@dataclass(frozen=True)
class Cache:
    """The response cache of a worker, which all its requests share."""

    settings: CacheSettings
    store: ReplyStore
    count: Callable[[CacheOutcome], None]
    """Counts how a request came out, for the metrics."""
