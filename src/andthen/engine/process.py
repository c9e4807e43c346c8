"""The engine in a process of its own: the loop in a thread, and the links of the workers in asyncio.

The supervisor binds one Unix socket and keeps it for as long as it lives; each engine process in turn inherits it and
accepts on it. Signals are left to the supervisor, so that running requests can end first.

Knows nothing of HTTP, keys or the contract's response.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, cast

import msgspec
import structlog
import uvloop
from msgspec import Struct
from prometheus_client import CollectorRegistry

from andthen import child, logs, metrics
from andthen.engine import pulse
from andthen.engine.frames import decode_question
from andthen.engine.messages import Answer, Question
from andthen.engine.settings import ENVIRONMENT, INHERITED, EngineSettings
from andthen.frames import FrameCutter, frame

COMMAND = (sys.executable, "-m", "andthen.engine.process")
PLACE = "engine"
EXIT_CANNOT_START = os.EX_CONFIG
"""The exit code that says: started again with the same settings it would fail again."""
MAX_UNSENT_BYTES = 256 * 2**20
"""A worker that leaves so much unread is given up. Credit keeps generated text far below it."""

_STATS_INTERVAL_S = 1.0
_STOP_WAIT_S = 2.0

_LOG = structlog.get_logger("andthen.engine")

Link = int
Emit = Callable[[list[tuple[Link, Answer]]], None]


class RunsJobs(Protocol):
    """The engine's face."""

    def handle(self, link: Link, question: Question, /) -> None:
        """Takes in a question, from any thread, without waiting for its answer."""

    def gone(self, link: Link, /) -> None:
        """The asker went away: all its work ends."""

    def stats(self) -> Mapping[str, float]:
        """Counts since the start and present values, as `EngineMetrics.update` names them."""

    def run(self) -> None:
        """Works until `stop`."""

    def stop(self) -> None:
        """Makes `run` return, from any thread."""


class Boot(Struct, frozen=True):
    """What the engine's process is told at its start."""

    listening_fd: int
    run_dir: str
    settings: EngineSettings
    logs: logs.LogSettings
    pulse_fd: int = -1
    """Of the `Pulse` by which it is watched; −1 where nobody does."""


def spawn(boot: Boot, command: tuple[str, ...] = COMMAND) -> subprocess.Popen[bytes]:
    """Starts an engine process. It stops when the returned process's `stdin` is closed."""
    descriptors = [boot.listening_fd] if boot.pulse_fd < 0 else [boot.listening_fd, boot.pulse_fd]
    return child.spawn(command, boot, descriptors=descriptors, inherited=INHERITED, environment=ENVIRONMENT)


class _Switchboard:
    """The links of one engine: what the workers ask goes in, what a step emitted goes out."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._links: dict[Link, _WorkerLink] = {}
        self._last_link = 0
        self.engine: RunsJobs

    def emit(self, answers: list[tuple[Link, Answer]]) -> None:
        """Called in the engine's thread: only hands over, so that encoding overlaps with the next step."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._send, answers)

    def connect(self, link: _WorkerLink) -> Link:
        self._last_link += 1
        self._links[self._last_link] = link
        return self._last_link

    def disconnect(self, number: Link) -> None:
        del self._links[number]
        self.engine.gone(number)

    def _send(self, answers: list[tuple[Link, Answer]]) -> None:
        by_link: dict[Link, list[Answer]] = {}
        for number, answer in answers:
            by_link.setdefault(number, []).append(answer)
        for number, batch in by_link.items():
            if link := self._links.get(number):
                link.send(batch)


class _WorkerLink(asyncio.Protocol):
    def __init__(self, switchboard: _Switchboard) -> None:
        self._switchboard = switchboard
        self._cutter = FrameCutter()
        self._transport: asyncio.Transport
        self._number: Link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._number = self._switchboard.connect(self)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._cutter.feed(data):
                self._switchboard.engine.handle(self._number, decode_question(body))
        except msgspec.MsgspecError as error:
            _LOG.error("worker_garbled", reason=str(error))
            self._transport.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._switchboard.disconnect(self._number)

    def send(self, answers: list[Answer]) -> None:
        self._transport.write(frame(answers))
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            _LOG.error("worker_stalled", unsent_bytes=self._transport.get_write_buffer_size())
            self._transport.abort()


async def _serve(boot: Boot, make_engine: Callable[[EngineSettings, Emit], RunsJobs]) -> int:
    """Runs until standard input ends or the engine fails; the exit code."""
    loop = asyncio.get_running_loop()
    switchboard = _Switchboard(loop)
    try:
        switchboard.engine = engine = await asyncio.to_thread(make_engine, boot.settings, switchboard.emit)
    except Exception:
        _LOG.exception("engine_cannot_start")
        return EXIT_CANNOT_START
    done: asyncio.Future[int] = loop.create_future()

    def finish(code: int) -> None:
        if not done.done():
            done.set_result(code)

    def work() -> None:
        try:
            engine.run()
        except BaseException:
            _LOG.exception("engine_failed")
            loop.call_soon_threadsafe(finish, 1)

    thread = threading.Thread(target=work, name="engine", daemon=True)
    thread.start()
    child.on_told_to_stop(lambda: finish(0))
    chores = [asyncio.create_task(_measure(engine)), asyncio.create_task(_show_life(boot.settings.beat_s))]
    listening = socket.socket(fileno=boot.listening_fd)
    listening.setblocking(False)
    # Never closed: closing would remove the socket's path, on which the next engine accepts.
    _server = await loop.create_unix_server(lambda: _WorkerLink(switchboard), sock=listening)
    code = await done
    for chore in chores:
        chore.cancel()
    engine.stop()
    await asyncio.to_thread(thread.join, _STOP_WAIT_S)
    return code


async def _measure(engine: RunsJobs) -> None:
    measured = metrics.EngineMetrics(CollectorRegistry())
    while True:
        measured.update(engine.stats())
        await asyncio.sleep(_STATS_INTERVAL_S)


async def _show_life(interval_s: float) -> None:
    while True:
        pulse.own.beat_at_socket()
        await asyncio.sleep(interval_s)


def main(make_engine: Callable[[EngineSettings, Emit], RunsJobs] | None = None) -> None:
    """The process: never returns. `make_engine` is the engine's class where it is not the embedded one."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    boot = child.read_boot(Boot)
    logs.configure(boot.logs)
    metrics.join(Path(boot.run_dir), PLACE)
    if boot.pulse_fd >= 0:
        pulse.own.join(boot.pulse_fd)
    if make_engine is None:
        from andthen.engine.loop import Engine

        make_engine = Engine
    code = uvloop.new_event_loop().run_until_complete(_serve(boot, make_engine))
    sys.stderr.flush()
    os._exit(code)  # the engine's thread may be stuck in native code


if __name__ == "__main__":
    main()
