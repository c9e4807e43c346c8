"""Texts that only who sent them may read again: sealed with a key made from the caller's own API key, which is kept
nowhere. The only file that knows the ciphers' library.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE_BYTES = 12
_KEY_BYTES = 32


class Unreadable(Exception):
    """What is kept was not sealed by this key, or was changed since."""


class Seal:
    """Seals by AES-256-GCM (NIST SP 800-38D) with a key of HKDF-SHA256 (RFC 5869).

    Args:
        secret: the caller's API key.
        purpose: what is sealed; under another purpose nothing opens.
    """

    def __init__(self, secret: str, purpose: str) -> None:
        derive = HKDF(algorithm=SHA256(), length=2 * _KEY_BYTES, salt=None, info=f"andthen {purpose}".encode())
        keys = derive.derive(secret.encode())
        self._cipher = AESGCM(keys[:_KEY_BYTES])
        self._digest_key = keys[_KEY_BYTES:]

    def digest(self, data: bytes) -> bytes:
        """32 bytes that tell whether two texts are the same, to nobody who lacks the API key."""
        return hmac.digest(self._digest_key, data, hashlib.sha256)

    def close(self, data: bytes, label: str) -> bytes:
        """Sealed, for this label alone."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, label.encode())

    def open(self, sealed: bytes, label: str) -> bytes:
        """Raises `Unreadable`."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], label.encode())
        except (InvalidTag, ValueError) as error:
            raise Unreadable from error
