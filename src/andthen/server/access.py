"""What a key may do, as far as its policy alone tells. What was used already is not looked at here."""

from __future__ import annotations

from andthen.books.keys import Key
from andthen.contract.errors import BadRequest, ModelNotAllowed, PermissionDenied
from andthen.server.http import Exchange


def sent_secret(exchange: Exchange) -> str | None:
    """The key that was sent. `x-api-key` decides where both ways are used."""
    secret = exchange.header(b"x-api-key")
    if secret is None:
        scheme, _, secret = (exchange.header(b"authorization") or b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return None
    return secret.strip().decode("latin-1") or None


def check_address(key: Key, address: str) -> None:
    """Raises `PermissionDenied`."""
    if not key.policy.allows_address(address):
        raise PermissionDenied("This API key may not be used from your address: its policy names the networks.")


def check_kind(key: Key, *, for_admin: bool | None) -> None:
    """Raises `PermissionDenied`.

    Args:
        for_admin: whether the route is one below `/admin`; None where either kind of key will do.
    """
    if for_admin is None or key.admin is for_admin:
        return
    if for_admin:
        raise PermissionDenied("This takes an admin key: `andthen keys create --admin --name NAME` makes one.")
    raise PermissionDenied("This API key is for the routes below /admin only: use an ordinary one here.")


def allows_model(key: Key | None, name: str) -> bool:
    """Whether a model may be asked for. Without a key, where none is needed, any may."""
    return key is None or key.policy.allows_model(name)


def check_model(key: Key | None, name: str) -> None:
    """Raises `ModelNotAllowed`."""
    if not allows_model(key, name):
        raise ModelNotAllowed(
            "This API key may not use this model: `GET /v1/models` lists the names that it may.", param="model"
        )


def check_max_tokens(key: Key | None, max_tokens: int) -> None:
    """Raises `BadRequest`."""
    bound = None if key is None else key.policy.max_tokens
    if bound is not None and max_tokens > bound:
        raise BadRequest(
            f"`max_tokens` is {max_tokens}, and this API key may ask for at most {bound}: send {bound} or less.",
            param="max_tokens",
        )
