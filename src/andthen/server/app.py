"""The ASGI application: from a request's headers to its handler, and what is told of it afterwards.

The order of checks is the contract's: 404 and 405, then 401, then 403 for a key that has no business here, then the
handlers' 413, 415, 400 and so on.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from typing import Any

import structlog

from andthen.contract.errors import InvalidApiKey
from andthen.metrics import TOKEN_KINDS
from andthen.server import cors
from andthen.server.access import check_address, check_kind, sent_secret
from andthen.server.answering import answer, shutting_down
from andthen.server.health import check_metrics_key
from andthen.server.http import ClientGone, Exchange, Receive, Send
from andthen.server.loopback import asked_here, is_loopback
from andthen.server.noting import ending
from andthen.server.routes import Access, Route, Routes, check_method
from andthen.server.services import Services
from andthen.telemetry.notes import Note

CLIENT_GONE_STATUS = 499
"""In logs and metrics only: the client went away before its reply was complete."""

_ACCOUNT = re.compile(rb"[\w.:-]{1,64}", re.ASCII)

_OPENED_AS = {Access.METRICS: "metrics", Access.KEY_OFF_LOOPBACK: "tokenizer"}
_FOR_ADMIN = {Access.KEY: False, Access.ADMIN: True}

_LOG = structlog.get_logger("andthen.server")


class App:
    """The application of one worker."""

    def __init__(self, services: Services) -> None:
        self.renew(services, Routes(services.limits))
        self._loopback = is_loopback(services.settings.host)
        self._counts: dict[tuple[str, int], Any] = {}
        self._running: set[asyncio.Task[Any]] = set()

    def renew(self, services: Services, routes: Routes) -> None:
        """What is asked from now on is under these services; what runs goes on under its own."""
        self._services = services
        self._routes = routes
        self._cors = cors.Cors(services.settings.cors_origins)

    def stop(self) -> None:
        """Ends what runs, each with an error that says why; what is asked from now on likewise."""
        self._services.phase.stopping = True
        for task in (*self._running, *self._services.phase.detached):
            task.cancel()

    async def finish(self) -> None:
        """Until what runs without its client has ended."""
        while detached := self._services.phase.detached:
            await asyncio.wait(detached)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        exchange = Exchange(scope, receive, send, self._services.settings)
        try:
            await answer(self._services, exchange, self._handle)
        except ClientGone:
            exchange.status = CLIENT_GONE_STATUS
        finally:
            self._tell(exchange)

    async def _handle(self, exchange: Exchange) -> None:
        """Finds the handler and runs it, until it is done or the client has gone or the server stops."""
        self._cors.mark(exchange)
        exchange.id = "req-" + secrets.token_hex(12)
        route = self._routes.find(exchange.path)
        if route.name == "completions":
            exchange.id = "cmpl-" + exchange.id.removeprefix("req-")
        exchange.route, exchange.chatty = route.name, route.chatty
        if self._cors.is_preflight(exchange):
            await self._cors.permit(exchange, route.methods)
            return
        check_method(route, exchange.method)
        task = asyncio.current_task()
        if task is None or self._services.stopping:
            raise shutting_down()
        self._running.add(task)
        self._services.metrics.open_requests.inc()
        exchange.link.on_gone = task.cancel
        try:
            if exchange.link.gone:
                raise ClientGone
            await self._check_access(route, exchange)
            await route.handler_of(exchange.method)(self._services, exchange)
        finally:
            exchange.link.on_gone = None
            self._running.discard(task)
            self._services.metrics.open_requests.dec()

    async def _check_access(self, route: Route, exchange: Exchange) -> None:
        if route.access is Access.OPEN:
            return
        secret = sent_secret(exchange)
        if route.access is Access.METRICS and self._services.settings.metrics_key is not None:
            check_metrics_key(self._services.settings, secret)
            return
        if secret is None:
            opened = _OPENED_AS.get(route.access) in self._services.settings.open_on_loopback
            if opened and self._loopback and asked_here(exchange):
                return
            raise InvalidApiKey("No API key was sent: send it as the header `x-api-key` or as a bearer token.")
        keys = self._services.keys
        key = keys.lookup(secret) or await keys.look_again(secret)
        if key is None:
            raise InvalidApiKey("This API key is not in force: `andthen keys create --name NAME` makes one.")
        exchange.key = key
        check_address(key, exchange.address)
        check_kind(key, for_admin=_FOR_ADMIN.get(route.access))
        account = exchange.header(b"x-selected-account-id")
        if account is not None and _ACCOUNT.fullmatch(account):
            exchange.account = account.decode()

    def _tell(self, exchange: Exchange) -> None:
        """Counts and logs a request that is over. Nothing of its path, prompt, completion or key is told."""
        metrics = self._services.metrics
        took_s = time.monotonic() - exchange.started_s
        status = exchange.status or CLIENT_GONE_STATUS
        counted = self._counts.get((exchange.route, status))
        if counted is None:
            counted = self._counts[exchange.route, status] = (
                metrics.requests.labels(exchange.route, str(status)),
                metrics.request_seconds.labels(exchange.route),
            )
        counted[0].inc()
        counted[1].observe(took_s)
        told: dict[str, object] = {}
        if exchange.model is not None:
            measured = metrics.model(exchange.model)
            if exchange.source_s is not None:
                measured.overhead_seconds.observe(max(0.0, took_s - exchange.source_s - exchange.client_s))
            if exchange.usage is not None:
                measured.count_tokens(exchange.usage)
                told |= {f"{kind}_tokens": tokens for kind, tokens in zip(TOKEN_KINDS, exchange.usage, strict=True)}
        if self._services.telemetry is not None and exchange.key is not None and exchange.route == "completions":
            self._services.telemetry.tell(exchange.note or Note(), ending(exchange, status, took_s))
        if not self._services.settings.access_log:
            return
        for name in ("code", "key_id", "account", "model"):
            if (value := getattr(exchange, name)) is not None:
                told[name] = value
        log = _LOG.debug if exchange.chatty else _LOG.info
        log("request", request=exchange.id, route=exchange.route, status=status, ms=round(1000 * took_s, 1), **told)
