"""Settings that workers take over while they serve, all of them or none. The supervising process offers them over each
worker's Unix socket; the worker makes them ready aside and says so; once all have, each is told to take them. An offer
lives as long as its connection. Knows no setting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

_READY = b"ready\n"
_TAKE = b"take\n"
_TAKEN = b"taken\n"
_LONGEST_BYTES = 256 * 2**20
_WAIT_S = 10.0
"""How long a worker may take to be there, and to make the settings ready: one that was just started loads its code."""
_RETRY_S = 0.05

_LOG = structlog.get_logger("andthen.server")

Prepare = Callable[[bytes], Callable[[], None]]
"""Makes what is offered ready, changing nothing; what it returns takes it, and can't fail."""


class Offers:
    """The worker's end: `async with Offers(path, prepare):`.

    Args:
        path: of the Unix socket, which it makes.
    """

    def __init__(self, path: Path, prepare: Prepare) -> None:
        self._path = path
        self._prepare = prepare

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._hear, self._path, limit=_LONGEST_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            take = self._prepare((await reader.readline()).rstrip())
            writer.write(_READY)
            if await reader.readline() == _TAKE:
                take()
                writer.write(_TAKEN)
        except Exception:
            _LOG.exception("settings_not_taken")
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def offered(path: Path, settings: bytes) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Settings that the worker with this socket has made ready; what it gives has the worker take them.

    Args:
        settings: one line.

    Raises:
        OSError, TimeoutError: the worker is not there or can't take them; also from what it gives.
    """
    async with asyncio.timeout(_WAIT_S):
        reader, writer = await _connected(path)
    try:

        async def ask(line: bytes, wanted: bytes) -> None:
            async with asyncio.timeout(_WAIT_S):
                writer.write(line)
                if await reader.readline() != wanted:
                    raise ConnectionAbortedError("the worker did not take the settings")

        await ask(settings + b"\n", _READY)
        yield lambda: ask(_TAKE, _TAKEN)
    finally:
        writer.close()


async def _connected(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_unix_connection(path)
        except (FileNotFoundError, ConnectionRefusedError):  # it was not there yet, or died and is started again
            await asyncio.sleep(_RETRY_S)
