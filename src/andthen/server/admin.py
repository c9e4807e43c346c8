"""The routes below `/admin`: keys made, shown, changed and ended by an admin key, and what was changed by whom.

Bodies are small and read strictly: what is not known is an error that names it, so that a bound that was misspelt is
never taken for none. The database is asked in a thread.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from andthen.books.keys import Key
from andthen.books.policy import UNBOUNDED, BadPolicy, Policy
from andthen.books.store import BooksError, Change, IssuedKey, KeyChange, KeyEnded, NameTaken, NoSuchKey, Store
from andthen.contract.errors import BadRequest, Conflict, DatabaseUnavailable, InvalidJson, NotFound
from andthen.contract.usage import BudgetStanding
from andthen.descriptors import or_refusal
from andthen.gateway.context import JSON, RequestContext
from andthen.server.usage import standings

ADMIN_KEYS = "/admin/keys"
ADMIN_AUDIT = "/admin/audit"
ROTATE = "/rotate"
BODY_BYTES = 64 * 2**10
CHANGES_MAX = 1000

_T = TypeVar("_T")
_Body = TypeVar("_Body", bound=Struct)
_TimeMs = Annotated[int, Meta(ge=0, le=2**53 - 1)]
_PLACE = re.compile(r" - at `\$\.?(?P<field>[^`]*)`$")
_MESSAGE_CHARACTERS = 300


class NewKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    """Unique among the keys that are not revoked."""
    admin: bool = False
    """For the routes below `/admin`, and for nothing else."""
    expires_at_ms: _TimeMs | None = None
    """Milliseconds since 1970, UTC; null: never."""
    policy: Policy = UNBOUNDED


class KeyPatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is left out stays."""

    disabled: bool | UnsetType = UNSET
    expires_at_ms: _TimeMs | UnsetType | None = UNSET
    """Milliseconds since 1970, UTC; null: never."""
    policy: dict[str, Any] | UnsetType = UNSET
    """Each field that is there replaces the key's."""


class Rotation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    overlap_ms: Annotated[int, Meta(ge=0, le=366 * 86_400_000)] = 0
    """How long the key's older secrets open it still."""


class KeyList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Key]


class ShownKey(Key, frozen=True, kw_only=True):
    """A key, and how it stands."""

    budgets: list[BudgetStanding]
    """What is used of its budgets, in their order."""


class ChangeList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Change]
    """Newest first."""


class Deletion(Struct, kw_only=True):
    id: str
    deleted: Literal[True] = True


async def list_keys(ctx: RequestContext) -> None:
    await _reply(ctx, KeyList(data=await _ask(ctx.services.store.list_keys)))


async def create_key(ctx: RequestContext) -> None:
    asked = await _body(ctx, NewKey)
    if asked.expires_at_ms is not None and asked.expires_at_ms <= time.time_ns() // 1_000_000:
        raise BadRequest(
            "`expires_at_ms` is past, and the key would open nothing: send a later one, or none.", param="expires_at_ms"
        )
    made = await _ask(
        ctx.services.store.create_key,
        asked.name,
        policy=asked.policy,
        admin=asked.admin,
        expires_at_ms=asked.expires_at_ms,
        actor=_actor(ctx),
    )
    await _reply(ctx, made)


async def show_key(ctx: RequestContext) -> None:
    await ctx.services.accounts.ledger.catch_up()
    await _reply(ctx, await _ask(_shown, ctx.services.store, _named(ctx)))


def _shown(store: Store, id_or_name: str) -> ShownKey:
    key = store.find_key(id_or_name)
    return ShownKey(**msgspec.structs.asdict(key), budgets=standings(store, key))


async def change_key(ctx: RequestContext) -> None:
    asked = await _body(ctx, KeyPatch)
    fields: dict[str, Any] = {}
    if asked.policy is not UNSET:
        try:
            checked = msgspec.convert(asked.policy, Policy)
        except msgspec.ValidationError as error:
            raise _wrong(error, "policy") from None
        fields = {name: getattr(checked, name) for name in asked.policy}
    change = KeyChange(policy=fields, expires_at_ms=asked.expires_at_ms, disabled=asked.disabled)
    await _reply(ctx, await _ask(ctx.services.store.update_key, _named(ctx), change, actor=_actor(ctx)))


