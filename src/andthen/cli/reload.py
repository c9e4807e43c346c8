"""`andthen reload`: the settings of a running server, read again."""

from __future__ import annotations

import click


@click.command()
def reload() -> int:
    """Have the server that runs on this state read its settings again.

    Whole or not at all: where the file is wrong, or changes what only a start can change, nothing is changed, and this
    says so. No connection is dropped, and requests under way end as they began. SIGHUP does the same, and the log tells
    what came of it.
    """
    import os

    from andthen.config import home_folder
    from andthen.reload import ask_servers

    home = home_folder(os.environ)
    answers = ask_servers(home)
    if not answers:
        raise click.ClickException(
            f"no server runs on the state in {home}: start one with `andthen serve`, or set ANDTHEN_HOME"
        )
    for answer in answers:
        click.echo(f"Error: {answer.message}" if answer.code else answer.message, err=answer.code != 0)
    return max(answer.code for answer in answers)
