"""Recorded exchanges through a vendor's own client. Standard input has them, one a line; standard output says of each
what the client sent, what its types say against the fields, and what it read or which error it raised.

It runs where nothing but the client is, and what the client itself brings: pydantic, and httpx by one of its names.
"""

import base64
import functools
import json
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pydantic


@dataclass(frozen=True)
class Exchange:
    url: str
    key: str
    body: dict
    streams: bool
    status: int
    headers: dict
    reply: bytes


class Fields:
    """The fields of a body: those that a method names, and the rest.

    Args:
        without: names of the method's that are not for a body.
    """

    def __init__(self, method, body: Mapping, without=()) -> None:
        hints = hints_of(getattr(method, "__func__", method))
        known = hints.keys() - {"return", *without}
        self.named = {name: value for name, value in body.items() if name in known}
        self.rest = {name: value for name, value in body.items() if name not in known}
        self.against = [f"{name}: not named" for name in self.rest]
        for name, value in self.named.items():
            self.against += [f"{name}{said}" for said in against(hints[name], value)]


@functools.cache
def hints_of(function) -> dict:
    return typing.get_type_hints(function)


@functools.cache
def adapter(hint) -> pydantic.TypeAdapter:
    if isinstance(hint, type) and issubclass(hint, pydantic.BaseModel):
        return pydantic.TypeAdapter(hint)
    config = pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    return pydantic.TypeAdapter(eager(hint), config=config)


def against(hint, value) -> list[str]:
    """What a type says against a value: where, and what. Keys that a typed dictionary doesn't name are against it."""
    try:
        drain(adapter(hint).validate_python(value))
    except pydantic.ValidationError as error:
        return [complaint(said) for said in error.errors() if "is-instance[Omit]" not in said["loc"]]
    return []


def complaint(said) -> str:
    """One place in a list stands for all."""
    place = "".join("[]" if isinstance(part, int) else f".{part}" for part in said["loc"])
    return f"{place}: {said['msg']}"


def eager(hint):
    """The same type with lists for what pydantic would check only as it is read, and so take for any list."""
    if typing.get_origin(hint) is Iterable:
        return list[eager(typing.get_args(hint)[0])]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.Union[tuple(eager(part) for part in typing.get_args(hint))]  # noqa: UP007
    return hint


def drain(value) -> None:
    """Reads what is checked only as it is read."""
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | pydantic.BaseModel):
        for part in value:
            drain(part)


class Heard:
    """What a client read, candidate by candidate."""

    def __init__(self) -> None:
        self.candidates: dict[int, dict] = {}
        self.usage: dict = {}
        self.counts: dict = {}
        self.against: set[str] = set()

    def whole(self, told) -> None:
        """Clients read leniently: this asks the type of what was read whether it takes it."""
        read = told.model_dump(by_alias=True, exclude_unset=True, warnings=False)
        self.against |= {f"{type(told).__name__}{said}" for said in against(type(told), read)}

    def add(self, index=0, text=None, reason=None, tokens=()) -> None:
        candidate = self.candidates.setdefault(index, {"text": "", "reasons": [], "tokens": []})
        candidate["text"] += text or ""
        candidate["reasons"] += [reason] if reason else []
        candidate["tokens"] += [list(token) for token in tokens]

    def used(self, prompt, completion, cached=None, reasoning=None) -> None:
        told = {"prompt": prompt, "completion": completion, "cached": cached, "reasoning": reasoning}
        self.usage |= {name: count for name, count in told.items() if count is not None}


def play(ask, httpx, tidy=lambda body: body) -> None:
    """
    Args:
        ask: (exchange, transport, heard, said) → None. Has the client perform the exchange, adds what it reads to
            `heard`, and to `said` what its types say against the fields.
        httpx: the module that the client stands on.
        tidy: of a body that the client sent, the same in the call's words.
    """
    for line in sys.stdin:
        told = json.loads(line)
        exchange = Exchange(**told | {"reply": base64.b64decode(told["reply"])})
        print(json.dumps(answered(ask, httpx, tidy, exchange)), flush=True)


def answered(ask, httpx, tidy, exchange: Exchange) -> dict:
    sent = []

    def answer(request):
        url, _, _ = str(request.url).partition("#")
        sent.append({"url": url, "headers": dict(request.headers), "body": tidy(json.loads(request.read()))})
        kind = {"content-type": "text/event-stream" if exchange.streams else "application/json"}
        return httpx.Response(exchange.status, headers=kind | exchange.headers, content=exchange.reply)

    heard, said, error = Heard(), [], None
    try:
        ask(exchange, httpx.MockTransport(answer), heard, said)
    except Exception as raised:  # whatever the client raises is what is asked for
        error = f"{type(raised).__name__}: {raised}"
    return {
        "sent": sent,
        "against_request": said,
        "against_reply": sorted(heard.against),
        "candidates": heard.candidates,
        "usage": heard.usage,
        "error": error,
    }