async def delete_key(ctx: RequestContext) -> None:
    gone = await _ask(ctx.services.store.delete_key, _named(ctx), actor=_actor(ctx))
    await _reply(ctx, Deletion(id=gone.id))


async def rotate_key(ctx: RequestContext) -> None:
    asked = await _body(ctx, Rotation)
    made: IssuedKey = await _ask(
        ctx.services.store.rotate_key, _named(ctx), overlap_ms=asked.overlap_ms, actor=_actor(ctx)
    )
    await _reply(ctx, made)


async def list_changes(ctx: RequestContext) -> None:
    """As the query says, `?limit=100&before=ID`."""
    asked = {"limit": 100, "before": 2**63 - 1}
    bounds = {"limit": (1, CHANGES_MAX), "before": (1, 2**63 - 1)}
    try:
        given = parse_qsl(ctx.query.decode(), keep_blank_values=True, strict_parsing=bool(ctx.query))
    except ValueError:
        raise BadRequest("The query can't be read: send `?limit=100&before=ID`.") from None
    for name, text in given:
        if name not in bounds:
            raise BadRequest("The query takes `limit` and `before` only.", param=name[:64])
        low, high = bounds[name]
        if not re.fullmatch(r"\d{1,19}", text, re.ASCII) or not low <= int(text) <= high:
            raise BadRequest(f"`{name}` must be an integer from {low} to {high}.", param=name)
        asked[name] = int(text)
    found = await _ask(ctx.services.store.changes, limit=asked["limit"], before_id=asked["before"])
    await _reply(ctx, ChangeList(data=found))


async def _ask(call: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
    """What the database says, or the error that the caller is told."""
    try:
        return await asyncio.to_thread(functools.partial(call, *arguments, **named))
    except NoSuchKey:
        raise NotFound(f"There is no such key: `GET {ADMIN_KEYS}` lists them.") from None
    except (NameTaken, KeyEnded) as error:
        raise Conflict(f"This can't be done: {error}.") from None
    except BadPolicy as error:
        raise BadRequest(f"`policy` can't be so: {error}.", param=f"policy.{error.field}") from None
    except ValueError as error:
        raise BadRequest(f"`name` can't be so: {error}.", param="name") from None
    except BooksError as error:
        raise or_refusal(
            DatabaseUnavailable("The database can't be used at the moment: send the request again.")
        ) from error


async def _body(ctx: RequestContext, kind: type[_Body]) -> _Body:
    body = await ctx.body(most=BODY_BYTES)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise _wrong(error, "") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidJson("The body is not valid JSON in UTF-8: send an object.") from None


def _wrong(error: msgspec.ValidationError, below: str) -> BadRequest:
    """The error that names the field; `below` is where the value stood that was read."""
    said = str(error)
    found = _PLACE.search(said)
    unknown = re.search(r"unknown field `([^`]{1,64})`|missing required field `([^`]{1,64})`", said)
    parts = (below, found["field"] if found else "", (unknown[1] or unknown[2]) if unknown else "")
    field = ".".join(part for part in parts if part)
    reason = (said[: found.start()] if found else said)[:_MESSAGE_CHARACTERS]
    return BadRequest(
        f"`{field or 'body'}` is wrong: {reason}. `GET /openapi.json` tells its shape.", param=field or None
    )


def _named(ctx: RequestContext) -> str:
    """The key that the path names, by id or name."""
    return ctx.path.removeprefix(f"{ADMIN_KEYS}/").removesuffix(ROTATE)


def _actor(ctx: RequestContext) -> str:
    return ctx.key_id or ""


async def _reply(ctx: RequestContext, value: Struct) -> None:
    await ctx.reply(200, JSON, msgspec.json.encode(value))
