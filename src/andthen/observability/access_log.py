"""The access log: one line for each request, built once and written in batches.

A line has the same members as structlog would write. Where lines are for eyes (`format = "console"`), structlog writes
them.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import structlog

from andthen.observability import logs

_FLUSH_S = 0.1
_FLUSH_LINES = 1000

_LOG = structlog.get_logger("andthen.server")
_encode = msgspec.json.Encoder().encode


class AccessLog:
    """Writes the lines of one event loop. `close` writes those that wait."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def write(self, fields: dict[str, Any], *, quiet: bool) -> None:
        """Args:
        fields: what is known of the request: JSON values by name.
        quiet: at the debug level.
        """
        level: Literal["debug", "info"] = "debug" if quiet else "info"
        if not logs.is_written(level):
            return
        if not logs.writes_json():
            _LOG.debug("request", **fields) if quiet else _LOG.info("request", **fields)
            return
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._lines.append(_encode({**fields, "event": "request", "level": level, "at": at}))
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)
        elif len(self._lines) >= _FLUSH_LINES:
            self.flush()

    def flush(self) -> None:
        """Writes what waits. A line that can't be written is lost: no request fails because of its log."""
        if self._lines:
            lines = b"\n".join(self._lines).decode() + "\n"
            self._lines.clear()
            with contextlib.suppress(OSError, ValueError):
                logs.write(lines)
