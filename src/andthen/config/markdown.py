"""The tables of docs/settings.md, printed from the settings themselves."""

from __future__ import annotations

import ast
import inspect
import itertools

import msgspec
from msgspec import Struct

from andthen.config import SECTIONS
from andthen.config.local_models import ModelTable
from andthen.config.remote_tables import RemoteTable, RouteTable, VendorTable
from andthen.config.values import describe, setting_types, variable_name

TABLES: dict[str, type[Struct]] = {
    '[models."local/NAME"]': ModelTable,
    "[vendors.PREFIX]": VendorTable,
    '[models."VENDOR/NAME"]': RemoteTable,
    '[models."VENDOR/NAME"] of several deployments, or an alias': RouteTable,
}


def settings_markdown() -> str:
    """Every section, then the tables of models and vendors."""
    parts = [_table_markdown(f"[{section}]", kind, section) for section, kind in SECTIONS.items()]
    return "\n\n".join([*parts, *(_table_markdown(title, kind, None) for title, kind in TABLES.items())])


def _table_markdown(title: str, kind: type[Struct], section: str | None) -> str:
    documents = _documents(kind)
    head, bracket, more = title.partition("]")
    about = [inspect.cleandoc(kind.__doc__), ""] if kind.__doc__ else []
    rows = [f"### `{head}{bracket}`{more}", "", *about, "| setting | default | must be | |", "|---|---|---|---|"]
    defaults = {field.name: field for field in msgspec.structs.fields(kind)}
    for name, wanted in setting_types(kind).items():
        variable = f"<br>`{variable_name(section, name)}`" if section else ""
        rows.append(f"| `{name}`{variable} | {_default(defaults[name])} | {describe(wanted)} | {documents[name]} |")
    return "\n".join(rows)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default in (None, "", (), {}, msgspec.NODEFAULT):
        return "–"
    return f"`{msgspec.json.encode(field.default).decode()}`"


def _documents(kind: type[Struct]) -> dict[str, str]:
    """Setting → the text that stands under its field in the source."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__[: kind.__mro__.index(Struct)]):
        (body,) = ast.parse(inspect.getsource(owner)).body
        for field, text in itertools.pairwise(body.body if isinstance(body, ast.ClassDef) else []):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(document))):
                    found[name] = " ".join(document.split())
    return found
