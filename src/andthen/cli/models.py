"""`andthen models`: what can be asked, and getting more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from andthen.cli.settings import config_option, settings
from andthen.cli.tables import table

if TYPE_CHECKING:
    from andthen.engine.messages import ModelInfo


class _Models(click.Group):
    """A word that is no command is a model's name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])


@click.group(cls=_Models, invoke_without_command=True, subcommand_metavar="[NAME | COMMAND]")
@config_option
@click.pass_context
def models(ctx: click.Context, config_file: Path | None) -> None:
    """List the configured models, or tell what one of them takes.

    \b
        andthen models
        andthen models local/tale
    """
    ctx.obj = config_file
    if ctx.invoked_subcommand is None:
        config = settings(config_file)
        rows = [
            [
                model.name,
                f"{model.context:,}",
                f"{model.parameters:,}",
                f"{model.size_bytes / 1e6:,.1f} MB",
                "yes" if model.fill_in_the_middle else "no",
                "yes" if model.deterministic else "no",
                config.engine.models[model.name].path,
            ]
            for model in _described(config)
        ]
        click.echo(table(["NAME", "CONTEXT", "PARAMETERS", "SIZE", "SUFFIX", "DETERMINISTIC", "FILE"], rows))


@models.command(hidden=True)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the row as JSON.")
@click.pass_obj
def show(config_file: Path | None, name: str, as_json: bool) -> None:
    """Tell what a model takes: each parameter natively, emulated or refused, and why."""
    import json

    from andthen.cli.local import named
    from andthen.sources import abilities

    config = settings(config_file)
    name = name if "/" in name else f"local/{name}"
    if name not in config.engine.models:
        raise click.UsageError(f"{name} is not configured: `andthen models` lists the models.")
    model = named(_described(config), name)
    row = abilities(model, config.limits).row()
    if as_json:
        click.echo(json.dumps({"name": name} | row, indent=2))
        return
    facts = {
        "name": name,
        "about": model.description.replace(" ?B", ""),  # so llama.cpp writes a size it has no name for
        "parameters": f"{model.parameters:,}",
        "context": f"{model.context:,} tokens",
        "vocabulary": f"{model.vocab_size:,} tokens",
        "deterministic": "yes" if model.deterministic else "no",
        "fingerprint": model.fingerprint,
        "file": config.engine.models[name].path,
    }
    click.echo("\n".join(f"{key:<14} {value}" for key, value in facts.items()) + "\n")
    rows = [
        [parameter, ability.get("how", ability["support"]), _range(ability), ability.get("reason", "")]
        for parameter, ability in row["parameters"].items()
    ]
    click.echo(table(["PARAMETER", "TAKEN", "RANGE", "WHY"], rows))


@models.command()
@click.argument("name", metavar="hf:OWNER/REPO:FILE.gguf")
def pull(name: str) -> None:
    """Fetch a model from the Hugging Face hub into its cache.

    Prints the file's path. HF_HOME moves the cache, HF_ENDPOINT names another hub, HF_TOKEN opens private ones.
    """
    from andthen.engine.hub import HubFile

    try:
        file = HubFile.parse(name)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    path = file.pull()
    click.echo(path)
    click.echo(f"Serve it with: andthen serve --model {path.stem}={file}", err=True)


def _described(config: Any) -> list[ModelInfo]:
    from andthen.cli.local import running

    with running(config) as engine:
        return engine.describe()


def _range(ability: dict[str, Any]) -> str:
    low, high = ability.get("minimum"), ability.get("maximum")
    if high is None:
        return "" if low is None else f"at least {low}"
    return f"at most {high}" if low is None else f"{low} to {high}"
