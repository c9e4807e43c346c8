"""`andthen explain`: what would become of a request, and the calls that it would take. Sends nothing."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import click
from msgspec.structs import fields, replace

from andthen.cli.settings import config_option, settings
from andthen.contract.errors import UnsupportedParameter
from andthen.contract.request import CompletionRequest, parse
from andthen.contract.response import error_body
from andthen.plan.abilities import Abilities
from andthen.plan.plan import Plan
from andthen.vendors.rows import vendors
from andthen.vendors.settings import Remote
from andthen.wire.base import Call

if TYPE_CHECKING:
    from andthen.config import Config

_BLANK = "***"
_SIGNED = "authorization"
"""Its first word may be shown; a signature opens the same call again."""
_CONTROL = re.compile(r"[\x7f-\x9f]")


@click.command()
@click.option("--model", metavar="NAME", help="The model to ask. [default: the request's own]")
@click.option("--curl", "as_curl", is_flag=True, help="Print each call as a curl command.")
@config_option
def explain(*, model: str | None, as_curl: bool, config_file: Path | None) -> None:
    """Tell what becomes of a request, and the calls it takes, without making them.

    The request is the JSON of a completion, on standard input. Keys and other secrets are blanked.

    \b
        andthen explain --model openai/gpt-5.5 < request.json
    """
    config = settings(config_file)
    request = parse(_body(model), config.limits)
    shares = config.upstream.routes.get(request.model)
    if shares is None:
        refusals = [_explain(request.model, request, config, as_curl=as_curl)]
    else:
        refusals = []
        for share in shares:
            click.echo(f"=== {request.model}, order {share.order}, weight {share.weight:g}:")
            refusals.append(_explain(share.model, request, config, as_curl=as_curl))
            click.echo()
    if all(refusals) and refusals[0]:
        raise refusals[0]


def _body(model: str | None) -> bytes:
    """The request, asking for `model` where one is named."""
    body = sys.stdin.buffer.read()
    if model is None:
        return body
    try:
        members = json.loads(body)
    except ValueError:
        return body
    if not isinstance(members, dict):
        return body
    name = model if "/" in model else f"local/{model}"
    return json.dumps(members | {"model": name}).encode()


def _explain(name: str, request: CompletionRequest, config: Config, *, as_curl: bool) -> UnsupportedParameter | None:
    """Prints the plan and the calls; returns the refusal, if it is refused."""
    from andthen.cli.rows import row_of

    planned, refusals = _planned(request, row_of(name, config), config)
    click.echo(f"model {name}\n")
    width = max(map(len, request.given))
    words = dict(planned.steps) | {refusal.param or "": "refused" for refusal in refusals}
    for parameter in request.given:
        if parameter in words:
            click.echo(f"{parameter:<{width}}  {words[parameter]}")
    for refusal in refusals:
        click.echo(f"\n{refusal.status} {error_body(refusal).decode()}")
    if refusals:
        return refusals[0]
    if (found := config.upstream.find(name)) is None:
        click.echo("\nNothing goes upstream: the embedded engine answers.")
    else:
        _print_calls(request, planned, *found, as_curl=as_curl)
    return None


def _planned(
    request: CompletionRequest, abilities: Abilities, config: Config
) -> tuple[Plan, list[UnsupportedParameter]]:
    """The plan, and what is refused: each refused parameter in turn is then left out."""
    from andthen.cli.rows import every_row
    from andthen.plan.plan import plan

    refusals: dict[str | None, UnsupportedParameter] = {}
    while True:
        try:
            return plan(request, abilities, every_row(config)), list(refusals.values())
        except UnsupportedParameter as refusal:
            if refusal.param in refusals:
                raise
            refusals[refusal.param] = refusal
            request = _without(request, refusal.param)


def _without(request: CompletionRequest, parameter: str | None) -> CompletionRequest:
    """As if it had not been given; of a prompt, as if it were a plain text."""
    given = tuple(name for name in request.given if name != parameter)
    if parameter == "prompt":
        return replace(request, prompts=("text",), given=(*given, "prompt"))
    usual = {field.name: field.default for field in fields(request)}
    usual["best_of"] = request.n if "n" in given else 1
    left_out = {parameter: usual[parameter]} if parameter in usual else {}
    if parameter == "n" and "best_of" not in given:
        left_out["best_of"] = 1
    return replace(request, given=given, **left_out)


def _print_calls(request: CompletionRequest, planned: Plan, remote: Remote, model: str, *, as_curl: bool) -> None:
    from andthen.plan.spread import parts

    wire = remote.resolved(model).wire()
    target = remote.target(model, at_s=time.time())
    calls = [wire.encode(part.request, target, streams=part.streams) for part in parts(request, planned)]
    if not calls:
        click.echo("\nNo call is made: the reply needs nothing of the model.")
    for number, call in enumerate(calls, 1):
        click.echo(f"\n--- call {number} of {len(calls)}, {remote.access.timeouts.total_s:g} s at most")
        click.echo(_curl(call, remote) if as_curl else _written(call, remote))


def _written(call: Call, remote: Remote) -> str:
    headers = "\n".join(f"{name}: {value}" for name, value in _headers(call, remote))
    return f"{call.method} {_blanked(call.url, remote)}\n{headers}\n\n{_body_text(call, indent=2)}"


def _curl(call: Call, remote: Remote) -> str:
    words = ["curl", "-X", call.method, _blanked(call.url, remote)]
    for name, value in _headers(call, remote):
        words += ["-H", f"{name}: {value}"]
    return shlex.join([*words, "--data-binary", _body_text(call)])


def _headers(call: Call, remote: Remote) -> Iterator[tuple[str, str]]:
    """Without what may be secret: the key, a signature, and the values that the operator set."""
    row = vendors().get(remote.prefix)
    public = row.headers if row is not None else {}
    for name, value in call.headers:
        if name == _SIGNED and " " in value:
            yield name, f"{value.partition(' ')[0]} {_BLANK}"
        elif name == _SIGNED or (name in remote.headers and public.get(name) != value):
            yield name, _BLANK
        else:
            yield name, _blanked(value, remote)


def _blanked(text: str, remote: Remote) -> str:
    for secret in filter(None, remote.key.split("\n")):
        for written in {secret, quote(secret, safe="")}:
            text = re.sub(rf"(?<![\w-]){re.escape(written)}(?![\w-])", _BLANK, text)
    return text


def _body_text(call: Call, indent: int | None = None) -> str:
    text = json.dumps(json.loads(call.body), indent=indent, ensure_ascii=False)
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
