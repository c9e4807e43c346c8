"""What the routes stand on, put together by the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andthen.books.limits import Limiter
from andthen.books.prices import PriceBook
from andthen.books.replies import KeptReplies
from andthen.books.store import Store
from andthen.books.texts import Texts
from andthen.books.watch import KeyWatch
from andthen.cache.store import Cache
from andthen.contract.limits import Limits
from andthen.engine.client import EngineClient
from andthen.gateway.billing import Accounts
from andthen.gateway.catalog import Catalog
from andthen.gateway.settings import ServerSettings
from andthen.http.deadlines import Deadlines
from andthen.observability.access_log import AccessLog
from andthen.observability.metrics import ServerMetrics

if TYPE_CHECKING:
    from andthen.telemetry.otel import Telemetry


@dataclass
class Phase:
    """What is the same for all requests of a worker, under whatever settings they began."""

    stopping: bool = False
    detached: set[asyncio.Task[None]] = field(default_factory=set)
    """What goes on without its client."""


@dataclass(frozen=True)
class Services:
    """Under one reading of the settings. A request keeps to the services that it began with."""

    settings: ServerSettings
    limits: Limits
    store: Store
    keys: KeyWatch
    engine: EngineClient
    catalog: Catalog
    prices: PriceBook
    accounts: Accounts
    limiter: Limiter
    texts: Texts
    cache: Cache | None
    replies: KeptReplies
    metrics: ServerMetrics
    deadlines: Deadlines
    access_log: AccessLog
    run_dir: Path
    """The folder that all processes of this server share."""
    telemetry: Telemetry | None
    """None where none is wanted."""
    started_at: int
    """Unix time in seconds at which the server started, the same in all its workers."""
    phase: Phase = field(default_factory=Phase)

    @property
    def stopping(self) -> bool:
        """No request is begun any more, and those that run are ended."""
        return self.phase.stopping

    def detach(self, work: Coroutine[Any, Any, None]) -> None:
        """Goes on with it whether its client stays or not, until the server stops."""
        task = asyncio.create_task(work)
        self.phase.detached.add(task)
        task.add_done_callback(self.phase.detached.discard)
