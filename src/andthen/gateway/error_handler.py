"""Runs a handler and turns its error into an error reply, or into an error event of the stream that has begun."""

from __future__ import annotations

import asyncio

import structlog

from andthen.contract.errors import AndthenError, InternalError, ShuttingDown
from andthen.contract.response import error_frame
from andthen.descriptors import means_none_left, refusal
from andthen.gateway.context import ClientGone, Handler, RequestContext

_LOG = structlog.get_logger("andthen.server")


async def run_handler(ctx: RequestContext, handler: Handler) -> None:
    """Raises: ClientGone"""
    error: AndthenError
    try:
        await handler(ctx)
        return
    except AndthenError as raised:
        error = raised
    except asyncio.CancelledError:
        if ctx.http.gone:
            raise ClientGone from None
        if not ctx.services.stopping:
            raise
        error = shutting_down()
    except ClientGone:
        raise
    except Exception as found:
        if means_none_left(found):
            error = refusal()
        else:
            _LOG.exception("request_failed", request=ctx.id, route=ctx.route_name)
            error = InternalError("Something went wrong here: send the request again. The log has the cause.")
    ctx.code = error.code
    if ctx.status is None:
        await ctx.fail(error)
    else:
        await ctx.break_off(error_frame(error) if ctx.streams else b"")


def shutting_down() -> ShuttingDown:
    return ShuttingDown("The server is stopping: send the request again.")
