"""What the books can't do. Every message names the remedy."""

from __future__ import annotations

from andthen.ledger.storage import BadRecord, LeaseLost, StorageError, StorageUnavailable


class BooksError(StorageError):
    """What the books can't do."""


class StoreUnavailable(BooksError, StorageUnavailable):
    """The database is missing, locked, full or broken. It may come back."""


class BadEntry(BooksError, BadRecord):
    """What was to be written no database can hold; it is whole itself."""


class OwnerLeaseLost(BooksError, LeaseLost):
    """An owner of allotments was taken for dead."""


class SchemaTooNew(BooksError):
    """A newer andthen has changed the database."""


class SchemaTooOld(BooksError):
    """The database waits for a migration that only a command makes."""


class BadAddress(BooksError):
    """The database's address can't be read, or what it needs is not installed."""


class NameTaken(BooksError):
    """A key in force has this name."""


class NoSuchKey(BooksError):
    """No key has this id, and none in force this name."""


class KeyEnded(BooksError):
    """The key is revoked, and nothing changes that."""
