"""`andthen usage`: what the ledger adds up to."""

from __future__ import annotations

import csv
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from andthen.cli.moments import Moment
from andthen.cli.settings import config_option
from andthen.cli.tables import table

if TYPE_CHECKING:
    from andthen.books.store.usage import UsageRow


@click.command()
@click.option("--by", default="day,key,model", show_default=True, metavar="GROUPS", help="Any of day, key and model.")
@click.option("--since", type=Moment(), default="30d", show_default=True, help="The first moment: a date, or 7d ago.")
@click.option("--until", type=Moment(), help="The first moment that does not count any more.")
@click.option("--key", metavar="ID|NAME", help="Only of this key.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; money in millionths of a US dollar.")
@config_option
def usage(
    *,
    by: str,
    since: int,
    until: int | None,
    key: str | None,
    as_csv: bool,
    as_json: bool,
    config_file: Path | None,
) -> None:
    """Tell what was used, from the ledger.

    Days are UTC. FAILED counts replies that were errors or that their caller left; tokens and cost count them too.

    \b
        andthen usage --by key --since 7d
        andthen usage --csv > usage.csv
    """
    import os

    from andthen.books.store import open_store
    from andthen.books.store.usage import GROUPS
    from andthen.config import database

    groups = [group for group in GROUPS if group in by.split(",")]
    if not groups or set(by.split(",")) - set(GROUPS):
        raise click.BadParameter(f"{by!r}: name any of {', '.join(GROUPS)}, with commas.", param_hint="--by")
    if as_csv and as_json:
        raise click.UsageError("Choose one of --csv and --json.")
    with closing(open_store(database(os.environ, file=config_file))) as store:
        key_id = None if key is None else store.find_key(key, deleted=True).id
        rows = store.usage(groups, since_ms=since, until_ms=until, key_id=key_id)
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(row) for row in rows], indent=2))
    elif rows or as_csv:
        _print(rows, [*groups, *(["name"] if "key" in groups else []), *_SUMS], as_csv=as_csv)
    else:
        click.echo("Nothing was used in that time.")


_SUMS = (
    "requests", "failed", "open", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "cost_usd",
)  # fmt: skip


_RARE = ("open", "cached_tokens", "reasoning_tokens")
"""Left out of a table for eyes where all are 0: it is wide enough."""


def _print(rows: list[UsageRow], columns: list[str], *, as_csv: bool) -> None:
    if not as_csv:
        columns = [name for name in columns if name not in _RARE or any(getattr(row, name) for row in rows)]
    cells = [[_cell(row, name, as_csv=as_csv) for name in columns] for row in rows]
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(cells)
    else:
        click.echo(table([name.replace("_", " ").upper() for name in columns], cells))


def _cell(row: UsageRow, name: str, *, as_csv: bool) -> str:
    if name == "cost_usd":
        return f"{row.cost_micros // 1_000_000}.{row.cost_micros % 1_000_000:06d}"
    value = getattr(row, name)
    if as_csv:
        return str(value)
    return value or "–" if isinstance(value, str) else f"{value:,}"
