"""Where the books are kept: the Store protocol, and its one implementation in SQL. The only room with SQL in it.

The statements are SQLAlchemy Core and hold for any database. Nothing here knows a request, a model or a server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from andthen.books.keys import Key, KeyRing
from andthen.books.store.errors import BooksError, NameTaken, NoSuchKey, SchemaTooNew, StoreUnavailable
from andthen.books.store.keys import FIRST_KEY_NAME, IssuedKey, Keys
from andthen.books.store.ledger import Ledger
from andthen.books.store.schema import HEAD, METADATA
from andthen.books.store.sqlite import sqlite_engine

__all__ = [
    "FIRST_KEY_NAME", "HEAD", "METADATA", "BooksError", "IssuedKey", "NameTaken", "NoSuchKey", "SchemaTooNew",
    "SqlStore", "Store", "StoreUnavailable", "open_sqlite",
]  # fmt: skip


class Store(Protocol):
    """The books. Every method may raise `StoreUnavailable`."""

    def create_key(self, name: str) -> IssuedKey:
        """Raises ValueError for a name that is none, `NameTaken`."""

    def create_first_key(self) -> IssuedKey | None:
        """A key where there has never been one, else None; of several processes that ask, one gets it."""

    def list_keys(self) -> list[Key]:
        """All keys, revoked ones too, oldest first."""

    def revoke_key(self, id_or_name: str) -> Key:
        """Ends a key; ending it twice is no error. Raises `NoSuchKey`."""

    def keys_stamp(self) -> int:
        """Differs after every change of the keys."""

    def key_ring(self) -> KeyRing:
        """The keys in force, at least as new as the ring's stamp says."""

    def close(self) -> None:
        """Gives the connections back."""


class SqlStore(Keys, Ledger):
    """The Store in a SQL database."""


def open_sqlite(path: Path, *, busy_timeout_s: float = 5.0) -> SqlStore:
    """The store in one SQLite file, made with its folder where they don't exist: the folder 0700, the file 0600.

    A file that is deleted or replaced later is noticed: the next call raises `StoreUnavailable` or reads the new one,
    and never goes on with the old one's pages.

    Raises:
        StoreUnavailable, SchemaTooNew
    """
    store = SqlStore(sqlite_engine(path, busy_timeout_s), str(path))
    try:
        store.migrate()
    except BaseException:
        store.close()
        raise
    return store
