"""`andthen complete`: a completion in the terminal, by the engine in this process or by a vendor.

Its options are the contract's fields, made from the contract's own table.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from andthen.cli.settings import config_option, default_model, settings
from andthen.contract.fields import Field, completion_fields
from andthen.contract.limits import Limits

if TYPE_CHECKING:
    from andthen.config import Config
    from andthen.contract.events import Event
    from andthen.contract.request import CompletionRequest
    from andthen.contract.response import Head

_NOT_OPTIONS = {"model", "prompt"}
"""Fields that are given otherwise."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Json(click.ParamType[Any]):
    """A value as it stands in a request's body."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            self.fail(f"{value!r} is not JSON.", param, ctx)


def _field_options(command: _Command) -> _Command:
    for field in reversed(completion_fields(Limits())):
        if field.name not in _NOT_OPTIONS:
            command = _option(field)(command)
    return command


def _option(field: Field) -> Callable[[_Command], _Command]:
    name = field.name.replace("_", "-")
    flags = [f"-{name}", f"--{name}"] if len(name) == 1 else [f"--{name}"]
    kinds = [field.shape.schema.get("type"), *(one.get("type") for one in field.shape.schema.get("anyOf", ()))]
    about: dict[str, Any] = {"help": field.text, "default": None}
    if "boolean" in kinds:
        flags = [f"--{name}/--no-{name}"] if field.default else flags
        about |= {"is_flag": True}
    elif "integer" in kinds or "number" in kinds:
        about |= {"type": int if "integer" in kinds else float, "metavar": kinds[0].upper()}
    elif kinds == ["string"]:
        about |= {"metavar": "TEXT"}
    elif "string" in kinds:
        about |= {"metavar": "TEXT", "multiple": True, "help": f"{field.text} May be given several times."}
    else:
        about |= {"type": _Json(), "metavar": "JSON"}
    if field.default:
        about["help"] += f" [default: {json.dumps(field.default)}]"
    return click.option(*flags, field.name, **about)


@click.command()
@click.argument("prompts", metavar="PROMPT...", nargs=-1)
@click.option("--prompt-json", type=_Json(), metavar="JSON", help="The prompt as a request has it, such as [1, 2, 3].")
@click.option(
    "--model",
    metavar="NAME[=PATH]",
    help="A configured model, or any GGUF file under a name of yours. [default: the shipped one]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the response, or with --stream its events.")
@config_option
@_field_options
def complete(
    *,
    prompts: tuple[str, ...],
    prompt_json: Any,
    model: str | None,
    as_json: bool,
    config_file: Path | None,
    **fields: Any,
) -> None:
    """Go on with PROMPT, here and now, without a server.

    PROMPT `-` is read from standard input, less one final line break. Several prompts are answered one after
    another.

    \b
        andthen complete "Once upon a time" --max-tokens 100 --temperature 0.7
    """
    if bool(prompts) == (prompt_json is not None):
        raise click.UsageError("Give a PROMPT, or - to read it from standard input, or --prompt-json.")
    if fields["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs shows in the JSON only: add --json.")
    config = settings(config_file, models=[model] if model and "=" in model else [])
    name = _model_name(model, config)
    prompt = prompt_json if prompt_json is not None else [_text(prompt) for prompt in prompts]
    body = {key: value for key, value in fields.items() if value not in (None, ())}
    if not as_json and "best_of" not in body:
        body["stream"] = True  # so that the text comes as it is made
    _run(json.dumps({"model": name, "prompt": prompt} | body), config, as_json=as_json)


def _model_name(model: str | None, config: Config) -> str:
    if model is None:
        if not config.engine.models:
            raise click.UsageError("No local model is configured: name a file with --model NAME=PATH.")
        return default_model(config)
    name = model.partition("=")[0]
    name = name if "/" in name else f"local/{name}"
    if name not in config.engine.models:
        if "=" not in model and (model.endswith(".gguf") or Path(model).is_file()):
            raise click.BadParameter(f"a file needs a name: --model NAME={model}", param_hint="--model")
        shares = config.upstream.routes.get(name, ())
        if any(share.model in config.engine.models for share in shares):
            raise click.BadParameter(
                f"{name} stands for a local model and others: name one of them, or ask `andthen serve`.",
                param_hint="--model",
            )
        if shares or config.upstream.find(name):
            return name
        raise click.BadParameter(f"{name} is not configured: `andthen models` lists the models.", param_hint="--model")
    return name


def _text(prompt: str) -> str:
    if prompt != "-":
        return prompt
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise click.UsageError("Standard input is not UTF-8 text.") from None


def _run(body: str, config: Config, *, as_json: bool) -> None:
    from andthen.cli.local import named, running
    from andthen.contract.request import parse
    from andthen.gateway.local import abilities
    from andthen.plan.plan import plan

    request = parse(body.encode(), config.limits)
    if request.model not in config.engine.models:
        _run_upstream(request, config, as_json=as_json)
        return
    with running(config) as engine:
        models = engine.describe()
        model = named(models, request.model)
        plan(request, abilities(model, config.limits), [abilities(other, config.limits) for other in models])
        events = engine.complete(request)
        if as_json:
            _print_json(request, _head(model.name, model.fingerprint), events)
        else:
            _print_text(request, events)


def _run_upstream(request: CompletionRequest, config: Config, *, as_json: bool) -> None:
    from andthen.cli.upstream import executing

    with executing(request, config) as (execution, events):
        if as_json:
            first = next(events, None)  # settles who answers
            shown = events if first is None else itertools.chain([first], events)
            _print_json(request, _head(execution.answering.model, execution.fingerprint), shown)
        else:
            _print_text(request, events)


def _head(model: str, fingerprint: str | None) -> Head:
    import secrets
    import time

    from andthen.contract.response import Head

    return Head(f"cmpl-{secrets.token_hex(16)}", int(time.time()), model, fingerprint)


def _print_json(request: CompletionRequest, head: Head, events: Iterable[Event]) -> None:
    from andthen.contract.response import Completion, Stream

    out = sys.stdout.buffer
    if request.stream:
        stream = Stream(request, head)
        for event in events:
            out.write(stream.feed([event]))
            out.flush()
        return
    completion = Completion(request)
    for event in events:
        completion.feed([event])
    out.write(completion.body(head) + b"\n")


def _print_text(request: CompletionRequest, events: Iterable[Event]) -> None:
    """One choice as it is made; several one after another, each under a line with its index."""
    choices = len(request.prompts) * request.n
    made = [""] * choices
    last = "\n"
    for index, text in _shown(request, events):
        made[index] += text
        if choices == 1 and text:
            _write(text)
            last = text[-1]
    if choices > 1:
        _write("\n".join(f"--- {index}\n{text}" for index, text in enumerate(made)) + "\n")
    elif last != "\n":
        _write("\n")


def _shown(request: CompletionRequest, events: Iterable[Event]) -> Iterator[tuple[int, str]]:
    """(choice, text) of each event that has any."""
    from andthen.contract.events import PromptScored, Text

    for event in events:
        if isinstance(event, Text):
            yield event.prompt * request.n + event.candidate, event.text
        elif isinstance(event, PromptScored) and request.echo:
            for index in range(event.prompt * request.n, (event.prompt + 1) * request.n):
                yield index, event.text


def _write(text: str) -> None:
    """A model may write what steers a terminal: there it is shown as U+FFFD."""
    if sys.stdout.isatty():
        text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    sys.stdout.write(text)
    sys.stdout.flush()
