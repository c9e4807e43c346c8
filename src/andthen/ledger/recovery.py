"""What dead processes have left: their journals are posted, their open requests settled as lost, and their allotments
given back. A thread of its own on each machine, so that nobody's live work waits for it.

Of processes of this machine the locks of their files tell at once who is dead. Of other machines' their leases do: one
that has ended, and was watched for a while without being renewed.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog

from andthen.ledger.journal import hold_lock, lock_path, take_dead
from andthen.ledger.posting import JournalPosting, rest
from andthen.ledger.storage import JournalStorage, LeaseStorage, StorageError

STILL_S = 10.0
"""Who has not renewed its lease for so long while it was watched may be dead, and nobody else: the clock that leases
run by may have been set, and a database that was gone took no renewal."""
_EVERY_S = 1.0
_LEASES_EVERY_S = 5.0
_STOP_WAIT_S = 10.0
_LOG = structlog.get_logger("andthen.ledger")


class RecoveryStorage(JournalStorage, LeaseStorage, Protocol):
    """All that recovery asks of the database."""


def new_lease_owner(place: str) -> str:
    """A process's name among all that write into the ledger, on this machine and others."""
    return f"{socket.gethostname()[:32]}-{place}-{secrets.token_hex(6)}"


class OwnerLocks:
    """The locks that say that the owners of allotments of this process live.

    Args:
        group: the name of this server, which its workers' journals have too.
    """

    def __init__(self, folder: Path, group: str) -> None:
        self._folder = folder
        self._group = group
        self._held: list[int] = []

    def new_owner(self) -> str:
        """A new owner's name. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = new_lease_owner("budgets")
        self._held.append(hold_lock(self._folder / f"owner-{owner}.lock", self._group))
        return owner

    def close(self) -> None:
        while self._held:
            os.close(self._held.pop())


class Recovery:
    """Does so from `start` to `stop`.

    Args:
        recover_old: takes over what a version before has left in another form.
    """

    def __init__(self, storage: RecoveryStorage, folder: Path, recover_old: Callable[[], None] = lambda: None) -> None:
        self._storage = storage
        self._folder = folder
        self._recover_old = recover_old
        self._leases: dict[tuple[str, int], float] = {}
        """Whose, until when, and since when it was seen so, by `time.monotonic`."""
        self._leases_at_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-recovery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Blocks until it was done a last time, or for some seconds."""
        self._stop.set()
        self._thread.join(_STOP_WAIT_S)

    def is_recovered(self, lease_owner: str) -> bool:
        """All that a process of this machine has left is in the database."""
        return not lock_path(self._folder, lease_owner).exists()

    def run_once(self) -> None:
        """Raises: StorageError, OSError"""
        self._recover_old()
        for path in sorted(self._folder.glob("journal-*.lock")):
            self._recover_journal(path)
        self._free_dead_owners()
        if time.monotonic() >= self._leases_at_s:
            self._leases_at_s = time.monotonic() + _LEASES_EVERY_S
            self._release_lost()

    def _run(self) -> None:
        last = False
        while True:
            try:
                self.run_once()
            except StorageError:
                self._leases = {}  # nobody could renew either: all are watched anew
            except Exception:
                _LOG.exception("ledger_not_recovered")
            if last:
                return
            last = self._stop.wait(_EVERY_S)

    def _recover_journal(self, path: Path) -> None:
        if (lock := take_dead(path)) is None:
            return
        try:
            lease_owner = path.stem.removeprefix("journal-")
            posting = JournalPosting(self._storage, self._folder, lease_owner)
            try:
                began_s = time.monotonic()
                while posting.step(all_open=True):
                    if self._stop.is_set():
                        return  # the next process goes on
                    rest(time.monotonic() - began_s)
                    began_s = time.monotonic()
            finally:
                posting.close()
            lost = self._storage.end_lease(lease_owner)
            _LOG.warning(
                "ledger_recovered", lease_owner=lease_owner, settlements=posting.settlements, lost=lost
            )  # fmt: skip
            path.unlink(missing_ok=True)
        finally:
            os.close(lock)

    def _free_dead_owners(self) -> None:
        """Those whose server has no journal left: nothing more can be posted out of their allotments."""
        owners = sorted(self._folder.glob("owner-*.lock"))
        if not owners:
            return
        groups = {_content(path) for path in self._folder.glob("journal-*.lock")}
        for path in owners:
            if _content(path) in groups or (lock := take_dead(path)) is None:
                continue
            try:
                self._storage.end_lease(path.stem.removeprefix("owner-"))
                path.unlink(missing_ok=True)
            finally:
                os.close(lock)

    def _release_lost(self) -> None:
        now_s = time.monotonic()
        self._leases = {lease: self._leases.get(lease, now_s) for lease in self._storage.leases().items()}
        still = [owner for (owner, _), since_s in self._leases.items() if now_s - since_s >= STILL_S]
        if still and (lost := self._storage.release_lost(still)):
            _LOG.warning("ledger_released_lost", requests=lost)


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
