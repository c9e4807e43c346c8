"""The tables of docs/settings.md, printed from the settings themselves."""

from __future__ import annotations

import inspect

import msgspec
from msgspec import Struct

from andthen.config import SECTIONS
from andthen.config.local_models import ModelTable
from andthen.config.prices import PricesTable
from andthen.config.remote_tables import RemoteTable, RouteTable, VendorTable
from andthen.config.values import describe, setting_types, variable_name
from andthen.contract.markdown import field_documents

TABLES: dict[str, type[Struct]] = {
    '[models."local/NAME"]': ModelTable,
    "[vendors.PREFIX]": VendorTable,
    '[models."VENDOR/NAME"]': RemoteTable,
    '[models."VENDOR/NAME"] of several deployments, or an alias': RouteTable,
    '[prices."VENDOR/NAME"]': PricesTable,
}


def settings_markdown() -> str:
    """Every section, then the tables of models, vendors and prices."""
    parts = [_table_markdown(f"[{section}]", kind, section) for section, kind in SECTIONS.items()]
    return "\n\n".join([*parts, *(_table_markdown(title, kind, None) for title, kind in TABLES.items())])


def _table_markdown(title: str, kind: type[Struct], section: str | None) -> str:
    documents = field_documents(kind)
    head, bracket, more = title.partition("]")
    about = [inspect.cleandoc(kind.__doc__), ""] if kind.__doc__ else []
    rows = [f"### `{head}{bracket}`{more}", "", *about, "| setting | default | must be | |", "|---|---|---|---|"]
    defaults = {field.name: field for field in msgspec.structs.fields(kind)}
    for name, wanted in setting_types(kind).items():
        variable = f"<br>`{variable_name(section, name)}`" if section else ""
        written = defaults[name].encode_name
        rows.append(f"| `{written}`{variable} | {_default(defaults[name])} | {describe(wanted)} | {documents[name]} |")
    return "\n".join(rows)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default in (None, "", (), {}, msgspec.NODEFAULT):
        return "–"
    return f"`{msgspec.json.encode(field.default).decode()}`"
