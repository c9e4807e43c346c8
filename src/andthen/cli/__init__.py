"""The command `andthen`. Each command stands in a file of its own and imports what it needs when it runs, so that
`andthen --help` is there at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from andthen import __version__

COMMANDS = {
    "serve": "andthen.cli.serve:serve",
    "reload": "andthen.cli.reload:reload",
    "complete": "andthen.cli.complete:complete",
    "keys": "andthen.cli.keys:keys",
    "migrate": "andthen.cli.migrate:migrate",
    "models": "andthen.cli.models:models",
    "prices": "andthen.cli.prices:prices",
    "explain": "andthen.cli.explain:explain",
    "usage": "andthen.cli.usage:usage",
    "ledger": "andthen.cli.ledger:ledger",
}

FAILED = 1
USAGE = 2
INTERRUPTED = 130

EXIT_CODES = {
    0: "done; of `serve`: stopped in good order by SIGTERM or SIGINT",
    FAILED: "it failed: the message on stderr says why and what to do",
    USAGE: "an option, a variable, the settings file or the request is wrong",
    INTERRUPTED: "interrupted from the keyboard",
}


class _Andthen(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=_Andthen, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="andthen", message="%(prog)s %(version)s")
def andthen() -> None:
    """A self-hosted completions server: a text goes in, what comes next goes out.

    Settings come from options, then ANDTHEN_* variables, then andthen.toml; state lives in $ANDTHEN_HOME. See
    docs/settings.md for all of them.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits with one of `EXIT_CODES`."""
    try:
        code = andthen.main(arguments, prog_name="andthen", standalone_mode=False)
        if sys.stdout:
            sys.stdout.flush()  # here, where a failure can be told
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except OSError as error:  # standard output's: a full disk, or nobody who reads
        code = FAILED
        if not isinstance(error, BrokenPipeError):
            click.echo(f"Error: {error}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter would fail at the rest once more
    except Exception as error:
        code = _code(error)
        click.echo(f"Error: {error}", err=True)
    sys.exit(code)


def _code(error: Exception) -> int:
    """The exit code of an error that says all there is to say; any other goes on its way, with its traceback."""
    from andthen.books.store import BooksError
    from andthen.config import ConfigError
    from andthen.contract.errors import AndthenError, CallerError
    from andthen.engine.hub import HubError

    match error:
        case ConfigError() | CallerError():
            return USAGE
        case BooksError() | HubError() | AndthenError():
            return FAILED
    raise error
