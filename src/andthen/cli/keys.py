"""`andthen keys`: who may call the server, and what each may do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from andthen.cli.policies import (
    FIELDS,
    Moment,
    Span,
    date,
    in_words,
    policy_fields,
    policy_options,
    state,
    used_in_words,
)
from andthen.cli.settings import config_option
from andthen.cli.tables import table

if TYPE_CHECKING:
    from andthen.books.keys import Key
    from andthen.books.store import KeyChange, Store


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_key_argument = click.argument("key", metavar="ID|NAME")


@click.group()
@config_option
@click.pass_context
def keys(context: click.Context, config_file: Path | None) -> None:
    """Make, show, change and end API keys.

    Every change is in force in a running server within a second, and written down: who, what, when.

    \b
        andthen keys create --name ci --model 'local/*' --rpm 60 --budget day=5.00 --expires 90d
        andthen keys update ci --max-tokens 256 --clear budget
        andthen keys rotate ci --overlap 24h
    """
    context.obj = config_file


@keys.command()
@click.option("--name", required=True, help="What to call the key; unique among the keys that are not revoked.")
@policy_options
@click.option("--expires", type=Moment(), help="When it ends: 30d from now, or 2027-01-31, UTC. [default: never]")
@click.option("--admin", is_flag=True, help="A key for the routes below /admin, and for nothing else.")
@_json_option
def create(*, name: str, expires: int | None, admin: bool, as_json: bool, **given: Any) -> None:
    """Make a key and print it.

    Nothing else is printed on stdout, and the key is never shown again.
    """
    from andthen.books.policy import Policy

    if expires is not None and expires <= _now():
        raise click.BadParameter("that is past, and the key would open nothing: write 30d", param_hint="--expires")
    with _store() as store, _told_as_usage("--name"):
        issued = store.create_key(name, policy=Policy(**policy_fields(given)), admin=admin, expires_at_ms=expires)
    click.echo(_json({"secret": issued.secret, "key": issued.key}) if as_json else issued.secret)


@keys.command(name="list")
@_json_option
def list_keys(*, as_json: bool) -> None:
    """List all keys, revoked ones too."""
    with _store() as store:
        found = store.list_keys()
    if as_json:
        click.echo(_json(found))
        return
    rows = [
        [key.id, key.name, "admin" if key.admin else "", key.policy.owner, date(key.created_at_ms), state(key, _now())]
        for key in found
    ]
    click.echo(table(["ID", "NAME", "KIND", "OWNER", "CREATED", "STATE"], rows))


@keys.command()
@_key_argument
@_json_option
def show(*, key: str, as_json: bool) -> None:
    """Show a key, its bounds, and what of its budgets is used."""
    with _store() as store:
        found = store.find_key(key)
        spent = store.spent(found.id, found.policy.budgets)
    if as_json:
        click.echo(_json(found))
        return
    told = [
        ("id", found.id),
        ("name", found.name),
        ("created", date(found.created_at_ms)),
        ("state", state(found, _now())),
    ]
    told += [("kind", "admin")] if found.admin else []
    used = [used_in_words(*one) for one in zip(found.policy.budgets, spent, strict=True)]
    click.echo(table(["KEY", ""], [*told, *in_words(found.policy), *used]))


@keys.command()
@_key_argument
@policy_options
@click.option(
    "--clear", "cleared", multiple=True, type=click.Choice(list(FIELDS)),
    help="A bound to take away. May be given several times.",
)  # fmt: skip
def update(*, key: str, cleared: tuple[str, ...], **given: Any) -> None:
    """Change a key's bounds. An option replaces all that was set of its kind."""
    from andthen.books.policy import UNBOUNDED
    from andthen.books.store import KeyChange

    fields = {FIELDS[option]: getattr(UNBOUNDED, FIELDS[option]) for option in cleared} | policy_fields(given)
    if not fields:
        raise click.UsageError("nothing is to be changed: name a bound, or one to --clear")
    _change(key, KeyChange(policy=fields), "is changed")


@keys.command()
@_key_argument
@click.option("--overlap", type=Span(), default="0s", help="How long its older secrets open it still. [default: 0s]")
@_json_option
def rotate(*, key: str, overlap: int, as_json: bool) -> None:
    """Give a key a new secret and print it. Its id and its bounds stay."""
    with _store() as store:
        issued = store.rotate_key(key, overlap_ms=overlap)
    click.echo(_json({"secret": issued.secret, "key": issued.key}) if as_json else issued.secret)


@keys.command()
@_key_argument
def disable(key: str) -> None:
    """Take a key out of force until it is enabled."""
    from andthen.books.store import KeyChange

    _change(key, KeyChange(disabled=True), "is disabled")


@keys.command()
@_key_argument
def enable(key: str) -> None:
    """Put a disabled key in force again."""
    from andthen.books.store import KeyChange

    _change(key, KeyChange(disabled=False), "is enabled")


@keys.command()
@_key_argument
@click.argument("when", type=Moment(), default="now")
@click.option("--never", is_flag=True, help="Take its end away.")
def expire(*, key: str, when: int, never: bool) -> None:
    """Let a key end: now, unless WHEN says 30d from now, or 2027-01-31, UTC."""
    from andthen.books.store import KeyChange

    told = "has no end" if never else f"ends at {date(when)}"
    _change(key, KeyChange(expires_at_ms=None if never else when), told)


@keys.command()
@_key_argument
def revoke(key: str) -> None:
    """End a key for good. It stays in the list."""
    with _store() as store:
        ended = store.revoke_key(key)
    click.echo(f"{_called(ended)} is revoked, since {date(ended.revoked_at_ms or 0)}")


@keys.command()
@_key_argument
def delete(key: str) -> None:
    """End a key for good and take it out of the list. What it used stays in the ledger."""
    with _store() as store:
        ended = store.delete_key(key)
    click.echo(f"{_called(ended)} is deleted")


def _change(key: str, change: KeyChange, told: str) -> None:
    with _store() as store, _told_as_usage(None):
        changed = store.update_key(key, change)
    click.echo(f"{_called(changed)} {told}")


@contextmanager
def _told_as_usage(name_option: str | None) -> Iterator[None]:
    """A value that can't be is an error of usage, at the option that it came by."""
    from andthen.books.policy import BadPolicy

    try:
        yield
    except BadPolicy as error:
        option = next(option for option, field in FIELDS.items() if field == error.field)
        raise click.BadParameter(str(error), param_hint=f"--{option}") from error
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=name_option) from error


@contextmanager
def _store() -> Iterator[Store]:
    import os

    from andthen.books.store import open_store
    from andthen.config import database

    with closing(open_store(database(os.environ, file=click.get_current_context().obj))) as store:
        yield store


def _json(value: Any) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(value)).decode()


def _called(key: Key) -> str:
    return f"{key.id} ({key.name})"


def _now() -> int:
    return time.time_ns() // 1_000_000
