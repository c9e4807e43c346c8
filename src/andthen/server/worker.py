"""A process that serves HTTP: what it needs, put together, and run until it is told to stop.

The same code serves in the supervising process, where one worker is enough, and in processes of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog
import uvloop
from msgspec import Struct

from andthen import child
from andthen.books.hub import HubBudgets, HubLimiter
from andthen.books.limits import Limiter
from andthen.books.memory import MemoryLimiter
from andthen.books.price_table import price_book
from andthen.books.prices import Prices
from andthen.books.replies import KeptReplies
from andthen.books.retention import Retention
from andthen.books.settings import BooksSettings
from andthen.books.spools import recover_spools
from andthen.books.store import SqlStore, open_store
from andthen.books.texts import Texts
from andthen.books.watch import KeyWatch
from andthen.cache.memory import MemoryStore
from andthen.cache.settings import CacheSettings
from andthen.cache.store import Cache, CacheOutcome
from andthen.contract.limits import Limits
from andthen.engine.client import EngineClient
from andthen.gateway.billing import Accounts, CountTokens
from andthen.gateway.catalog import Catalog
from andthen.gateway.local import LocalBackend
from andthen.gateway.services import Phase, Services
from andthen.gateway.settings import ServerSettings
from andthen.http.client import HttpClient
from andthen.http.deadlines import Deadlines
from andthen.http.server import HttpServer
from andthen.ledger.budgets import BudgetOwner, Budgets
from andthen.ledger.journal import Journal
from andthen.ledger.machine import FOLDER, machine_ledger
from andthen.ledger.recovery import new_lease_owner
from andthen.ledger.worker_ledger import WorkerLedger
from andthen.observability import logs, metrics
from andthen.observability.access_log import AccessLog
from andthen.observability.metric_store import MetricStore
from andthen.server.app import App
from andthen.server.renewal import Offers
from andthen.server.routes import Routes
from andthen.telemetry.settings import TelemetrySettings
from andthen.vendors.settings import Upstream

if TYPE_CHECKING:
    from andthen.telemetry.otel import Telemetry

COMMAND = (sys.executable, "-m", "andthen.server.worker")

_INHERITED = re.compile(
    r"(PG|SSL_CERT_|OTEL_)\w+|RES_OPTIONS|LOCALDOMAIN|HOSTALIASES|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|(HTTPS?|ALL|NO)_PROXY",
    re.IGNORECASE,
)
"""Names of the environment's variables that a process of its own gets: what the clients of PostgreSQL and of telemetry
read there, and the system's resolver. All settings, and the vendors' keys, come by standard input."""

_ENGINE_WAIT_S = 20.0
"""How long a new worker leaves connections waiting for the engine's first answer, before it refuses them."""
_LAST_GRACE_S = 5
"""How long requests may take to end after the drain's bound, when each is being ended by an error: settling one may
wait for the engine or the database. Then it is not waited for any more."""
_LAST_REPLY_S = 1
"""How long those last errors may take to be sent."""

_LOG = structlog.get_logger("andthen.server")


class LiveSettings(Struct, frozen=True):
    """What may be set anew while a worker serves."""

    server: ServerSettings
    """But for its address and the number of workers."""
    limits: Limits
    upstream: Upstream
    prices: Prices
    logs: logs.LogSettings


class WorkerBoot(Struct, frozen=True):
    """What a worker is told at its start."""

    place: str
    """Its name among the processes: `worker-0`."""
    listening_fd: int
    """The bound and listening TCP socket, shared by all workers; the worker closes it when it drains."""
    engine_path: str
    run_dir: str
    hub_path: str
    """Where the supervisor counts for several workers; empty where this process counts for itself."""
    group: str
    """The name of this server among all that write into the database."""
    home: str
    """The folder of the state."""
    database: str
    """PostgreSQL's URL, or the path of the SQLite file."""
    started_at: int
    """Unix time in seconds at which the server started."""
    books: BooksSettings
    cache: CacheSettings
    telemetry: TelemetrySettings
    live: LiveSettings


def offers_path(run_dir: Path, place: str) -> Path:
    """Of the socket where a worker is offered other settings."""
    return run_dir / f"{place}.offers"


