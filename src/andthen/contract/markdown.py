"""The tables of the documentation that the contract prints, parameters and errors, and what others print theirs by."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
from collections.abc import Sequence

from msgspec import Struct

from andthen.contract.errors import tree
from andthen.contract.fields import Field, completion_fields
from andthen.contract.limits import Limits


def parameters_markdown() -> str:
    """The tables of docs/parameters.md, with the default limits."""
    fields = completion_fields(Limits())
    return "\n".join(
        [
            *_parameters([field for field in fields if not field.extension]),
            "",
            "Extensions that servers of this contract share:",
            "",
            *_parameters([field for field in fields if field.extension]),
        ]
    )


def _parameters(fields: Sequence[Field]) -> list[str]:
    rows = ["| field | must be | default | example | meaning |", "|---|---|---|---|---|"]
    for field in fields:
        default = "required" if field.required else "–" if field.default is None else _code(field.default)
        rows.append(f"| `{field.name}` | {field.shape.says} | {default} | {_code(field.example)} | {field.text} |")
    return rows


def _code(value: object) -> str:
    return f"`{json.dumps(value)}`"


def errors_markdown() -> str:
    """The table of docs/errors.md."""
    rows = ["| status | type | code | another try may succeed | when |", "|---|---|---|---|---|"]
    for kind in sorted(tree(), key=lambda kind: kind.status):
        retry = "yes" if kind.retryable else "no"
        when = (kind.__doc__ or "").partition("\n")[0]
        rows.append(f"| {kind.status} | `{kind.type}` | `{kind.code}` | {retry} | {when} |")
    return "\n".join(rows)


def field_documents(kind: type[Struct]) -> dict[str, str]:
    """Field → the text that stands under it in the source."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__[: kind.__mro__.index(Struct)]):
        (body,) = ast.parse(inspect.getsource(owner)).body
        for field, text in itertools.pairwise(body.body if isinstance(body, ast.ClassDef) else []):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(document))):
                    found[name] = " ".join(document.split())
    return found
