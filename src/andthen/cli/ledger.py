"""`andthen ledger`: the ledger's rows, taken out, shown and cleared away."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from andthen.cli.moments import Moment
from andthen.cli.settings import config_option

if TYPE_CHECKING:
    from andthen.books.store import SqlStore
    from andthen.books.store.export import Rows, Value
    from andthen.books.store.removal import Ageing

_BATCH_ROWS = 1000
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
"""How a text begins that a spreadsheet may take for a formula
(https://owasp.org/www-community/attacks/CSV_Injection, 2026-11-23)."""


@click.group()
@config_option
@click.pass_context
def ledger(context: click.Context, config_file: Path | None) -> None:
    """Take the ledger's rows out, show one, and clear old ones away.

    What it adds up to is told by `andthen usage`.

    \b
        andthen ledger export --since 2026-11-01 --until 2026-12-01 --csv > november.csv
        andthen ledger prune requests --before 90d --dry-run
    """
    context.obj = config_file


@ledger.command()
@click.argument("rows", type=click.Choice(["requests", "calls"]), default="requests")
@click.option("--since", type=Moment(), help="The first moment: a date, or 7d ago. [default: the ledger's beginning]")
@click.option("--until", type=Moment(), help="The first moment that does not count any more.")
@click.option("--key", metavar="ID|NAME", help="Only of this key.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
def export(*, rows: Rows, since: int | None, until: int | None, key: str | None, as_csv: bool) -> None:
    """Print all requests, or all calls to vendors, oldest first: an object of JSON a line.

    The period is that in which the requests began. Moments are ISO 8601 in UTC; money is in US dollars, exact, as text.
    With --csv, a text that a spreadsheet would take for a formula has a ' before it; JSON is as it is in the ledger.
    """
    from andthen.books.store.export import columns

    with _store() as store:
        key_id = None if key is None else store.find_key(key, deleted=True).id
        found = store.export(rows, since_ms=since or 0, until_ms=until, key_id=key_id)
        _write(_csv(columns(rows), found) if as_csv else (json.dumps(row, ensure_ascii=False) + "\n" for row in found))


@ledger.command()
@click.argument("request", metavar="REQUEST")
@click.option("--text", is_flag=True, help="Its prompts and completions too, where they are kept.")
def show(*, request: str, text: bool) -> None:
    """Print one request, named by its id, and its calls as JSON.

    Whoever reads a text leaves a line in the audit.
    """
    import msgspec

    with _store() as store:
        found = store.export_one(request)
        if found is None:
            raise click.ClickException(f"no request has the id {request!r}: a reply bears it as x-request-id")
        told = {**found[0], "calls": found[1], **({"text": store.read_text(request)} if text else {})}
    click.echo(msgspec.json.format(msgspec.json.encode(told)).decode())


@ledger.command()
@click.argument("what", type=click.Choice(["requests", "texts", "audit"]))
@click.option("--before", type=Moment(), required=True, help="What is older goes: a date, or 90d ago.")
@click.option("--dry-run", is_flag=True, help="Tell how many rows would go, and leave them.")
def prune(*, what: Ageing, before: int, dry_run: bool) -> None:
    """Remove old rows for good.

    `requests` go with their calls and texts, `texts` go alone, `audit` is who changed which key. Of requests there
    stays what they came to, by day, key and model: `andthen usage` and budgets do not change. Requests under way stay.
    It may run beside servers. They do the same by themselves where `keep_requests_days`, `keep_text_days` and
    `keep_audit_days` are set.
    """
    with _store() as store:
        if dry_run:
            click.echo(f"rows that would go: {store.count_old(what, before)}")
            return
        rows = 0
        while removed := store.remove_old(what, before, most=_BATCH_ROWS):
            rows += removed
    click.echo(f"rows removed: {rows}")


def _csv(head: list[str], rows: Iterable[dict[str, Value]]) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        yield line.getvalue()
        line.seek(0)
        line.truncate()
        writer.writerow(map(_cell, row.values()))
    yield line.getvalue()


def _cell(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _write(lines: Iterable[str]) -> None:
    """In UTF-8, whatever the terminal's own encoding: it is for files."""
    for line in lines:
        sys.stdout.buffer.write(line.encode())


@contextmanager
def _store() -> Iterator[SqlStore]:
    import os

    from andthen.books.store import open_store
    from andthen.config import database

    with closing(open_store(database(os.environ, file=click.get_current_context().obj))) as store:
        yield store
