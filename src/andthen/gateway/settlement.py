"""What a request reserves before its work and what it cost after it, in the ledger and in the rate limits."""

from __future__ import annotations

import asyncio
import time

from andthen.contract.errors import AndthenError, InternalError, ShuttingDown
from andthen.contract.request import CompletionRequest, worst_prompt_tokens
from andthen.gateway.backend import Deployment
from andthen.gateway.billing import Account, Outcome
from andthen.gateway.context import CLIENT_GONE_STATUS, ClientGone, RequestContext
from andthen.ledger.records import EndedBy


def open_account(ctx: RequestContext) -> None:
    """From here on the request has a row in the ledger, whatever becomes of it."""
    if ctx.key is not None:
        ctx.billing = ctx.services.accounts.open(ctx.key, ctx.id, ctx.account or "")


def worst_tokens(request: CompletionRequest, deployment: Deployment) -> int:
    """The most tokens that a request can use. A vendor may be sent a prompt once for each candidate; the embedded
    engine reads it once."""
    is_local = deployment.abilities.vocab_size is not None
    prompts = sum(
        worst_prompt_tokens(prompt, len(prompt) if is_local and isinstance(prompt, tuple) else None)
        for prompt in request.prompts
    )
    if request.suffix is not None:
        prompts += len(request.prompts) * worst_prompt_tokens(request.suffix)
    generated = len(request.prompts) * request.best_of * request.max_tokens
    return prompts * (1 if is_local else request.best_of) + generated


async def reserve(ctx: RequestContext) -> None:
    """Reserves the most that the request can cost in the key's budgets, and writes its intent down.

    Raises:
        BudgetExceeded, ModelNotAllowed, LedgerUnavailable
    """
    if ctx.billing is not None:
        _describe(ctx, ctx.billing)
        await ctx.billing.reserve(ctx)


async def settle(ctx: RequestContext, error: BaseException | None = None, *, status: int | None = None) -> None:
    """Writes down how the request ended. Only the first call counts; one that is cancelled counts too.

    Args:
        error: what ended it, if not its whole reply.
        status: of the reply, if that has not begun.
    """
    if ctx.settles_later and error is None:
        return
    prompt_log, ctx.prompt_log = ctx.prompt_log, None
    if prompt_log is not None:
        ctx.services.texts.keep(prompt_log)
    try:
        grant, ctx.grant = ctx.grant, None
        if grant is not None:
            usage = ctx.usage
            used = 0 if usage is None else usage.prompt_tokens + usage.completion_tokens
            await ctx.services.limiter.settle(grant, used)
    finally:
        billing, ctx.billing = ctx.billing, None
        if billing is not None:
            _describe(ctx, billing)
            await billing.settle(_outcome(ctx, error, ctx.status or status or 200))


def _describe(ctx: RequestContext, billing: Account) -> None:
    model = ctx.request.model if ctx.request is not None and ctx.asked_deployment is not None else ""
    billing.describe(model, ctx.request)


def _outcome(ctx: RequestContext, error: BaseException | None, status: int) -> Outcome:
    status, ended_by, code = _ending(error, status, stopping=ctx.services.stopping)
    return Outcome(
        status=status,
        ended_by=ended_by,
        code=code,
        model="" if ctx.deployment is None else ctx.deployment.model,
        plan="" if ctx.plan is None else ctx.plan.header.decode(),
        origin=ctx.origin,
        retries=ctx.retries,
        queue_ms=None if ctx.began_s is None else _ms(ctx.began_s - ctx.started_s),
        first_ms=None if ctx.first_text_s is None else _ms(ctx.first_text_s),
        total_ms=_ms(time.monotonic() - ctx.started_s),
        exchanges=tuple(ctx.exchanges),
    )


def _ending(error: BaseException | None, status: int, *, stopping: bool) -> tuple[int, EndedBy, str]:
    """The status, who ended the request, and the error's code. Without an error `status` is the reply's, which may be a
    stored error."""
    if error is None:
        return status, "reply" if status < 400 else "error", ""
    if isinstance(error, AndthenError):
        return error.status, "error", error.code
    if isinstance(error, ClientGone) or (isinstance(error, asyncio.CancelledError) and not stopping):
        return CLIENT_GONE_STATUS, "caller", ""
    if isinstance(error, asyncio.CancelledError):
        return ShuttingDown.status, "error", ShuttingDown.code
    return InternalError.status, "error", InternalError.code


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
