"""What a key's policy permits. Rate limits and budgets are checked elsewhere."""

from __future__ import annotations

from andthen.books.keys import Key
from andthen.contract.errors import BadRequest, ModelNotAllowed, PermissionDenied


def check_address(key: Key, address: str) -> None:
    """Raises `PermissionDenied`."""
    if not key.policy.allows_address(address):
        raise PermissionDenied("This API key may not be used from your address: its policy names the networks.")


def check_kind(key: Key, *, for_admin: bool | None) -> None:
    """Raises `PermissionDenied`.

    Args:
        for_admin: the route takes admin keys (True), ordinary keys (False) or both (None).
    """
    if for_admin is None or key.admin is for_admin:
        return
    if for_admin:
        raise PermissionDenied("This takes an admin key: `andthen keys create --admin --name NAME` makes one.")
    raise PermissionDenied("This API key is for the routes below /admin only: use an ordinary one here.")


def allows_model(key: Key | None, name: str) -> bool:
    """Whether the key may use a model. Routes that need no key pass None: all models are allowed."""
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