def spawn(boot: WorkerBoot) -> subprocess.Popen[bytes]:
    """Starts a worker process. It drains and ends when the returned process's `stdin` is closed."""
    return child.spawn(COMMAND, boot, descriptors=[boot.listening_fd], inherited=_INHERITED, environment={})


async def serve(
    boot: WorkerBoot, stop: asyncio.Event, metric_store: MetricStore, on_serving: Callable[[], None] = lambda: None
) -> None:
    """Serves until `stop` is set and the requests that run then have ended, at most `drain_s` later.

    Args:
        on_serving: called once, when completions are accepted.
    """
    measured = metrics.ServerMetrics(metric_store)
    opened = await asyncio.to_thread(open_store, boot.database, durability=boot.books.durability)
    with contextlib.closing(opened) as store:
        async with (
            KeyWatch(store) as keys,
            _limiter(boot, measured) as limiter,
            _cache(boot.cache, measured) as cache,
            EngineClient(boot.engine_path) as engine,
            HttpClient() as client,
            _budgets(boot, store) as budgets,
            _ledger(boot, store, measured) as ledger,
            Retention(store, boot.books),
            Texts(store, boot.books) as texts,
            KeptReplies(store, ledger.lease_owner, boot.books) as replies,
            _telemetry(boot) as telemetry,
        ):
            phase = Phase()
            access_log = AccessLog()
            deadlines = Deadlines(asyncio.get_running_loop())

            def services(live: LiveSettings) -> Services:
                prices = price_book(live.prices)
                return Services(
                    settings=live.server,
                    limits=live.limits,
                    store=store,
                    keys=keys,
                    engine=engine,
                    catalog=Catalog(LocalBackend(engine, live.limits).deployments, live.upstream, client, live.limits),
                    prices=prices,
                    accounts=Accounts(ledger, budgets, prices, _counting(engine)),
                    limiter=limiter,
                    texts=texts,
                    cache=cache,
                    replies=replies,
                    metrics=measured,
                    deadlines=deadlines,
                    access_log=access_log,
                    run_dir=Path(boot.run_dir),
                    telemetry=telemetry,
                    started_at=boot.started_at,
                    phase=phase,
                )

            front = _Front(services, boot.live)
            async with Offers(offers_path(Path(boot.run_dir), boot.place), front.prepare):
                await _first_engine(engine, stop)
                try:
                    await _serve_http(boot, front, stop, on_serving)
                finally:
                    access_log.flush()
                    deadlines.close()


def _limiter(boot: WorkerBoot, measured: metrics.ServerMetrics) -> contextlib.AbstractAsyncContextManager[Limiter]:
    """Where limits are counted: in Redis, else by the supervisor for all workers, else here."""
    if boot.books.redis:
        from andthen.books.shared import SharedLimiter  # its client is an extra of the package

        answer = "refused" if boot.books.redis_gone == "closed" else "admitted"
        return SharedLimiter(boot.books.redis, gone=boot.books.redis_gone, on_gone=measured.uncounted[answer].inc)
    return HubLimiter(boot.hub_path) if boot.hub_path else contextlib.nullcontext(MemoryLimiter())


def _budgets(boot: WorkerBoot, store: SqlStore) -> contextlib.AbstractAsyncContextManager[Budgets]:
    """Who reserves what requests may cost: the supervisor for all workers, else this process."""
    if boot.hub_path:
        return HubBudgets(boot.hub_path)
    return own_budgets(store, Path(boot.home), boot.group)


def own_budgets(store: SqlStore, home: Path, group: str) -> contextlib.AbstractAsyncContextManager[BudgetOwner]:
    """The machine's owner of budgets, in this process."""
    return machine_ledger(store, home / FOLDER, group, lambda: recover_spools(store, home))


def _ledger(boot: WorkerBoot, store: SqlStore, measured: metrics.ServerMetrics) -> WorkerLedger:
    journal = Journal(
        Path(boot.home) / FOLDER,
        new_lease_owner(boot.place),
        boot.group,
        limit_bytes=boot.books.journal_bytes,
        power=boot.books.durability == "power",
    )
    return WorkerLedger(
        store,
        journal,
        on_change=measured.set_ledger_healthy,
        on_unrecorded=measured.count_unrecorded,
    )


