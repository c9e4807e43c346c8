"""`andthen models`: what can be asked, and getting more."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from andthen.cli.prices import in_words, prices_now
from andthen.cli.settings import config_option, settings
from andthen.cli.tables import table

if TYPE_CHECKING:
    from andthen.config import Config
    from andthen.vendors.settings import Share


class _Models(click.Group):
    """A word that is no command is a model's name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["show", *args])


@click.group(cls=_Models, invoke_without_command=True, subcommand_metavar="[NAME | COMMAND]")
@click.option("--matrix", is_flag=True, help="Print what every vendor and every configured model takes.")
@config_option
@click.pass_context
def models(ctx: click.Context, config_file: Path | None, *, matrix: bool) -> None:
    """List the configured models, or tell what one of them takes.

    \b
        andthen models
        andthen models local/tale
        andthen models --matrix
    """
    ctx.obj = config_file
    if ctx.invoked_subcommand is None:
        config = settings(config_file)
        parts = [_matrix(config)] if matrix else [_local(config), _remote(config), _routes(config)]
        click.echo("\n\n".join(part for part in parts if part))


def _local(config: Config) -> str:
    from andthen.cli.rows import described

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
        for model in described(config)
    ]
    return table(["NAME", "CONTEXT", "PARAMETERS", "SIZE", "SUFFIX", "DETERMINISTIC", "FILE"], rows) if rows else ""


def _remote(config: Config) -> str:
    """The models upstream; of a vendor also that any other of its models may be asked."""
    from andthen.cli.rows import remote_of, row_of

    rows = []
    for name in config.upstream.listed():
        remote, model = remote_of(name, config)
        row = row_of(name, config)
        context = "" if row.context is None else f"{row.context:,}"
        suffix = "yes" if row.fill_in_the_middle else "no"
        rows.append([name, context, suffix, remote.resolved(model).language, remote.vendor, model])
    for prefix, vendor in config.upstream.vendors.items():
        rows.append([f"{prefix}/…", "", "", vendor.language, vendor.vendor, "any other, by its own name"])
    return table(["NAME", "CONTEXT", "SUFFIX", "LANGUAGE", "VENDOR", "ITS NAME THERE"], rows) if rows else ""


def _routes(config: Config) -> str:
    rows = [
        [name, share.model, str(share.order), f"{share.weight:g}"]
        for name, shares in config.upstream.routes.items()
        for share in shares
    ]
    return table(["NAME", "STANDS FOR", "ORDER", "WEIGHT"], rows) if rows else ""


def _matrix(config: Config) -> str:
    """Tables one under another, each as wide as the terminal takes."""
    from andthen.cli.rows import described, row_of
    from andthen.gateway.local import abilities
    from andthen.vendors.markdown import LEGEND, cells
    from andthen.vendors.rows import vendors

    upstream = config.upstream
    taken: dict[str, dict[str, str]] = {}
    for prefix in dict.fromkeys([*upstream.vendors, *vendors()]):
        own = upstream.vendors.get(prefix)
        resolved = own.resolved() if own is not None else vendors()[prefix].resolve("")
        taken[f"{prefix}/"] = cells(resolved.abilities(f"{prefix}/", config.limits))
    taken |= {name: cells(row_of(name, config)) for name in upstream.models}
    taken |= {model.name: cells(abilities(model, config.limits)) for model in described(config)}
    columns = list(next(iter(taken.values())))
    widths = {column: max(len(column), *(len(cell[column]) for cell in taken.values())) for column in columns}
    wide = shutil.get_terminal_size((100, 24)).columns
    room = wide - max(map(len, taken))
    blocks: list[list[str]] = [[]]
    for column in columns:
        if blocks[-1] and sum(widths[one] + 2 for one in [*blocks[-1], column]) > room:
            blocks.append([])
        blocks[-1].append(column)
    tables = [
        table(["", *block], [[name, *(cell[c] for c in block)] for name, cell in taken.items()]) for block in blocks
    ]
    legend = textwrap.fill(f"{LEGEND}. A vendor's models may differ: `andthen models NAME`.", wide)
    return "\n\n".join([legend, *tables])


