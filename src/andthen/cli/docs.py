"""Prints docs/cli.md's part from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator

import click

from andthen.cli import EXIT_CODES, andthen

_WIDTH = 100


def cli_markdown() -> str:
    """Every command's help, and the exit codes."""
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    parts = [f"### `{path}`\n\n```text\n{text}\n```" for path, text in _help(andthen, None, "andthen")]
    return "\n\n".join([f"| exit code | |\n|---|---|\n{codes}", *parts])


def _help(command: click.Command, parent: click.Context | None, name: str) -> Iterator[tuple[str, str]]:
    context = click.Context(command, parent=parent, info_name=name, terminal_width=_WIDTH, **command.context_settings)
    yield context.command_path, command.get_help(context).rstrip()
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from _help(found, context, child)
