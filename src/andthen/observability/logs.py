"""How log lines look and where they go: to stderr, one event a line. Knows no request; who logs decides what.

Nobody logs a prompt, a completion or a key. Tracebacks are printed without their local variables, for these hold all
three. A request's id comes in by `structlog.contextvars`. Every process calls `configure` at its start, and again when
its settings have changed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, Literal, TextIO, cast

from msgspec import Struct

_PROCESSORS: list[Any] = []
"""Loggers keep this very list from their first line on, so a later change reaches them only within it."""


class _Output(Struct):
    """Where and how lines are written, since `configure` was called."""

    stream: TextIO | None = None
    is_json: bool = False
    level: int = logging.CRITICAL + 1


_OUTPUT = _Output()


class LogSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stderr gets."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important level that is written."""
    format: Literal["auto", "json", "console"] = "auto"
    """`json`: one object a line. `console`: for eyes. `auto`: console on a terminal, else JSON."""


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Sends structlog's events, and those of the libraries that use `logging`, to `stream` (default: stderr)."""
    # Imported here, because LogSettings is needed by commands that log nothing and shall start at once.
    import structlog
    from structlog.typing import Processor

    out = sys.stderr if stream is None else stream
    levels = logging.getLevelNamesMapping()
    level = levels[settings.level.upper()]
    console = settings.format == "console" or (settings.format == "auto" and out.isatty())

    def important(_logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if levels[method.upper()] < level:
            raise structlog.DropEvent
        return event

    _OUTPUT.stream, _OUTPUT.is_json, _OUTPUT.level = out, not console, level
    stamped: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.StackInfoRenderer(),
    ]
    rendered: list[Processor]
    if console:
        plain = structlog.dev.plain_traceback
        rendered = [
            _escape,
            structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain, timestamp_key="at"),
        ]
    else:
        rendered = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    _PROCESSORS[:] = [important, *stamped, *rendered]
    structlog.configure(
        processors=_PROCESSORS,
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Unfailing(out))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*stamped, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level)
    logging.getLogger("alembic").setLevel(max(level, logging.WARNING))  # its every step is of no interest


def is_written(level: Literal["debug", "info"]) -> bool:
    """Whether lines of this level are written."""
    return _OUTPUT.level <= (logging.DEBUG if level == "debug" else logging.INFO)


def writes_json() -> bool:
    """Whether a line is a JSON object."""
    return _OUTPUT.is_json


def write(lines: str) -> None:
    """Writes whole lines. Raises OSError."""
    if _OUTPUT.stream is not None:
        _OUTPUT.stream.write(lines)
        _OUTPUT.stream.flush()


class _Unfailing:
    """A stream that drops what it can't write, for its disk is full or its reader gone: no request fails by its log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _escape(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keeps a library's message from breaking the line or steering the terminal; the renderers do so for values."""
    if not event["event"].isprintable():
        event["event"] = repr(event["event"])
    return event
