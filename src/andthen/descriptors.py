"""File descriptors: whether this process has some left. Every connection takes one, and so does every open file.

The system gives out the lowest free number, so the number of a new descriptor tells how near the bound is. Clients'
connections are refused while some are still left for connections upstream, and those are refused while some are left
for the database and the disk. So the bound is seldom reached where nothing can be answered: uvloop closes connections
that it can't accept, and the database's drivers report that a file can't be opened, without the reason.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from typing import Any

import structlog

from andthen.contract.errors import AndthenError, NoDescriptors

_FOR_UPSTREAM = 32
"""Descriptors that no client's connection may take."""
_FOR_OURSELVES = 8
"""Of these, those that no connection upstream may take either."""
_SHARE = 8
"""Where the bound is low, at most one in so many is kept back."""
_LOG_EVERY_S = 60.0

_LOG = structlog.get_logger("andthen.server")
_logged_at_s = float("-inf")


def spare_for_clients(descriptor: int) -> bool:
    """Whether a client's connection with this new descriptor may be served."""
    return _spare(descriptor, _FOR_UPSTREAM)


def spare_for_upstream(descriptor: int) -> bool:
    """Whether a connection upstream may have this new descriptor."""
    return _spare(descriptor, _FOR_OURSELVES)


def _spare(descriptor: int, kept_back: int) -> bool:
    bound, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if bound == resource.RLIM_INFINITY:
        return True
    kept_back = min(kept_back, bound * kept_back // (_SHARE * _FOR_UPSTREAM))
    return descriptor < bound - kept_back


def upstream_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for a connection upstream.

    Args:
        address: family, type, protocol and more, as `socket.getaddrinfo` returns them.

    Raises:
        OSError: EMFILE also where the last descriptors are kept back for this process itself.
    """
    made = socket.socket(*address[:3])
    if not spare_for_upstream(made.fileno()):
        made.close()
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return made


def means_none_left(error: BaseException) -> bool:
    """Whether it says that the process, or the whole system, has no descriptor left."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def none_left() -> bool:
    """Whether something that has just failed has failed for lack of descriptors, as far as can be told: SQLite, libpq
    and the resolver don't say."""
    try:
        descriptor = os.open(os.devnull, os.O_RDONLY)
    except OSError as found:
        return means_none_left(found)
    os.close(descriptor)
    return not spare_for_upstream(descriptor)


def refusal() -> NoDescriptors:
    """What the caller is told. The log has the remedy."""
    log_none_left()
    return NoDescriptors("The server is out of file descriptors: send the request again.")


def log_none_left() -> None:
    """Says so in the log with the remedy, at most once a minute."""
    global _logged_at_s  # noqa: PLW0603 - one for the process, as the bound is
    now_s = time.monotonic()
    if now_s - _logged_at_s >= _LOG_EVERY_S:
        _logged_at_s = now_s
        bound, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        _LOG.error("out_of_file_descriptors", limit=bound, remedy="raise `ulimit -n` (systemd: LimitNOFILE)")


def or_refusal(error: AndthenError) -> AndthenError:
    """The error for something that can't be reached, or `refusal` where that is for lack of descriptors."""
    return refusal() if none_left() else error
