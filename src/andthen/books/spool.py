"""Settlements that the database did not take, in files beside it until it does, one JSON object a line.

A file is whole once it has its name and is never written again. Every process reads the files of all, those of the dead
too, one process at a time. A settlement that is read twice is no harm, since it counts once.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import threading
from collections import deque
from pathlib import Path

import msgspec
import structlog

from andthen.books.ledger import Settlement

_PREFIX = "ledger-"
_SUFFIX = ".spool"
_KEPT_MAX = 10_000
"""Settlements of requests that cost nothing, in memory, while neither the database nor the disk takes any."""
_LOG = structlog.get_logger("andthen.books")


class Spool:
    """`add` is called in any thread, all else in one."""

    def __init__(self, folder: Path, holder: str) -> None:
        self._folder = folder
        self._name = f"{_PREFIX}{holder}"
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._kept: dict[str, Settlement] = {}
        """What the disk did not take either, by the request's id."""
        self._names: deque[str] = deque()
        """Of files that were found and not read yet."""
        self._read: deque[tuple[Path, list[Settlement]]] = deque()
        """What was read and is not in the database yet. The file of the last of its lines is removed with it."""
        self._given: list[Settlement] = []
        self._from_memory = False
        self._folder_lock: int | None = None

    def add(self, settlements: list[Settlement]) -> None:
        """Waits until the disk has them. Raises nothing: where the disk is full as well, they are kept in memory until
        it or the database takes them, and the log has those that cost something."""
        with self._lock:
            together = [*self._kept.values(), *settlements]
            if not together:
                return
            try:
                self._write(together)
            except (OSError, ValueError) as error:
                self._keep(settlements, error)
            else:
                self._kept = {}

    def _write(self, settlements: list[Settlement]) -> None:
        part = self._folder / f"{self._name}-{next(self._numbers)}.part"
        lines = [msgspec.json.encode(settlement) + b"\n" for settlement in settlements]
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            part.rename(part.with_suffix(_SUFFIX))
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _keep(self, settlements: list[Settlement], error: Exception) -> None:
        costly = [one for one in settlements if one.tokens.total or one.cost_micros]
        if isinstance(error, OSError):
            free = [one for one in settlements if one not in costly]
            kept = costly + free[: max(0, _KEPT_MAX - len(self._kept))]
            self._kept |= {one.intent.id: one for one in kept}
        _LOG.error("ledger_spool_failed", reason=str(error), settlements=repr(costly))

    def look(self) -> None:
        """Finds the files that are there now, once all that were found before have been read."""
        if self._names:
            return
        try:
            with os.scandir(self._folder) as entries:
                found = [one.name for one in entries if one.name.startswith(_PREFIX) and one.name.endswith(_SUFFIX)]
            if found and self._folder_lock is None:
                self._folder_lock = os.open(self._folder, os.O_RDONLY)
                fcntl.flock(self._folder_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return
        except BlockingIOError:  # another process reads them
            self.unlock()
            return
        except OSError as error:  # a file system without locks: that two processes write the same is no harm
            _LOG.debug("ledger_spool_not_locked", reason=str(error))
        self._names.extend(sorted({*found} - {path.name for path, _ in self._read}))

    def next(self, most: int) -> list[Settlement]:
        """Up to so many settlements that the database has not taken; the same again until `taken` is called."""
        with self._lock:
            self._given = list(itertools.islice(self._kept.values(), most))
        self._from_memory = bool(self._given)
        if self._from_memory:
            return self._given
        count = sum(len(lines) for _, lines in self._read)
        while count < most and self._names:
            path = self._folder / self._names.popleft()
            if lines := _settlements(path):
                self._read.append((path, lines))
                count += len(lines)
        everything = itertools.chain.from_iterable(lines for _, lines in self._read)
        self._given = list(itertools.islice(everything, most))
        if not self._given:
            self.unlock()
        return self._given

    def taken(self) -> None:
        """The database has what `next` gave, or never will."""
        given, self._given = self._given, []
        if self._from_memory:
            with self._lock:
                for settlement in given:
                    self._kept.pop(settlement.intent.id, None)
            return
        left = len(given)
        while left:
            path, lines = self._read.popleft()
            if len(lines) > left:
                self._read.appendleft((path, lines[left:]))
                return
            left -= len(lines)
            _remove(path)

    def unlock(self) -> None:
        """Lets other processes read the files."""
        if self._folder_lock is not None:
            os.close(self._folder_lock)
            self._folder_lock = None


def _settlements(path: Path) -> list[Settlement]:
    """What is in a file; nothing where it can't be read."""
    try:
        settlements = [msgspec.json.decode(line, type=Settlement) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []  # another process has written it into the database
    except OSError as error:
        _LOG.error("ledger_spool_unreadable", file=str(path), reason=str(error))
        return []
    except msgspec.MsgspecError as error:
        _LOG.error("ledger_spool_unreadable", file=str(path), reason=str(error))
        with contextlib.suppress(OSError):
            path.rename(path.with_suffix(".unreadable"))
        return []
    if not settlements:
        _remove(path)
    return settlements


def _remove(path: Path) -> None:
    """One that can't be removed is read again later, which is no harm."""
    with contextlib.suppress(OSError):
        path.unlink()