@contextlib.asynccontextmanager
async def _cache(settings: CacheSettings, measured: metrics.ServerMetrics) -> AsyncIterator[Cache | None]:
    """Where replies are kept, if they are."""

    def count(outcome: CacheOutcome) -> None:
        measured.cache_requests[outcome].inc()

    if not settings.enabled:
        yield None
    elif settings.redis:
        from andthen.cache.shared import SharedStore  # its client is an extra of the package

        async with SharedStore(settings.redis, settings.keep_s) as shared:
            yield Cache(settings, shared, count)
    else:
        memory = MemoryStore(settings.memory_bytes, settings.keep_s, measured.cache_bytes.set)
        yield Cache(settings, memory, count)


def _telemetry(boot: WorkerBoot) -> contextlib.AbstractAsyncContextManager[Telemetry | None]:
    """What tells a collector, where one is set."""
    if not boot.telemetry.endpoint:
        return contextlib.nullcontext()
    from andthen.telemetry.otel import Telemetry  # its packages are an extra

    return Telemetry(boot.telemetry, boot.place)


def _counting(engine: EngineClient) -> CountTokens:
    async def count(owner: str, model: str, text: str, parse_special: bool) -> int:
        return len(await engine.tokenize(model, text, owner=owner, parse_special=parse_special))

    return count


async def _first_engine(engine: EngineClient, stop: asyncio.Event) -> None:
    """Until the engine has answered: who connects in the meantime waits in the socket's queue."""
    waits = [asyncio.create_task(engine.wait_ready()), asyncio.create_task(stop.wait())]
    await asyncio.wait(waits, timeout=_ENGINE_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


class _Front:
    """The application and the HTTP server before it, under the settings of the moment."""

    def __init__(self, services: Callable[[LiveSettings], Services], live: LiveSettings) -> None:
        self._make_services = services
        self._services = services(live)
        self.app = App(self._services)
        self.http = HttpServer(self.app, live.server, self._services.deadlines)

    @property
    def drain_s(self) -> float:
        return self._services.settings.drain_s

    def prepare(self, offered: bytes) -> Callable[[], None]:
        """Other settings, made ready; what it returns takes them. What runs goes on under those it began with."""
        live = msgspec.json.decode(offered, type=LiveSettings)
        services = self._make_services(live)
        routes = Routes(live.limits)

        def take() -> None:
            services.catalog.take_breakers(self._services.catalog)
            self._services = services
            self.http.renew(live.server)
            self.app.replace(services, routes)
            logs.configure(live.logs)

        return take


async def _serve_http(boot: WorkerBoot, front: _Front, stop: asyncio.Event, on_serving: Callable[[], None]) -> None:
    if stop.is_set():
        return
    loop = asyncio.get_running_loop()
    front.http.listen(socket.socket(fileno=boot.listening_fd))
    gc.collect()
    gc.freeze()  # what was made at the start stays: no collection need look at it again
    _LOG.info("serving", place=boot.place)
    on_serving()
    await stop.wait()
    bounds = [
        loop.call_later(front.drain_s, front.app.stop),
        loop.call_later(front.drain_s + _LAST_GRACE_S, front.app.stop),
        loop.call_later(front.drain_s + _LAST_GRACE_S + _LAST_REPLY_S, front.http.abort),
    ]
    try:
        await front.http.drain()
        await front.app.finish()
    finally:
        for bound in bounds:
            bound.cancel()


def raise_open_files() -> None:
    """Every connection is an open file, and the usual soft bound is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS tells of a hard bound that it does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """A worker in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    boot = child.read_boot(WorkerBoot)
    logs.configure(boot.live.logs)
    raise_open_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_until_told(boot))


async def _serve_until_told(boot: WorkerBoot) -> None:
    stop = asyncio.Event()
    child.on_told_to_stop(stop.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve(boot, stop, metrics.shared_store(Path(boot.run_dir), boot.place))


if __name__ == "__main__":
    main()
