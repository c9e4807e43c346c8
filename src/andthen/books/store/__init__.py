"""Where the books are kept: the Store protocol, and its one implementation in SQL. The only room with SQL in it.

The statements are SQLAlchemy Core and hold for any database. Nothing here knows a request, a model or a server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from andthen.books.keys import Key, KeyRing
from andthen.books.policy import UNBOUNDED, Policy
from andthen.books.settings import Durability
from andthen.books.store.allotments import Allotments
from andthen.books.store.errors import (
    BadAddress,
    BadEntry,
    BooksError,
    KeyEnded,
    NameTaken,
    NoSuchKey,
    SchemaTooNew,
    SchemaTooOld,
    StoreUnavailable,
)
from andthen.books.store.export import Export
from andthen.books.store.keys import CLI, FIRST_KEY_NAME, Change, IssuedKey, KeyChange, Keys
from andthen.books.store.ledger import Ledger
from andthen.books.store.postgres import MIGRATION_LOCK, is_url, postgres_engine
from andthen.books.store.removal import Removal
from andthen.books.store.replies import Replies
from andthen.books.store.schema import HEAD, METADATA
from andthen.books.store.sqlite import back_up, sqlite_engine
from andthen.books.store.texts import KeptTexts
from andthen.books.store.usage import Group, UsageBook, UsageRow
from andthen.ledger.records import Budget, Spent

__all__ = [
    "CLI", "FIRST_KEY_NAME", "HEAD", "METADATA", "BadAddress", "BadEntry", "BooksError", "Change", "IssuedKey",
    "KeyChange", "KeyEnded", "NameTaken", "NoSuchKey", "SchemaTooNew", "SchemaTooOld", "SqlStore", "Store",
    "StoreUnavailable", "open_postgres", "open_sqlite", "open_store",
]  # fmt: skip


class Store(Protocol):
    """The books. Every method may raise `StoreUnavailable`."""

    def create_key(
        self,
        name: str,
        *,
        policy: Policy = UNBOUNDED,
        admin: bool = False,
        expires_at_ms: int | None = None,
        actor: str = CLI,
    ) -> IssuedKey:
        """Raises ValueError for a name that is none, `BadPolicy`, `NameTaken`."""

    def create_first_key(self) -> IssuedKey | None:
        """A key where there has never been one, else None; of several processes that ask, one gets it."""

    def list_keys(self) -> list[Key]:
        """All keys but the deleted, oldest first."""

    def find_key(self, id_or_name: str, *, deleted: bool = False) -> Key:
        """Args:
            deleted: whether the id may also be that of a deleted key.

        Raises:
            NoSuchKey
        """

    def update_key(self, id_or_name: str, change: KeyChange, *, actor: str = CLI) -> Key:
        """Raises `BadPolicy`, `NoSuchKey`, `KeyEnded`."""

    def rotate_key(self, id_or_name: str, *, overlap_ms: int = 0, actor: str = CLI) -> IssuedKey:
        """A new secret for a key; its older ones open it for so long. Raises `NoSuchKey`, `KeyEnded`."""

    def revoke_key(self, id_or_name: str, *, actor: str = CLI) -> Key:
        """Ends a key; ending it twice is no error. Raises `NoSuchKey`."""

    def delete_key(self, id_or_name: str, *, actor: str = CLI) -> Key:
        """Ends a key and takes it out of all lists. Raises `NoSuchKey`."""

    def changes(self, *, limit: int = 100, before_id: int | None = None) -> list[Change]:
        """The audit's lines, newest first, older than `before_id`."""

    def usage(
        self, groups: Sequence[Group], *, since_ms: int = 0, until_ms: int | None = None, key_id: str | None = None
    ) -> list[UsageRow]:
        """The sums of each group of requests, in the groups' order."""

    def spent(self, key_id: str, budgets: Sequence[Budget]) -> list[Spent]:
        """What of each budget is used up in its present period."""

    def keys_stamp(self) -> int:
        """Differs after every change of the keys."""

    def key_ring(self) -> KeyRing:
        """The keys in force, at least as new as the ring's stamp says."""

    def close(self) -> None:
        """Gives the connections back."""


class SqlStore(Keys, Ledger, Allotments, Replies, UsageBook, Export, KeptTexts, Removal):
    """The Store in a SQL database."""


def open_store(place: str | Path, *, migrate: bool = False, durability: Durability = "process") -> SqlStore:
    """The store at a PostgreSQL URL, or in a SQLite file.

    Args:
        migrate: whether PostgreSQL's schema is brought to the newest; SQLite's always is.
        durability: of what is written, as `BooksSettings` says.

    Raises:
        StoreUnavailable, SchemaTooNew, SchemaTooOld, BadAddress
    """
    if isinstance(place, str) and is_url(place):
        return open_postgres(place, migrate=migrate, durability=durability)
    return open_sqlite(Path(place), durability=durability)


def open_sqlite(path: Path, *, busy_timeout_s: float = 5.0, durability: Durability = "process") -> SqlStore:
    """The store in one SQLite file, made with its folder where they don't exist: the folder 0700, the file 0600.

    A file of an older schema is copied beside itself and migrated. A file that is deleted or replaced later is noticed:
    the next call raises `StoreUnavailable` or reads the new one, and never goes on with the old one's pages.

    Raises:
        StoreUnavailable, SchemaTooNew
    """
    engine = sqlite_engine(path, busy_timeout_s, durability)
    store = SqlStore(engine, str(path), "set ANDTHEN_HOME to another folder")
    with _closed_on_error(store):
        store.migrate(back_up=lambda schema: back_up(engine, path, schema))
    return store


def open_postgres(url: str, *, migrate: bool = False, durability: Durability = "process") -> SqlStore:
    """The store in a PostgreSQL database.

    Args:
        url: `postgresql://user:password@host:port/name`; no message shows its password.
        migrate: whether to bring the schema to the newest; else an older one is refused.

    Raises:
        StoreUnavailable, SchemaTooNew, SchemaTooOld, BadAddress
    """
    engine, place = postgres_engine(url, durability)
    store = SqlStore(engine, place, "set `books.database` to another")
    with _closed_on_error(store):
        if migrate:
            store.migrate(lock=MIGRATION_LOCK)
        store.check_schema()
    return store


@contextmanager
def _closed_on_error(store: SqlStore) -> Iterator[None]:
    try:
        yield
    except BaseException:
        store.close()
        raise
