"""What the books can't do. Every message names the remedy."""

from __future__ import annotations


class BooksError(Exception):
    """What the books can't do."""


class StoreUnavailable(BooksError):
    """The database is missing, locked, full or broken. It may come back."""

    unwritten = False
    """Surely nothing of what was to be written is in it. Else the connection may have broken during the commit."""


class BadEntry(BooksError):
    """What was to be written no database can hold; it is whole itself."""


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
