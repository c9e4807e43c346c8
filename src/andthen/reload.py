"""Settings read again while the server runs: which of them a running server can take, and how it is told to.

Whole or not at all: a file that is wrong, or that changes what only a start can change, changes nothing.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog
from msgspec import Struct

from andthen.config import SECTIONS, Config, ConfigError
from andthen.server.worker import LiveSettings

_AT_START = {"server": ("host", "port", "workers"), "limits": (), "upstream": (), "logs": ()}
"""Of the sections that a running server takes, the settings that it does not. It takes nothing of the others."""
_SOCKETS = "serve-{}.socket"
_ANSWER_WITHIN_S = 60.0
_OURS = 0o600

_LOG = structlog.get_logger("andthen.supervisor")


class RestartNeeded(Exception):
    """The settings are right, and only a start can take them; the message names them."""


class NotReloaded(Exception):
    """A worker could not take the settings; the message says which."""


class Answer(Struct, frozen=True):
    """What a server says that was told to read its settings again."""

    code: int
    """The exit code of `andthen reload`."""
    message: str


def live_settings(config: Config) -> LiveSettings:
    """What a worker is told of the settings at its start, and again when they have changed."""
    return LiveSettings(
        server=config.server, limits=config.limits, upstream=config.upstream, prices=config.prices, logs=config.logs
    )


def check_live(running: Config, config: Config) -> None:
    """Raises `RestartNeeded`."""
    if changed := list(_at_start(running, config)):
        raise RestartNeeded(
            f"restart to change {', '.join(changed)}. Nothing was changed: take that back to reload the rest"
        )


def _at_start(running: Config, config: Config) -> Iterator[str]:
    """What has changed that only a start takes, as it is written in the file."""
    for section, kind in SECTIONS.items():
        before, after = getattr(running, section), getattr(config, section)
        for name in _AT_START.get(section, kind.__struct_fields__):
            old, new = getattr(before, name), getattr(after, name)
            if name == "models" and list(old.items()) != list(new.items()):
                names = [model for model in {**old, **new} if old.get(model) != new.get(model)]
                yield from (f'[models."{model}"]' for model in names or new)
            elif old != new:
                yield f"[{section}] {name}"


class Control:
    """Where `andthen reload` finds a running server: a socket in the folder of its state. `async with Control(…):`.

    Args:
        reload: raises `ConfigError`, `RestartNeeded`, `NotReloaded`; gives what it read.
    """

    def __init__(self, home: Path, reload: Callable[[], Awaitable[Config]]) -> None:
        self._path = home / _SOCKETS.format(secrets.token_hex(4))
        self._reload = reload
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        listening = socket.socket(socket.AF_UNIX)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            listening.bind(str(self._path))
            self._path.chmod(_OURS)
        except OSError as error:
            listening.close()
            _LOG.warning("reload_by_signal_only", socket=str(self._path), reason=str(error))
            return self
        self._server = await asyncio.start_unix_server(self._hear, sock=listening)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _hear(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(msgspec.json.encode(await self.reload()))
        writer.close()

    async def reload(self) -> Answer:
        """Has the settings read again, and writes into the log what came of it."""
        try:
            config = await self._reload()
        except ConfigError as error:
            answer = Answer(2, f"nothing was changed: {error}")
        except (RestartNeeded, NotReloaded) as error:
            answer = Answer(1, str(error))
        else:
            _LOG.info("reloaded", file=str(config.file or ""))
            return Answer(0, f"reloaded {config.file}" if config.file else "reloaded: there is no settings file")
        _LOG.error("not_reloaded", reason=answer.message)
        return answer


def ask_servers(home: Path) -> list[Answer]:
    """Tells the servers that run on this state to read their settings again; what each said. Sockets that killed ones
    left are removed."""
    answers = []
    for path in sorted(home.glob(_SOCKETS.format("*"))):
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(_ANSWER_WITHIN_S)
            try:
                asking.connect(str(path))
                answers.append(_read(asking))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except (OSError, msgspec.DecodeError) as error:
                answers.append(Answer(1, f"the server at {path} did not answer ({error}): see its log"))
    return answers


def _read(asking: socket.socket) -> Answer:
    received = b""
    while data := asking.recv(65_536):
        received += data
    return msgspec.json.decode(received, type=Answer)