@models.command(hidden=True)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the row as JSON.")
@click.pass_obj
def show(config_file: Path | None, name: str, as_json: bool) -> None:
    """Tell what a model takes: each parameter natively, emulated or refused, and why."""
    config = settings(config_file)
    name = name if "/" in name else f"local/{name}"
    if (shares := config.upstream.routes.get(name)) is not None:
        told = [msgspec.to_builtins(share) for share in shares]
        click.echo(json.dumps({"name": name, "deployments": told}, indent=2) if as_json else _routes_of(name, shares))
        return
    facts, row = _facts_of_local(name, config) if name in config.engine.models else _facts_of_remote(name, config)
    price = prices_now([name], config)[name]
    if as_json:
        card = None if price is None else msgspec.to_builtins(price.card())
        click.echo(json.dumps({"name": name} | row | {"price": card}, indent=2))
        return
    facts["price"] = in_words(price)
    click.echo("\n".join(f"{key:<14} {value}" for key, value in facts.items()) + "\n")
    abilities = {f"prompt as {form.replace('_', ' ')}": ability for form, ability in row["prompt_forms"].items()}
    abilities |= {"prompt's logprobs": row["prompt_logprobs"]} | row["parameters"]
    rows = [
        [parameter, ability.get("how", ability["support"]), _range(ability), ability.get("reason", "")]
        for parameter, ability in abilities.items()
    ]
    click.echo(table(["PARAMETER", "TAKEN", "RANGE", "WHY"], rows))
    if card := _card(name, config):
        click.echo("\n" + card, nl=False)


def _card(name: str, config: Config) -> str:
    """The model card of the model that ships; none of others."""
    from andthen.config import HOUSE_MODEL

    if name != HOUSE_MODEL or name not in config.engine.models:
        return ""
    card = Path(config.engine.models[name].path).with_name("CARD.md")
    return card.read_text(encoding="utf-8") if card.is_file() else ""


def _routes_of(name: str, shares: Sequence[Share]) -> str:
    lines = [f"{share.model}, order {share.order}, weight {share.weight:g}" for share in shares]
    return f"{name} stands for\n" + "\n".join(lines)


def _facts_of_local(name: str, config: Config) -> tuple[dict[str, str], dict[str, Any]]:
    from andthen.cli.local import named
    from andthen.cli.rows import described
    from andthen.gateway.local import abilities

    model = named(described(config), name)
    return {
        "name": name,
        "about": model.description.replace(" ?B", ""),  # so llama.cpp writes a size it has no name for
        "parameters": f"{model.parameters:,}",
        "context": f"{model.context:,} tokens",
        "vocabulary": f"{model.vocab_size:,} tokens",
        "deterministic": "yes" if model.deterministic else "no",
        "fingerprint": model.fingerprint,
        "file": config.engine.models[name].path,
    }, abilities(model, config.limits).row()


def _facts_of_remote(name: str, config: Config) -> tuple[dict[str, str], dict[str, Any]]:
    from andthen.cli.rows import remote_of, row_of

    row = row_of(name, config)
    remote, model = remote_of(name, config)
    return {
        "name": name,
        "vendor": remote.vendor,
        "address": remote.address,
        "name there": model,
        "language": remote.resolved(model).language,
        "key": "yes" if remote.key else "no",
        "context": "not told" if row.context is None else f"{row.context:,} tokens",
        "deterministic": "yes" if row.deterministic else "no",
    }, row.row()


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


def _range(ability: dict[str, Any]) -> str:
    from andthen.vendors.markdown import number

    low, high = (None if (bound := ability.get(side)) is None else number(bound) for side in ("minimum", "maximum"))
    if high is None:
        return "" if low is None else f"at least {low}"
    return f"at most {high}" if low is None else f"{low} to {high}"
