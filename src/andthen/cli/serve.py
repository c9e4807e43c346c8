"""`andthen serve`: the server, and what it says once it serves."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from andthen import __version__
from andthen.cli.settings import config_option, default_model, settings

if TYPE_CHECKING:
    from andthen.config import Config

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - only told, not bound
"""What to call an address that stands for all of the machine's."""

_SHOWN = 6
"""How many more names are told at the start."""


@click.command()
@click.option("--host", metavar="ADDRESS", help="Address to listen on. [default: 127.0.0.1]")
@click.option(
    "--port",
    type=int,
    metavar="N",
    help="Port to listen on; 0 lets the system choose. [default: 8000, else up to 8019]",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME=PATH",
    help="Serve this GGUF file too, as local/NAME; or NAME=hf:owner/repo:file.gguf. May be given several times.",
)
@click.option("--workers", type=int, metavar="N", help="Processes that serve HTTP. [default: 1]")
@config_option
def serve(
    *, host: str | None, port: int | None, models: tuple[str, ...], workers: int | None, config_file: Path | None
) -> int:
    """Serve completions until SIGTERM or ctrl-C.

    Once it serves, it prints on stdout what to paste to try it; the first start makes the first key and shows it. The
    log goes to stderr.
    """
    options = {("server", "host"): host, ("server", "port"): port, ("server", "workers"): workers}

    def read() -> Config:
        return settings(config_file, options, models)

    config = read()

    from andthen import supervisor
    from andthen.books.store import open_store
    from andthen.gateway.settings import FIRST_PORT
    from andthen.observability import logs

    logs.configure(config.logs)
    try:
        with (
            supervisor.bind(config.server.host, config.server.port) as listening,
            closing(open_store(config.database)) as store,
        ):
            address = listening.getsockname()
            moved = config.server.port is None and address[1] != FIRST_PORT
            open_to_all = address[0] in _ANYWHERE

            def say() -> None:
                issued = store.create_first_key()
                secret = issued.secret if issued else None
                text = banner(
                    _url(address[0], address[1]),
                    default_model(config),
                    secret,
                    more=_others(config),
                    command=_command(config_file),
                    moved=moved,
                    open_to_all=open_to_all,
                )
                with contextlib.suppress(OSError):  # who closed stdout does not want it
                    click.echo(text)

            return supervisor.serve(config, listening, say, read)
    except supervisor.CannotListen as error:
        raise click.ClickException(str(error)) from error


def banner(
    url: str,
    model: str,
    first_key: str | None,
    *,
    more: Sequence[str] = (),
    command: str = "andthen",
    moved: bool = False,
    open_to_all: bool = False,
) -> str:
    """What is printed once the server serves, with a curl command on a line of its own.

    Args:
        first_key: the key that this start made, to be shown this once.
        more: what it serves besides.
        command: how `andthen` is called for the same state.
        moved: whether the usual port was taken.
        open_to_all: whether it listens on all of the machine's addresses.
    """
    body = json.dumps({"model": model, "prompt": "Once upon a time", "max_tokens": 64})
    key = f"'x-api-key: {first_key}'" if first_key else '"x-api-key: $KEY"'
    made = f"{command} keys create --name NAME"
    note = " (port 8000 is taken)" if moved else ""
    if open_to_all:
        note += ", and at this machine's other addresses"
    return "\n".join(
        [
            f"andthen {__version__} serves {model} at {url}{note}",
            *(
                [f"and {', '.join(more[:_SHOWN])}{', …' * (len(more) > _SHOWN)}: `{command} models` tells"]
                if more
                else []
            ),
            "",
            f"Your key, shown only now: {first_key}\nMore keys: {made}" if first_key else f"A key: KEY=$({made})",
            f"In a browser: {url}/",
            "",
            f"curl {url}/v4/beta/completions -H {key} -H 'content-type: application/json' -d '{body}'",
            "",
        ]
    )


def _url(host: str, port: int) -> str:
    host = _ANYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _others(config: Config) -> list[str]:
    """The names beside the default model's; of a vendor only how they begin."""
    upstream = config.upstream
    whole = [
        name for name in [*config.engine.models, *upstream.routes, *upstream.models] if name != default_model(config)
    ]
    return [*whole, *(f"{prefix}/…" for prefix in upstream.vendors)]


def _command(config_file: Path | None) -> str:
    """How this command was called, so that it can be called so again, from another shell too, for the same state."""
    places = {name: value for name in ("ANDTHEN_HOME", "ANDTHEN_CONFIG") if (value := os.environ.get(name))}
    if config_file is not None:
        places["ANDTHEN_CONFIG"] = str(config_file)
    said = "".join(f"{name}={shlex.quote(str(Path(value).absolute()))} " for name, value in places.items())
    called = Path(sys.argv[0])
    if called.name != "andthen":
        return f"{said}python -m andthen"
    found = shutil.which("andthen")
    return said + ("andthen" if found and Path(found).resolve() == called.resolve() else shlex.quote(str(called)))
