"""The temporary folder of one running server: sockets and files of metrics, of no use once the server has ended.

A server holds a lock on a file in its folder for as long as it lives, however it dies. So a start can tell the folders
of dead servers from those of live ones, and removes the dead ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

_PREFIX = "andthen-"
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")
"""As `tempfile.mkdtemp` names them."""
_LOCK = "lock"

_LOG = structlog.get_logger("andthen.supervisor")


@contextmanager
def run_dir() -> Iterator[Path]:
    """A folder that is removed at the end. Removes those that killed servers of the same user have left behind."""
    remove_dead()
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        # Locked before it has its name: whoever finds the name finds the lock held.
        made = path / f"{_LOCK}.new"
        lock = os.open(made, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: nobody removes the folder but this server
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                made.rename(path / _LOCK)
            yield path
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_dead() -> None:
    """Removes the folders of servers that were killed. One that can't be looked at or removed is left."""
    with contextlib.suppress(OSError):
        parent = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(parent) as entries:
                names = [entry.name for entry in entries if _NAME.fullmatch(entry.name)]
            removed = [name for name in names if _remove_dead(parent, name)]
        finally:
            os.close(parent)
        if removed:
            _LOG.info("dead_run_dirs_removed", folders=len(removed))


def _remove_dead(parent: int, name: str) -> bool:
    """Removes one if its server is dead; whether it was. No symbolic link is followed: anybody may put one there."""
    with contextlib.ExitStack() as opened:
        try:
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            opened.callback(os.close, folder)
            if os.fstat(folder).st_uid != os.geteuid():
                return False
            lock = os.open(_LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            opened.callback(os.close, lock)
            if not stat.S_ISREG(os.fstat(lock).st_mode):
                return False
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(name, dir_fd=parent)
        except OSError:
            return False
    return True
