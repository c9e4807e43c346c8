"""What the operator may set about the books. Knows no file and no environment variable."""

from __future__ import annotations

from msgspec import Struct


class BooksSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where it is kept who may what, and what was used."""

    database: str = ""
    """PostgreSQL's URL, `postgresql://user:password@host/name`, for several machines; the extra `postgres` brings the
    driver. Unset: the SQLite file `andthen.db` in the state's folder."""
