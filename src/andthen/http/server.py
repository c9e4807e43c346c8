"""The HTTP server: it accepts connections, and drains them at the end."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

from andthen.descriptors import log_none_left, refusal, spare_for_clients, spare_for_upstream
from andthen.http.connection import Application, Connection, HttpSettings, Serving
from andthen.http.deadlines import Deadlines

_ACCEPTED_AT_ONCE = 32
"""Connections taken in one turn of the event loop; the next turn goes on."""
_ACCEPTED_AT_LAST = 64
"""Times that so many are taken before the server stops listening: whoever is left in the queue then is reset."""
_ACCEPT_AGAIN_S = 0.2
_LAST_READ_S = 0.1
"""How long requests that are on their way may take to arrive when the server drains."""
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class HttpServer(Serving):
    """Serves `application` on a listening socket, in the running event loop.

    Args:
        application: answers each request.
        settings: until others are given to `renew`.
        deadlines: this event loop's.
    """

    def __init__(self, application: Application, settings: HttpSettings, deadlines: Deadlines) -> None:
        super().__init__(application, settings, deadlines)
        self._listening: socket.socket | None = None
        self._accept_later: asyncio.TimerHandle | None = None

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
        """Accepts nothing more, closes idle connections, and returns once all requests are answered.

        What was sent before is taken: who waits in the socket's queue is accepted, and every connection may be read
        once more before it counts as idle.
        """
        self.draining = True
        self._stop_listening()
        await asyncio.sleep(_LAST_READ_S)
        for connection in tuple(self.connections):
            connection.drain()
        while self.connections or self.tasks:
            await self.wait_for_one_to_end()

    def abort(self) -> None:
        """Ends all connections at once."""
        for connection in tuple(self.connections):
            connection.abort()

    def _stop_listening(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            tries = 0
            while tries < _ACCEPTED_AT_LAST and self._accept(listening):
                tries += 1
            if self._accept_later is not None:
                self._accept_later.cancel()
            self.loop.remove_reader(listening)
            listening.close()

    def _accept(self, listening: socket.socket) -> bool:
        """False if no more can be accepted now."""
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                if error.errno not in _NO_RESOURCES:
                    raise
                self._pause_accepting(listening)
                return False
            accepted.setblocking(False)
            self.keep(self.loop.create_task(self._connect(accepted)))
            if not spare_for_upstream(accepted.fileno()):
                self._pause_accepting(listening)
                return False
        return True

    async def _connect(self, accepted: socket.socket) -> None:
        refused = None if spare_for_clients(accepted.fileno()) else refusal()
        try:
            await self.loop.connect_accepted_socket(lambda: Connection(self, refused), accepted)
        except OSError:  # the client is gone already
            accepted.close()

    def _pause_accepting(self, listening: socket.socket) -> None:
        """Leaves who connects in the socket's queue while there is no descriptor, which is looked at again and
        again."""
        log_none_left()
        self.loop.remove_reader(listening)
        self._accept_later = self.loop.call_later(_ACCEPT_AGAIN_S, self._accept_again, listening)

    def _accept_again(self, listening: socket.socket) -> None:
        try:
            descriptor = os.dup(listening.fileno())  # the lowest that is free
        except OSError:
            spare = False
        else:
            spare = spare_for_upstream(descriptor)
            os.close(descriptor)
        if spare:
            self._accept_later = None
            self.loop.add_reader(listening, self._accept, listening)
        else:
            self._accept_later = self.loop.call_later(_ACCEPT_AGAIN_S, self._accept_again, listening)
