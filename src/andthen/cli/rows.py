"""The rows of configured models, for the commands that show them. Local ones are asked of the engine in here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from andthen.config import Config
    from andthen.engine.messages import ModelInfo
    from andthen.plan.abilities import Abilities
    from andthen.vendors.settings import Remote


def described(config: Config) -> list[ModelInfo]:
    """The local models, without their weights."""
    from andthen.cli.local import running

    if not config.engine.models:
        return []
    with running(config) as engine:
        return engine.describe()


def row_of(name: str, config: Config) -> Abilities:
    """The row of a configured model. Raises `click.UsageError` where there is none."""
    from andthen.cli.local import named
    from andthen.gateway.local import abilities

    if name in config.engine.models:
        return abilities(named(described(config), name), config.limits)
    remote, model = remote_of(name, config)
    return remote.resolved(model).abilities(name, config.limits)


def remote_of(name: str, config: Config) -> tuple[Remote, str]:
    """Where a model upstream stands, and its name there. Raises `click.UsageError` where there is none."""
    found = config.upstream.find(name)
    if found is None:
        raise click.UsageError(f"{name} is not configured{_remedy(name)}: `andthen models` lists the models.")
    return found


def _remedy(name: str) -> str:
    """What would switch the vendor on, if it is known."""
    from andthen.vendors.rows import vendors

    row = vendors().get(name.partition("/")[0])
    return f" ({row.name} is switched on by {row.key_variable or 'a table in [vendors]'})" if row is not None else ""


def every_row(config: Config) -> Iterator[Abilities]:
    """The rows of all models that lists show."""
    from andthen.gateway.local import abilities

    for name in config.upstream.listed():
        yield row_of(name, config)
    for model in described(config):
        yield abilities(model, config.limits)
