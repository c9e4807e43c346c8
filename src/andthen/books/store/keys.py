"""The keys in the database. Each change stands in one transaction with the line of the audit that tells of it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, Struct, UnsetType

from andthen.books.keys import ID_BYTES, SECRET_BYTES, Held, Key, KeyRing, check_name, digest, new_id, new_secret
from andthen.books.policy import UNBOUNDED, Policy, check_policy
from andthen.books.store.database import Database, now_ms, stamp
from andthen.books.store.errors import KeyEnded, NameTaken, NoSuchKey
from andthen.books.store.schema import AUDIT, KEY_SECRETS, KEYS

FIRST_KEY_NAME = "first"
CLI = "cli"
"""The actor of a change that was made by command on the machine itself."""
SERVER = "server"
"""The actor of the first key."""

_KEY_COLUMNS = tuple(KEYS.c[name] for name in Key.__struct_fields__)
_THERE = KEYS.c.deleted_at_ms.is_(None)


class IssuedKey(Struct, frozen=True):
    """A key at the only moment at which its secret is known."""

    key: Key
    secret: str


class KeyChange(Struct, frozen=True, kw_only=True):
    """What is to change of a key; what is left out stays."""

    policy: Mapping[str, Any] = {}
    """Fields of the policy, each whole."""
    expires_at_ms: int | UnsetType | None = UNSET
    """None: never."""
    disabled: bool | UnsetType = UNSET

    @property
    def action(self) -> str:
        """What the audit calls it."""
        if self.policy:
            return "update"
        if self.disabled is UNSET:
            return "update" if self.expires_at_ms is UNSET else "expire"
        return "update" if self.expires_at_ms is not UNSET else "disable" if self.disabled else "enable"

    def made(self, key: Key, now_ms: int) -> Key:
        """The key with it. Raises `BadPolicy`."""
        values: dict[str, Any] = {"policy": check_policy(msgspec.structs.replace(key.policy, **self.policy))}
        if self.expires_at_ms is not UNSET:
            values["expires_at_ms"] = self.expires_at_ms
        if self.disabled is not UNSET:
            values["disabled_at_ms"] = (key.disabled_at_ms or now_ms) if self.disabled else None
        return msgspec.structs.replace(key, **values)


class Change(Struct, frozen=True, kw_only=True):
    """A line of the audit; never with a secret."""

    id: int
    """Counts up."""
    at_ms: int
    """Milliseconds since 1970, UTC."""
    actor: str
    """`cli`, `server`, or the id of the admin key that was used."""
    action: str
    key_id: str
    before: dict[str, Any] | None
    """The key; None before its creation."""
    after: dict[str, Any] | None
    """The key; None after its deletion. Where a text was read, its request."""


class Keys(Database):
    """Who may call, and what each may do.

    A key that is deleted leaves every list and loses its secrets at once; its row stays, because the ledger's rows
    bear its id and reports its name.
    """

    def create_key(
        self,
        name: str,
        *,
        policy: Policy = UNBOUNDED,
        admin: bool = False,
        expires_at_ms: int | None = None,
        actor: str = CLI,
    ) -> IssuedKey:
        check_name(name)
        check_policy(policy)
        with self.changing("keys") as connection:
            taken = sa.select(KEYS.c.id).where(KEYS.c.name == name, KEYS.c.revoked_at_ms.is_(None))
            if connection.execute(taken).first():
                raise NameTaken(f"there is a key named {name!r}: choose another name, or revoke that key first")
            key = Key(
                id=new_id(secrets.token_bytes(ID_BYTES)),
                name=name,
                created_at_ms=now_ms(),
                expires_at_ms=expires_at_ms,
                admin=admin,
                policy=policy,
            )
            return _issue(connection, key, actor)

    def create_first_key(self) -> IssuedKey | None:
        with self.changing("keys") as connection:
            if connection.execute(sa.select(KEYS.c.id).limit(1)).first():
                return None
            key = Key(id=new_id(secrets.token_bytes(ID_BYTES)), name=FIRST_KEY_NAME, created_at_ms=now_ms())
            return _issue(connection, key, SERVER)

    def list_keys(self) -> list[Key]:
        with self.reading() as connection:
            rows = connection.execute(sa.select(*_KEY_COLUMNS).where(_THERE).order_by(KEYS.c.created_at_ms, KEYS.c.id))
            return [_key(row) for row in rows]

    def find_key(self, id_or_name: str, *, deleted: bool = False) -> Key:
        with self.reading() as connection:
            return _find(connection, id_or_name, deleted=deleted)

    def update_key(self, id_or_name: str, change: KeyChange, *, actor: str = CLI) -> Key:
        with self.changing("keys") as connection:
            key = _standing(_find(connection, id_or_name))
            return _write(connection, change.action, key, change.made(key, now_ms()), actor)

    def rotate_key(self, id_or_name: str, *, overlap_ms: int = 0, actor: str = CLI) -> IssuedKey:
        with self.changing("keys") as connection:
            key = _standing(_find(connection, id_or_name))
            now = now_ms()
            if key.expires_at_ms is not None and key.expires_at_ms <= now:
                raise KeyEnded(f"the key {key.id} has expired, a new secret would open nothing: set a later end first")
            own = KEY_SECRETS.c.key_id == key.id
            connection.execute(KEY_SECRETS.delete().where(own, KEY_SECRETS.c.expires_at_ms <= now))
            outlives = sa.or_(KEY_SECRETS.c.expires_at_ms.is_(None), KEY_SECRETS.c.expires_at_ms > now + overlap_ms)
            connection.execute(KEY_SECRETS.update().where(own, outlives).values(expires_at_ms=now + overlap_ms))
            secret = _add_secret(connection, key.id, now)
            after = msgspec.to_builtins(key) | {"older_secrets_until_ms": now + overlap_ms}
            audit(connection, actor, "rotate", key.id, msgspec.to_builtins(key), after)
            return IssuedKey(key, secret)

    def revoke_key(self, id_or_name: str, *, actor: str = CLI) -> Key:
        with self.changing("keys") as connection:
            key = _find(connection, id_or_name)
            if key.revoked_at_ms is not None:
                return key
            connection.execute(KEY_SECRETS.delete().where(KEY_SECRETS.c.key_id == key.id))
            return _write(connection, "revoke", key, msgspec.structs.replace(key, revoked_at_ms=now_ms()), actor)

    def delete_key(self, id_or_name: str, *, actor: str = CLI) -> Key:
        with self.changing("keys") as connection:
            key = _find(connection, id_or_name)
            connection.execute(KEY_SECRETS.delete().where(KEY_SECRETS.c.key_id == key.id))
            now = now_ms()
            gone = {"deleted_at_ms": now, "revoked_at_ms": key.revoked_at_ms or now}
            connection.execute(KEYS.update().where(KEYS.c.id == key.id).values(gone))
            audit(connection, actor, "delete", key.id, msgspec.to_builtins(key), None)
            return key

    def changes(self, *, limit: int = 100, before_id: int | None = None) -> list[Change]:
        newest_first = sa.select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
        if before_id is not None:
            newest_first = newest_first.where(AUDIT.c.id < before_id)
        with self.reading() as connection:
            return [_read_change(row) for row in connection.execute(newest_first)]

    def keys_stamp(self) -> int:
        with self.reading() as connection:
            return stamp(connection, "keys")

    def key_ring(self) -> KeyRing:
        with self.reading() as connection:
            # The stamp first: keys newer than it are read once more, keys older than it would be missed.
            seen = stamp(connection, "keys")
            until_ms = KEY_SECRETS.c.expires_at_ms.label("until_ms")
            joined = KEY_SECRETS.join(KEYS, KEYS.c.id == KEY_SECRETS.c.key_id)
            rows = connection.execute(
                sa.select(KEY_SECRETS.c.digest, until_ms, *_KEY_COLUMNS)
                .select_from(joined)
                .where(KEYS.c.revoked_at_ms.is_(None))
            )
            return KeyRing(seen, {row.digest: Held(_key(row), row.until_ms) for row in rows})


def _find(connection: sa.Connection, id_or_name: str, *, deleted: bool = False) -> Key:
    named = sa.and_(KEYS.c.name == id_or_name, KEYS.c.revoked_at_ms.is_(None))
    row = None
    if id_or_name.isprintable():  # as every id and name is; PostgreSQL takes no NUL, even to look for
        found = sa.select(*_KEY_COLUMNS).where(sa.or_(KEYS.c.id == id_or_name, named))
        row = connection.execute(found if deleted else found.where(_THERE)).first()
    if row is None:
        raise NoSuchKey(f"no key has the id {id_or_name!r}, and none in force the name: `andthen keys list` shows them")
    return _key(row)


def _standing(key: Key) -> Key:
    if key.revoked_at_ms is not None:
        raise KeyEnded(f"the key {key.id} is revoked, which is for good: make another with `andthen keys create`")
    return key


def _issue(connection: sa.Connection, key: Key, actor: str) -> IssuedKey:
    connection.execute(KEYS.insert().values(_columns(key)))
    audit(connection, actor, "create", key.id, None, msgspec.to_builtins(key))
    return IssuedKey(key, _add_secret(connection, key.id, key.created_at_ms))


def _add_secret(connection: sa.Connection, key_id: str, created_at_ms: int) -> str:
    secret = new_secret(secrets.token_bytes(SECRET_BYTES))
    row = {"digest": digest(secret), "key_id": key_id, "created_at_ms": created_at_ms}
    connection.execute(KEY_SECRETS.insert().values(row))
    return secret


def _write(connection: sa.Connection, action: str, before: Key, after: Key, actor: str) -> Key:
    if after != before:
        connection.execute(KEYS.update().where(KEYS.c.id == after.id).values(_columns(after)))
        audit(connection, actor, action, after.id, msgspec.to_builtins(before), msgspec.to_builtins(after))
    return after


def audit(
    connection: sa.Connection,
    actor: str,
    action: str,
    key_id: str,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
) -> None:
    """Writes a line of the audit."""

    def text(value: dict[str, Any] | None) -> str | None:
        return None if value is None else msgspec.json.encode(value).decode()

    row = {"at_ms": now_ms(), "actor": actor, "action": action, "key_id": key_id}
    connection.execute(AUDIT.insert().values(row | {"before": text(before), "after": text(after)}))


def _columns(key: Key) -> dict[str, Any]:
    return msgspec.structs.asdict(key) | {"policy": msgspec.json.encode(key.policy).decode()}


def _key(row: sa.Row[*tuple[Any, ...]]) -> Key:
    values = {name: getattr(row, name) for name in Key.__struct_fields__}
    return Key(**values | {"policy": msgspec.json.decode(row.policy, type=Policy)})


def _read_change(row: sa.Row[*tuple[Any, ...]]) -> Change:
    before, after = (None if text is None else msgspec.json.decode(text) for text in (row.before, row.after))
    return Change(
        id=row.id, at_ms=row.at_ms, actor=row.actor, action=row.action, key_id=row.key_id, before=before, after=after
    )
