"""The application: from a request's headers to its handler, and its metrics and line in the log afterwards.

The order of checks is the contract's: 404 and 405, then 401, then 403 for a key that may not use the route, then the
handlers' 413, 415, 400 and so on.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
import time

from andthen.auth.permissions import check_address, check_kind
from andthen.contract.errors import InvalidApiKey
from andthen.gateway.context import CLIENT_GONE_STATUS, ClientGone, RequestContext
from andthen.gateway.error_handler import run_handler, shutting_down
from andthen.gateway.services import Services
from andthen.gateway.spans import ending
from andthen.http.request import ServerRequest
from andthen.observability.metrics import TOKEN_KINDS
from andthen.server import cors
from andthen.server.health import check_metrics_key
from andthen.server.loopback import asked_here, is_loopback
from andthen.server.routes import Access, Route, Routes, check_method
from andthen.telemetry.notes import Note

_ACCOUNT = re.compile(rb"[\w.:-]{1,64}", re.ASCII)

_OPENED_AS = {Access.METRICS: "metrics", Access.KEY_OFF_LOOPBACK: "tokenizer"}
_FOR_ADMIN = {Access.KEY: False, Access.ADMIN: True}


class App:
    """The application of one worker."""

    def __init__(self, services: Services) -> None:
        self.replace(services, Routes(services.limits))
        self._loopback = is_loopback(services.settings.host)
        self._running: set[asyncio.Task[None]] = set()

    def replace(self, services: Services, routes: Routes) -> None:
        """New requests use these services. Requests that run keep their own."""
        self._services = services
        self._routes = routes
        self._cors = cors.Cors(services.settings.cors_origins)

    def stop(self) -> None:
        """Ends the running requests, and those that still come, with an error that says why."""
        self._services.phase.stopping = True
        for task in (*self._running, *self._services.phase.detached):
            task.cancel()

    async def finish(self) -> None:
        """Waits for work that goes on without its client."""
        while detached := self._services.phase.detached:
            await asyncio.wait(detached)

    async def __call__(self, request: ServerRequest) -> None:
        """One request."""
        ctx = RequestContext(request, self._services)
        try:
            await run_handler(ctx, self._handle)
        except ClientGone:
            ctx.status = CLIENT_GONE_STATUS
        finally:
            self._account(ctx)

    async def _handle(self, ctx: RequestContext) -> None:
        """Finds the handler and runs it until it is done, the client has gone or the server stops."""
        self._cors.mark(ctx)
        ctx.id = f"req-{next_id()}"
        route = self._routes.find(ctx.path)
        if route.name == "completions":
            ctx.id = f"cmpl-{ctx.id[4:]}"
        ctx.route_name, ctx.quiet = route.name, route.quiet
        if self._cors.is_preflight(ctx):
            self._cors.permit(ctx, route.methods)
            return
        check_method(route, ctx.method)
        task = asyncio.current_task()
        if task is None or self._services.stopping:
            raise shutting_down()
        self._running.add(task)
        self._services.metrics.open_requests.inc()
        ctx.http.on_gone = task.cancel
        try:
            if ctx.http.gone:
                raise ClientGone
            await self._authenticate(route, ctx)
            await route.handler_of(ctx.method)(ctx)
        finally:
            ctx.http.on_gone = None
            self._running.discard(task)
            self._services.metrics.open_requests.dec()

    async def _authenticate(self, route: Route, ctx: RequestContext) -> None:
        """Raises InvalidApiKey, PermissionDenied."""
        if route.access is Access.OPEN:
            return
        secret = ctx.secret
        if route.access is Access.METRICS and self._services.settings.metrics_key is not None:
            check_metrics_key(self._services.settings, secret)
            return
        if secret is None:
            opened = _OPENED_AS.get(route.access) in self._services.settings.open_on_loopback
            if opened and self._loopback and asked_here(ctx):
                return
            raise InvalidApiKey("No API key was sent: send it as the header `x-api-key` or as a bearer token.")
        keys = self._services.keys
        key = keys.lookup(secret) or await keys.look_again(secret)
        if key is None:
            raise InvalidApiKey(
                "This API key is invalid, expired or revoked: `andthen keys create --name NAME` makes a new one."
            )
        ctx.key = key
        check_address(key, ctx.address)
        check_kind(key, for_admin=_FOR_ADMIN.get(route.access))
        account = ctx.header(b"x-selected-account-id")
        if account is not None and _ACCOUNT.fullmatch(account):
            ctx.account = account.decode()

    def _account(self, ctx: RequestContext) -> None:
        """Counts and logs a request that is over: nothing of its path, prompt, completion or key."""
        services = self._services
        took_s = time.monotonic() - ctx.started_s
        status = ctx.status or CLIENT_GONE_STATUS
        services.metrics.count_request(ctx.route_name, status, took_s)
        label = ctx.model_label
        if label is not None:
            metrics = services.metrics.model(label)
            if ctx.backend_s is not None:
                metrics.overhead_seconds.observe(max(0.0, took_s - ctx.backend_s - ctx.client_s))
            if ctx.tokens is not None:
                metrics.count_tokens(ctx.tokens)
        if services.telemetry is not None and ctx.key is not None and ctx.route_name == "completions":
            services.telemetry.tell(ctx.note or Note(), ending(ctx, status, took_s))
        if services.settings.access_log:
            fields: dict[str, object] = {
                "request": ctx.id, "route": ctx.route_name, "status": status, "ms": round(1000 * took_s, 1),
            }  # fmt: skip
            if ctx.tokens is not None:
                fields |= {f"{kind}_tokens": tokens for kind, tokens in zip(TOKEN_KINDS, ctx.tokens, strict=True)}
            named = (("code", ctx.code), ("key_id", ctx.key_id), ("account", ctx.account), ("model", label))
            fields |= {name: value for name, value in named if value is not None}
            services.access_log.write(fields, quiet=ctx.quiet)


_PREFIX = secrets.token_hex(8)
_NUMBERS = itertools.count(1)


def next_id() -> str:
    """24 hexadecimal digits, unique over all processes: 64 random bits of this process, then a count."""
    return f"{_PREFIX}{next(_NUMBERS):08x}"
