"""`andthen keys`: who may call the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import click

from andthen.cli.tables import table

if TYPE_CHECKING:
    from andthen.books.store import Store


@click.group()
def keys() -> None:
    """Make, list and revoke API keys.

    Every change is in force in a running server within a second.
    """


@keys.command()
@click.option("--name", required=True, help="What to call the key; unique among the keys in force.")
def create(name: str) -> None:
    """Make a key and print it.

    Nothing else is printed on stdout, and the key is never shown again.
    """
    with _store() as store:
        try:
            issued = store.create_key(name)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--name") from error
    click.echo(issued.secret)


@keys.command(name="list")
def list_keys() -> None:
    """List all keys, revoked ones too."""
    with _store() as store:
        found = store.list_keys()
    rows = [[key.id, key.name, _date(key.created_at_ms), _date(key.revoked_at_ms)] for key in found]
    click.echo(table(["ID", "NAME", "CREATED", "REVOKED"], rows))


@keys.command()
@click.argument("key", metavar="ID|NAME")
def revoke(key: str) -> None:
    """Revoke a key, by its id or its name."""
    with _store() as store:
        ended = store.revoke_key(key)
    click.echo(f"{ended.id} ({ended.name}) is revoked, since {_date(ended.revoked_at_ms)}")


@contextmanager
def _store() -> Iterator[Store]:
    import os

    from andthen.books.store import open_sqlite
    from andthen.config import DATABASE_NAME, home_folder

    with closing(open_sqlite(home_folder(os.environ) / DATABASE_NAME)) as store:
        yield store


def _date(ms: int | None) -> str:
    from datetime import UTC, datetime

    return "" if ms is None else f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%SZ}"
