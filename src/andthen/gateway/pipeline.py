"""The path of a completion, from top to bottom: parse → route → admit → reserve → execute → settle → reply.

What most requests do not need (lists, `n`, `best_of`, retries, fallbacks, the cache, `Idempotency-Key`) is composed
around this path, in `plan.spread`, `remote`, `execution`, `response_cache` and `idempotency`.
"""

from __future__ import annotations

from urllib.parse import quote

from andthen.auth.permissions import allows_model, check_max_tokens, check_model
from andthen.books.limits import Bounds
from andthen.contract.request import CompletionRequest, parse
from andthen.gateway.backend import Receiver
from andthen.gateway.context import RequestContext
from andthen.gateway.idempotency import complete_once, idempotency_key
from andthen.gateway.reply import StreamReply, WholeReply
from andthen.gateway.response_cache import CacheLookup
from andthen.gateway.settlement import open_account, reserve, settle, worst_tokens
from andthen.gateway.spans import record_work
from andthen.offload import LARGE_BYTES, offload
from andthen.telemetry.notes import Note

_IGNORED_NAMES = 16
_IGNORED_BYTES = 1024


async def complete(ctx: RequestContext) -> None:
    """`POST …/completions`. Raises AndthenError, ClientGone."""
    if (key := idempotency_key(ctx)) is None:
        await run(ctx)
    else:
        await complete_once(ctx, key, run)


async def run(ctx: RequestContext) -> None:
    """One completion. It is settled in the ledger before the last byte of its reply is sent, whatever ends it."""
    open_account(ctx)
    try:
        request = await _parse(ctx)
        _check_key(ctx, request)
        await _admit(ctx, request)
        _route(ctx, request)
        lookup = CacheLookup(ctx)
        if not await lookup.find():
            await reserve(ctx)
        reply = (StreamReply if request.stream else WholeReply)(ctx, _observers(ctx, lookup))
        try:
            if lookup.found:
                await lookup.replay(reply.on_events)
            else:
                await ctx.execute(reply.on_events)
            await reply.complete()
        finally:
            reply.close()
            _record(ctx)
        await lookup.store()
        await settle(ctx)
        await reply.finish()
    except BaseException as error:
        await settle(ctx, error)
        raise


async def _parse(ctx: RequestContext) -> CompletionRequest:
    """Raises PayloadTooLarge, UnsupportedMediaType, RequestTimeout, BadRequest, ModelNotFound, ClientGone."""
    services = ctx.services
    body = await ctx.body()
    large = len(body) > LARGE_BYTES
    request = await offload(parse, body, services.limits) if large else parse(body, services.limits)
    ctx.request = request
    if request.ignored and (names := _ignored(request.ignored)):
        ctx.reply_headers.append((b"x-andthen-ignored", names))
    ctx.asked_deployment = services.catalog.find(request.model)
    if services.telemetry is not None:
        ctx.note = Note(request=request, asked=services.catalog.asked_label(request.model))
    return request


def _check_key(ctx: RequestContext, request: CompletionRequest) -> None:
    """Raises ModelNotAllowed, BadRequest."""
    check_model(ctx.key, request.model)
    check_max_tokens(ctx.key, request.max_tokens)


async def _admit(ctx: RequestContext, request: CompletionRequest) -> None:
    """Counts the request in the key's rate limits, at the most tokens that it may need.

    Raises:
        RateLimited, LimitsUnavailable
        BadRequest: it needs more tokens than the key may ever use in a minute.
    """
    key, deployment = ctx.key, ctx.asked_deployment
    if key is None or deployment is None or (bounds := Bounds.of(key.policy)).unbounded:
        return
    ctx.grant = await ctx.services.limiter.take(key.id, bounds, worst_tokens(request, deployment))
    ctx.reply_headers += [(name.encode(), value.encode()) for name, value in ctx.grant.headers()]


def _route(ctx: RequestContext, request: CompletionRequest) -> None:
    """Raises EngineRestarted, UnsupportedParameter, NoCapacity."""
    key = ctx.key
    ctx.route(ctx.key_id or "", request, ctx.services.catalog, lambda model: allows_model(key, model))


def _observers(ctx: RequestContext, lookup: CacheLookup) -> list[Receiver]:
    """Who else is given the events."""
    ctx.prompt_log = ctx.services.texts.begin(ctx.id, ctx.asked)
    observers: list[Receiver] = []
    if ctx.prompt_log is not None:
        observers.append(ctx.prompt_log.add)
    if ctx.note is not None:
        observers.append(ctx.note.look)
    if (recorder := lookup.recorder()) is not None:
        observers.append(recorder.feed)
    return observers


def _record(ctx: RequestContext) -> None:
    """Metrics and the trace, of what is known when the model's work has ended."""
    if (usage := ctx.usage) is not None:
        ctx.tokens = (usage.prompt_tokens, usage.cached_tokens or 0, usage.completion_tokens)
    if ctx.began_s is not None:
        ctx.services.metrics.model(ctx.answering.label).queue_seconds.observe(ctx.began_s - ctx.started_s)
    if ctx.note is not None:
        record_work(ctx.note, ctx)


def _ignored(names: tuple[str, ...]) -> bytes:
    """The names that there is room for, percent-encoded, so that they can't break the header."""
    shown: list[str] = []
    size = 0
    for name in names[:_IGNORED_NAMES]:
        encoded = quote(name, safe="", errors="replace")
        if size + len(encoded) + 2 <= _IGNORED_BYTES:
            size += len(encoded) + 2
            shown.append(encoded)
    return ", ".join(shown).encode()
