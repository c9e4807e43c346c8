"""`andthen migrate`: the database's tables, brought to the newest shape."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from andthen.cli.settings import config_option


@click.command()
@config_option
def migrate(config_file: Path | None) -> None:
    """Bring the database's tables to this version's shape.

    PostgreSQL is migrated by this alone: run it once before the first server of a new version starts; of several that
    run it, the others wait. A SQLite file is also migrated by whatever opens it, after a copy was made beside it.
    """
    import os

    from andthen.books.store import HEAD, open_store
    from andthen.config import database

    with closing(open_store(database(os.environ, file=config_file), migrate=True)):
        click.echo(f"the database is at schema {HEAD}")
