"""The HTTP server: it accepts connections, and drains them at the end."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket

import structlog

from andthen.http.connection import Application, Connection, HttpSettings, Serving

_ACCEPTED_AT_ONCE = 32
"""Connections taken in one turn of the event loop; the next turn goes on."""
_SPARE_FILES = 32
"""Files that connections leave for the process's own use: its databases, its log, its upstream connections."""
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_AGAIN_S = 0.5
_COMPLAIN_AGAIN_S = 60.0

_LOG = structlog.get_logger("andthen.http")


class HttpServer(Serving):
    """Serves `application` on a listening socket, in the running event loop.

    Args:
        application: answers each request.
        settings: until others are given to `renew`.
    """

    def __init__(self, application: Application, settings: HttpSettings) -> None:
        super().__init__(application, settings)
        self._listening: socket.socket | None = None
        self._accept_later: asyncio.TimerHandle | None = None
        self._last_file = 0
        self._complained_s = -_COMPLAIN_AGAIN_S

    def listen(self, listening: socket.socket) -> None:
        """Accepts connections from now on.

        Args:
            listening: bound and listening; closed by `drain`.
        """
        listening.setblocking(False)
        self._listening = listening
        self.loop.add_reader(listening, self._accept, listening)

    def renew(self, settings: HttpSettings) -> None:
        """Other settings for all connections; whatever waits already waits for as long as it was to."""
        self.settings = settings
        for connection in self.connections:
            connection.renew()

    async def drain(self) -> None:
        """Accepts nothing more, closes idle connections, and returns once all requests are answered."""
        self.draining = True
        self._stop_listening()
        for connection in tuple(self.connections):
            connection.drain()
        while self.connections or self.tasks:
            await self.wait_for_one_to_end()
        self.deadlines.close()

    def abort(self) -> None:
        """Ends all connections at once."""
        for connection in tuple(self.connections):
            connection.abort()

    def _stop_listening(self) -> None:
        if self._accept_later is not None:
            self._accept_later.cancel()
        if self._listening is not None:
            self.loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    def _accept(self, listening: socket.socket) -> None:
        highest = _highest_file()
        for _ in range(_ACCEPTED_AT_ONCE):
            if self._last_file >= highest:
                self._pause_accepting(listening)
                return
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_FILES:
                    raise
                self._pause_accepting(listening)
                return
            self._last_file = accepted.fileno()  # the system gives the lowest number that is free
            accepted.setblocking(False)
            task = self.loop.create_task(self._connect(accepted))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(lambda: Connection(self), accepted)
        except OSError:  # the client is gone already
            accepted.close()

    def _pause_accepting(self, listening: socket.socket) -> None:
        """Leaves who connects in the socket's queue until files are free again."""
        self.loop.remove_reader(listening)
        self._accept_later = self.loop.call_later(_ACCEPT_AGAIN_S, self._accept_again, listening)
        now_s = self.loop.time()
        if now_s - self._complained_s >= _COMPLAIN_AGAIN_S:
            self._complained_s = now_s
            _LOG.error(
                "out_of_files",
                limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                connections=len(self.connections),
                remedy="new connections wait until others end: raise the limit of open files (`ulimit -n`)",
            )

    def _accept_again(self, listening: socket.socket) -> None:
        try:
            self._last_file = os.dup(listening.fileno())
        except OSError:
            self._last_file = _highest_file()
        else:
            os.close(self._last_file)
        if self._last_file >= _highest_file():
            self._accept_later = self.loop.call_later(_ACCEPT_AGAIN_S, self._accept_again, listening)
        else:
            self._accept_later = None
            self.loop.add_reader(listening, self._accept, listening)


def _highest_file() -> int:
    """The number from which on files are not for connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 2**31
    return soft - min(_SPARE_FILES, soft // 4)
