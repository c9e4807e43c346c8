"""Whether the server lives, whether it can serve, and what it measured."""

from __future__ import annotations

import asyncio
import hmac

import msgspec

from andthen.contract.errors import EngineRestarted, InvalidApiKey, ShuttingDown
from andthen.contract.listing import Health, Readiness
from andthen.metrics import CONTENT_TYPE, exposition
from andthen.server.http import JSON, Exchange
from andthen.server.services import Services
from andthen.server.settings import ServerSettings

_OK = msgspec.json.encode(Health("ok"))


async def healthz(_services: Services, exchange: Exchange) -> None:
    """The process answers."""
    await exchange.reply(200, JSON, _OK)


async def readyz(services: Services, exchange: Exchange) -> None:
    """A completion would find an engine. The states of the limits and of the ledger are told and do not count: whoever
    sends requests elsewhere because of them would send them to no one, for all replicas share one Redis and one
    database."""
    if services.stopping:
        raise ShuttingDown("The server is stopping: ask another.")
    if not services.engine.ready:
        raise EngineRestarted("The engine is not there: try again.")
    readiness = Readiness("ok", services.limiter.state, "ok" if services.accounts.ledger_healthy else "unavailable")
    await exchange.reply(200, JSON, msgspec.json.encode(readiness))


async def metrics(services: Services, exchange: Exchange) -> None:
    """Of all processes of this server. Read in a thread, for it reads files."""
    page = await asyncio.to_thread(exposition, services.metrics.registry)
    await exchange.reply(200, [(b"content-type", CONTENT_TYPE.encode())], page)


def check_metrics_key(settings: ServerSettings, secret: str | None) -> None:
    """Raises `InvalidApiKey`."""
    wanted = settings.metrics_key or ""
    if not hmac.compare_digest(wanted.encode(), (secret or "").encode(errors="replace")):
        raise InvalidApiKey("`/metrics` takes the key that `server.metrics_key` sets, as `x-api-key` or bearer token.")
