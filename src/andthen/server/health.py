"""Whether the server lives, whether it can serve, and what it measured."""

from __future__ import annotations

import asyncio
import hmac

import msgspec

from andthen.contract.errors import EngineRestarted, InvalidApiKey, ShuttingDown
from andthen.contract.listing import Health, Readiness
from andthen.gateway.context import JSON, RequestContext
from andthen.gateway.settings import ServerSettings
from andthen.observability.metrics import CONTENT_TYPE, exposition

_OK = msgspec.json.encode(Health("ok"))


async def healthz(ctx: RequestContext) -> None:
    """The process answers."""
    await ctx.reply(200, JSON, _OK)


async def readyz(ctx: RequestContext) -> None:
    """A completion would find an engine. The states of the limits and of the ledger are told and do not count: whoever
    sends requests elsewhere because of them would send them to no one, for all replicas share one Redis and one
    database."""
    if ctx.services.stopping:
        raise ShuttingDown("The server is stopping: ask another.")
    if not ctx.services.engine.ready:
        raise EngineRestarted("The engine is not there: try again.")
    readiness = Readiness(
        "ok", ctx.services.limiter.state, "ok" if ctx.services.accounts.ledger_healthy else "unavailable"
    )
    await ctx.reply(200, JSON, msgspec.json.encode(readiness))


async def metrics(ctx: RequestContext) -> None:
    """Of all processes of this server. Read in a thread, for it reads files."""
    page = await asyncio.to_thread(exposition, ctx.services.run_dir)
    await ctx.reply(200, [(b"content-type", CONTENT_TYPE.encode())], page)


def check_metrics_key(settings: ServerSettings, secret: str | None) -> None:
    """Raises `InvalidApiKey`."""
    wanted = settings.metrics_key or ""
    if not hmac.compare_digest(wanted.encode(), (secret or "").encode(errors="replace")):
        raise InvalidApiKey("`/metrics` takes the key that `server.metrics_key` sets, as `x-api-key` or bearer token.")
