"""API keys as values. Pure: the randomness, the clock and the database are the caller's.

A secret is 256 random bits, shown once; only its SHA-256 is kept, and a look-up is by that digest. A digest without a
salt or a slow hash is enough here, and constant time needs no care: a guess is hashed before anything is compared,
and nobody searches 2^256 secrets.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from andthen.books.policy import UNBOUNDED, Policy

SECRET_BYTES = 32
ID_BYTES = 9
NAME_MAX_CHARACTERS = 64

_PREFIX = "at-"
_ID_PREFIX = "key_"
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_CHARACTERS = 43
"""62^43 is the first power of 62 above 2^256."""
_ID_CHARACTERS = 13
"""62^13 is the first power of 62 above 2^72."""
_NAME = re.compile(rf"[^\W_](?:[\w .@+-]{{0,{NAME_MAX_CHARACTERS - 2}}}[\w.@+-])?")


class Key(Struct, frozen=True, kw_only=True):
    """What is known of a key; never its secret."""

    id: str
    name: str
    created_at_ms: int
    """Milliseconds since 1970, UTC."""
    revoked_at_ms: int | None = None
    """Ended for good."""
    disabled_at_ms: int | None = None
    """Out of force until it is enabled again."""
    expires_at_ms: int | None = None
    """Out of force from then on."""
    admin: bool = False
    """For the routes below `/admin`, and for nothing else."""
    policy: Policy = UNBOUNDED

    def in_force(self, now_ms: int) -> bool:
        """Whether it may be used at this moment."""
        stands = self.revoked_at_ms is None and self.disabled_at_ms is None
        return stands and (self.expires_at_ms is None or now_ms < self.expires_at_ms)


class Held(NamedTuple):
    """A key as one of its secrets opens it."""

    key: Key
    until_ms: int | None = None
    """The secret was replaced, and opens it until then."""


class KeyRing:
    """The keys that are not ended, as they stood at one moment, by the digests of their secrets."""

    def __init__(self, stamp: int, by_digest: Mapping[bytes, Held]) -> None:
        self.stamp = stamp
        self._by_digest = dict(by_digest)

    def __len__(self) -> int:
        return len(self._by_digest)

    def lookup(self, secret: str, now_ms: int) -> Key | None:
        """The key of this secret; None when there is none in force at this moment."""
        held = self._by_digest.get(digest(secret))
        if held is None or (held.until_ms is not None and held.until_ms <= now_ms):
            return None
        return held.key if held.key.in_force(now_ms) else None


def new_secret(random_bytes: bytes) -> str:
    """A key's secret, `at-` and 43 characters of base 62.

    Args:
        random_bytes: 32 bytes from the system's generator.
    """
    if len(random_bytes) != SECRET_BYTES:
        raise ValueError(f"a secret needs {SECRET_BYTES} random bytes, not {len(random_bytes)}")
    return _PREFIX + _base62(random_bytes, _SECRET_CHARACTERS)


def new_id(random_bytes: bytes) -> str:
    """A key's id, `key_` and 13 characters of base 62. It is no secret.

    Args:
        random_bytes: 9 bytes.
    """
    if len(random_bytes) != ID_BYTES:
        raise ValueError(f"an id needs {ID_BYTES} random bytes, not {len(random_bytes)}")
    return _ID_PREFIX + _base62(random_bytes, _ID_CHARACTERS)


def digest(secret: str) -> bytes:
    """SHA-256 of the secret. Any string has one: what arrives in a header may hold anything."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def check_name(name: str) -> str:
    """The name as it stands.

    Raises:
        ValueError: it is not a plain name; the message tells the rule. An id is no name, so that "revoke X" can
            never mean two keys.
    """
    if not _NAME.fullmatch(name) or name.startswith(_ID_PREFIX):
        raise ValueError(
            f"a key's name has 1 to {NAME_MAX_CHARACTERS} letters, digits, spaces and . @ + - _, begins with a letter"
            f" or a digit, does not end with a space and does not begin with {_ID_PREFIX!r}:"
            f" {name[: NAME_MAX_CHARACTERS + 1]!r}"
        )
    return name


def _base62(data: bytes, length: int) -> str:
    number = int.from_bytes(data, "big")
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
