"""The options that several commands share, and the settings they lead to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from andthen.config import Config

_Command = TypeVar("_Command", bound=Callable[..., Any])


def config_option(command: _Command) -> _Command:
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Settings file [default: $ANDTHEN_CONFIG, else andthen.toml in $ANDTHEN_HOME, if it is there]",
    )(command)


def settings(
    config_file: Path | None = None,
    options: Mapping[tuple[str, str], object] | None = None,
    models: Sequence[str] = (),
) -> Config:
    """All settings, checked. Raises `ConfigError`."""
    import os

    from andthen.config import load

    return load(os.environ, file=config_file, options=options, models=models)


def default_model(config: Config) -> str:
    """The model that is asked where none is named: the shipped one, else the first local one, else one upstream."""
    from andthen.config import HOUSE_MODEL

    if HOUSE_MODEL in config.engine.models:
        return HOUSE_MODEL
    upstream = config.upstream
    any_of_a_vendor = (f"{prefix}/MODEL" for prefix in upstream.vendors)
    return next(chain(config.engine.models, upstream.routes, upstream.listed(), any_of_a_vendor))
