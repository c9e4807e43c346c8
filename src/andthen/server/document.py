"""The OpenAPI document of all of the server's routes: the contract's, and those below `/admin`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from andthen.books.keys import Key
from andthen.books.store import IssuedKey
from andthen.contract import errors
from andthen.contract.errors import AndthenError
from andthen.contract.limits import Limits
from andthen.contract.spec import DAYS, WITH_BODY, WITH_KEY, Json, json_reply, openapi, operation
from andthen.server.admin import (
    ADMIN_AUDIT,
    ADMIN_KEYS,
    CHANGES_MAX,
    ROTATE,
    ChangeList,
    Deletion,
    KeyList,
    KeyPatch,
    NewKey,
    Rotation,
    ShownKey,
)
from andthen.server.usage import ADMIN_USAGE, UsageList

_STRUCTS = (Key, IssuedKey, KeyList, ChangeList, Deletion, NewKey, KeyPatch, Rotation, ShownKey, UsageList)
_EXAMPLES: dict[str, Json] = {
    "NewKey": {
        "name": "nightly",
        "policy": {"models": ["local/*"], "budgets": [{"window": "day", "micros": 5_000_000}]},
    },
    "KeyPatch": {"disabled": True},
    "Rotation": {"overlap_ms": 86_400_000},
}
"""By the schema of the body."""
_ALWAYS = (*WITH_KEY, errors.DatabaseUnavailable)


def document(limits: Limits, *, version: str) -> Json:
    """The document, an OpenAPI 3.1 object; see `openapi`."""
    made = openapi(limits, version=version, structs=_STRUCTS, paths=_paths())
    patch = made["components"]["schemas"]["KeyPatch"]
    patch["properties"]["policy"] = {"$ref": "#/components/schemas/Policy"}  # whose fields may all be left out
    plain: Json = msgspec.json.decode(msgspec.json.encode(made))
    return plain


def _paths() -> Json:
    below = f"{ADMIN_KEYS}/{{id}}"
    return {
        ADMIN_KEYS: {
            "get": _admin("listKeys", "List keys", "KeyList", "All keys but the deleted.", ()),
            "post": _admin(
                "createKey", "Make a key", "IssuedKey", "The key, and its secret, which is never told again.",
                (*WITH_BODY, errors.Conflict), "NewKey",
            ),
        },
        below: {
            "get": _of_key(
                "showKey", "Show a key", "ShownKey", "The key, and what is used of its budgets.", (errors.NotFound,)
            ),
            "patch": _of_key(
                "changeKey", "Change a key's bounds, disable or enable it, or let it end", "Key",
                "The key as it is now.",
                (*WITH_BODY, errors.NotFound, errors.Conflict), "KeyPatch",
            ),
            "delete": _of_key(
                "deleteKey", "End a key for good and take it out of all lists", "Deletion", "It is gone.",
                (errors.NotFound,),
            ),
        },
        f"{below}{ROTATE}": {
            "post": _of_key(
                "rotateKey", "Give a key a new secret", "IssuedKey", "The key, and its new secret.",
                (*WITH_BODY, errors.NotFound, errors.Conflict), "Rotation",
            )
        },
        ADMIN_AUDIT: {"get": _audit()},
        ADMIN_USAGE: {"get": _usage()},
    }  # fmt: skip


def _admin(
    name: str, summary: str, schema: str, done: str, refusals: Sequence[type[AndthenError]], body: str | None = None
) -> Json:
    made = operation(name, f"{summary} (admin key)", json_reply(schema, done), (*refusals, *_ALWAYS), body=body)
    if body is not None:
        made["requestBody"]["content"]["application/json"]["examples"] = {"example": {"value": _EXAMPLES[body]}}
    return made


def _of_key(
    name: str, summary: str, schema: str, done: str, refusals: Sequence[type[AndthenError]], body: str | None = None
) -> Json:
    made = _admin(name, summary, schema, done, refusals, body)
    made["parameters"] = [
        {
            "name": "id", "in": "path", "required": True, "description": "The key's id, or its name.",
            "schema": {"type": "string", "minLength": 1},
        }
    ]  # fmt: skip
    return made


def _usage() -> Json:
    made = _admin(
        "listUsage", "What all keys have used", "UsageList", "The sums.", (errors.BadRequest, errors.LedgerUnavailable)
    )
    made["parameters"] = [DAYS]
    return made


def _audit() -> Json:
    made = _admin("listChanges", "Who changed what, when", "ChangeList", "The changes.", (errors.BadRequest,))
    bounds = {"limit": ("How many.", CHANGES_MAX), "before": ("Only those with a smaller id.", 2**63 - 1)}
    made["parameters"] = [
        {
            "name": name, "in": "query", "description": text,
            "schema": {"type": "integer", "minimum": 1, "maximum": most},
        }
        for name, (text, most) in bounds.items()
    ]  # fmt: skip
    return made
