"""Whether the server lives, whether it can serve, and what it measured."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from urllib.parse import urlsplit

import msgspec

from andthen.contract.errors import EngineRestarted, InvalidApiKey, ShuttingDown
from andthen.contract.listing import Health, Readiness
from andthen.gateway.context import JSON, RequestContext
from andthen.observability.metrics import CONTENT_TYPE, exposition
from andthen.server.settings import ServerSettings

_PASSED_ON = (b"forwarded", b"via", b"x-forwarded-for")
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


def asked_here(ctx: RequestContext) -> bool:
    """Whether a request to a loopback address is one of this machine's own, as far as its headers tell: no proxy passed
    it on, and it was sent to one of this machine's names. A page of another site whose name was made to lead here (DNS
    rebinding) is asked for by that name."""
    if any(ctx.header(name) is not None for name in _PASSED_ON):
        return False
    host = (ctx.header(b"host") or b"localhost").decode("latin-1")
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
