"""The databases that `tests/books` has."""

from __future__ import annotations

from tests.books.conftest import _postgres_database, any_store, place, postgres

__all__ = ["_postgres_database", "any_store", "place", "postgres"]
