"""The keys in the database."""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa
from msgspec import Struct

from andthen.books.keys import ID_BYTES, SECRET_BYTES, Key, KeyRing, check_name, digest, new_id, new_secret
from andthen.books.store.database import Database, now_ms, stamp
from andthen.books.store.errors import NameTaken, NoSuchKey
from andthen.books.store.schema import KEYS

FIRST_KEY_NAME = "first"

_KEY_COLUMNS = (KEYS.c.id, KEYS.c.name, KEYS.c.created_at_ms, KEYS.c.revoked_at_ms)


class IssuedKey(Struct, frozen=True):
    """A key at the only moment at which its secret is known."""

    key: Key
    secret: str


class Keys(Database):
    """Who may call."""

    def create_key(self, name: str) -> IssuedKey:
        check_name(name)
        with self.changing("keys") as connection:
            taken = sa.select(KEYS.c.id).where(KEYS.c.name == name, KEYS.c.revoked_at_ms.is_(None))
            if connection.execute(taken).first():
                raise NameTaken(f"a key named {name!r} is in force: choose another name, or revoke that key first")
            return _issue(connection, name)

    def create_first_key(self) -> IssuedKey | None:
        with self.changing("keys") as connection:
            if connection.execute(sa.select(KEYS.c.id).limit(1)).first():
                return None
            return _issue(connection, FIRST_KEY_NAME)

    def list_keys(self) -> list[Key]:
        with self.reading() as connection:
            rows = connection.execute(sa.select(*_KEY_COLUMNS).order_by(KEYS.c.created_at_ms, KEYS.c.id))
            return [_key(row) for row in rows]

    def revoke_key(self, id_or_name: str) -> Key:
        with self.changing("keys") as connection:
            named = sa.and_(KEYS.c.name == id_or_name, KEYS.c.revoked_at_ms.is_(None))
            row = connection.execute(sa.select(*_KEY_COLUMNS).where(sa.or_(KEYS.c.id == id_or_name, named))).first()
            if row is None:
                raise NoSuchKey(f"no key in force has the id or name {id_or_name!r}: `andthen keys list` shows them")
            if row.revoked_at_ms is None:
                ended = KEYS.update().where(KEYS.c.id == row.id).values(revoked_at_ms=now_ms()).returning(*_KEY_COLUMNS)
                row = connection.execute(ended).one()
            return _key(row)

    def keys_stamp(self) -> int:
        with self.reading() as connection:
            return stamp(connection, "keys")

    def key_ring(self) -> KeyRing:
        with self.reading() as connection:
            # The stamp first: keys newer than it are read once more, keys older than it would be missed.
            seen = stamp(connection, "keys")
            rows = connection.execute(sa.select(KEYS.c.digest, *_KEY_COLUMNS).where(KEYS.c.revoked_at_ms.is_(None)))
            return KeyRing(seen, {row.digest: _key(row) for row in rows})


def _issue(connection: sa.Connection, name: str) -> IssuedKey:
    key = Key(id=new_id(secrets.token_bytes(ID_BYTES)), name=name, created_at_ms=now_ms())
    secret = new_secret(secrets.token_bytes(SECRET_BYTES))
    row = {"id": key.id, "name": key.name, "digest": digest(secret), "created_at_ms": key.created_at_ms}
    connection.execute(KEYS.insert().values(row))
    return IssuedKey(key, secret)


def _key(row: sa.Row[*tuple[Any, ...]]) -> Key:
    return Key(id=row.id, name=row.name, created_at_ms=row.created_at_ms, revoked_at_ms=row.revoked_at_ms)
