"""What a setting may be: its type with its bounds, in words, and checked. Knows no setting and no file."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable

import msgspec
from msgspec import Struct

PREFIX = "ANDTHEN_"
_ELSEWHERE = {"models", "redact"}
"""Fields of the sections that have tables of their own."""


class ConfigError(Exception):
    """A setting that can't be; the message names its place and the remedy."""


def setting_types(kind: type[Struct]) -> dict[str, object]:
    """Setting → type with its bounds, for the fields of one section; its own before those that it inherits."""
    hints = typing.get_type_hints(kind, include_extras=True)
    owners = kind.__mro__[: kind.__mro__.index(Struct)]
    names = [name for owner in owners for name in inspect.get_annotations(owner)]
    return {name: hints[name] for name in names if name in kind.__struct_fields__ and name not in _ELSEWHERE}


def variable_name(section: str, name: str) -> str:
    return f"{PREFIX}{section}_{name}".upper()


def checked(value: object, wanted: object, error: Callable[[str], ConfigError]) -> object:
    """The value as the type that is wanted; `error` makes what is raised of the rule that it breaks."""
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as found:
        what, _, place = str(found).partition(" - at `$")  # in a list or a table, where
        raise error(f"must be {describe(wanted)}" + (f" (`{place}: {what})" if place else "")) from None


def parsed_variable(text: str, wanted: object, variable: str) -> object:
    """The value of an environment variable, as the type that is wanted.

    A list is a JSON array, or its values with commas between them. A table is a JSON object.

    Raises:
        ConfigError
    """
    form = _json_form(wanted)
    try:
        if form is None:
            return msgspec.convert(text, wanted, strict=False)
        if form == "list" and not text.lstrip().startswith("["):
            return msgspec.convert([part.strip() for part in text.split(",") if part.strip()], wanted, strict=False)
        return msgspec.json.decode(text, type=typing.cast("type[object]", wanted))
    except msgspec.MsgspecError:
        example = "" if form is None else f", written as JSON: {_EXAMPLES[form]}"
        if form == "list":
            example += ", or with commas between: a, b"
        raise ConfigError(f"{variable}: must be {describe(wanted)}{example}. Change or unset the variable") from None


_EXAMPLES = {"list": '["a", "b"]', "table": '{"name": "value"}'}


def _json_form(wanted: object) -> typing.Literal["list", "table"] | None:
    """`list` or `table` where the value of a setting is one; None where it is a scalar."""
    kind = msgspec.inspect.type_info(wanted)
    kinds = kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
    if any(isinstance(one, msgspec.inspect.VarTupleType | msgspec.inspect.TupleType) for one in kinds):
        return "list"
    if any(isinstance(one, msgspec.inspect.DictType | msgspec.inspect.StructType) for one in kinds):
        return "table"
    return None


def describe(wanted: object) -> str:
    """A type in words: `an integer from 0 to 65535`."""
    return _describe(msgspec.inspect.type_info(wanted))


def _describe(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            word = "an integer" if isinstance(kind, msgspec.inspect.IntType) else "a number"
            bounds = {"at least": kind.ge, "above": kind.gt, "at most": kind.le, "below": kind.lt}
            return ", ".join([word, *(f"{side} {bound}" for side, bound in bounds.items() if bound is not None)])
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.LiteralType(values=values):
            return "one of " + ", ".join(str(value) for value in values)
        case msgspec.inspect.VarTupleType(item_type=item):
            return f"a list, each {_describe(item)}"
        case msgspec.inspect.TupleType(item_types=items):
            return f"a list of {len(items)}: {', '.join(map(_describe, items))}"
        case msgspec.inspect.UnionType(types=types):
            return " or ".join(_describe(one) for one in types if not isinstance(one, msgspec.inspect.NoneType))
        case msgspec.inspect.StrType():
            return "a text"
        case msgspec.inspect.DateType():
            return "a day"
        case msgspec.inspect.DictType(value_type=msgspec.inspect.AnyType()):
            return "a table"
        case msgspec.inspect.DictType(value_type=value):
            return f"a table, each {_describe(value)}"
        case msgspec.inspect.StructType(fields=fields):
            return f"a table of {', '.join(field.name for field in fields)}"
    raise TypeError(f"no setting has the type {kind}")


def near(name: str, known: Iterable[str]) -> str:
    """What may have been meant."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"Did you mean `{close[0]}`?" if close else f"There are: {', '.join(names)}."
