"""A handler, run to its end; its error told in a reply, or in the stream that has begun."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from andthen.contract.errors import AndthenError, InternalError, ShuttingDown
from andthen.contract.response import error_frame
from andthen.descriptors import means_none_left, refusal
from andthen.server.http import ClientGone, Exchange
from andthen.server.services import Services

_LOG = structlog.get_logger("andthen.server")


async def answer(services: Services, exchange: Exchange, handle: Callable[[Exchange], Awaitable[None]]) -> None:
    """Raises: ClientGone"""
    error: AndthenError
    try:
        await handle(exchange)
        return
    except AndthenError as told:
        error = told
    except asyncio.CancelledError:
        if exchange.link.gone:
            raise ClientGone from None
        if not services.stopping:
            raise
        error = shutting_down()
    except ClientGone:
        raise
    except Exception as found:
        if means_none_left(found):
            error = refusal()
        else:
            _LOG.exception("request_failed", request=exchange.id, route=exchange.route)
            error = InternalError("Something went wrong here: send the request again. The log has the cause.")
    exchange.code = error.code
    if exchange.status is None:
        await exchange.fail(error)
    else:
        await exchange.break_off(error_frame(error) if exchange.streams else b"")


def shutting_down() -> ShuttingDown:
    return ShuttingDown("The server is stopping: send the request again.")
