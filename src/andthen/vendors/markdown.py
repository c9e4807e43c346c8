"""The matrix of vendors × parameters, for the terminal and for docs/vendors.md, made from the rows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from msgspec import NODEFAULT
from msgspec.structs import fields, replace

from andthen.contract.limits import Limits
from andthen.contract.markdown import field_documents
from andthen.plan.abilities import Abilities, Ability, contract_parameters
from andthen.vendors.rows import ModelRow, VendorRow, language_struct, languages, vendors

LEGEND = "N native, E emulated, – refused; beside it what is taken, where that is less than the contract's"

_WILD = re.compile(r"\[(.)[^]]*\]|[*?]")
_LONG = 10_000
_POWERS: dict[float, str] = {
    2**31 - 1: "2³¹−1",
    -(2**31): "-2³¹",
    2**32 - 1: "2³²−1",
    2**53 - 1: "2⁵³−1",
    2**63 - 1: "2⁶³−1",
    -(2**63): "-2⁶³",
}
_FORMS = {"text": "prompt", "texts": "prompts", "token_ids": "token ids", "empty": "empty prompt"}


def cells(abilities: Abilities) -> dict[str, str]:
    """Column → cell, in the order of the columns."""
    whole = contract_parameters(Limits())
    whole["stop"] = replace(whole["stop"], minimum=1)  # none at all is the same as leaving it out
    found = {title: _cell(abilities.prompt_forms[form]) for form, title in _FORMS.items()}  # type: ignore[index]
    found["echo+logprobs"] = _cell(abilities.prompt_logprobs)
    return found | {name: _cell(ability, whole[name]) for name, ability in abilities.parameters.items()}


def _cell(ability: Ability, whole: Ability | None = None) -> str:
    if ability.support == "refused":
        return "–"
    native = _range(ability.native_minimum, ability.native_maximum)
    if native:
        return f"N {native}, else E"
    letter = "N" if ability.support == "native" else "E"
    if whole is None or (ability.minimum, ability.maximum) == (whole.minimum, whole.maximum):
        return letter
    low = ability.minimum if ability.minimum != whole.minimum else None
    high = ability.maximum if ability.maximum != whole.maximum else None
    return f"{letter} {_range(low, high)}".rstrip()


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return "" if high is None else f"≤ {number(high)}"
    return f"≥ {number(low)}" if high is None else f"{number(low)}..{number(high)}"


def number(value: float) -> str:
    """A bound, in figures that can be read."""
    return _POWERS.get(value) or (f"{value:g}" if abs(value) < _LONG else f"{value:.0f}")


def vendors_markdown() -> str:
    """The tables of docs/vendors.md: who there is, what each takes, and which models of theirs differ."""
    rows = vendors()
    taken = {prefix: cells(_abilities(row)) for prefix, row in rows.items()}
    columns = list(next(iter(taken.values())))
    return "\n\n".join(
        [
            _table(
                ["vendor", "names begin with", "key variable", "address", "language"],
                [
                    [row.name, f"`{prefix}/`", _code(row.key_variable), _code(row.address), f"`{row.language}`"]
                    for prefix, row in rows.items()
                ],
            ),
            f"{LEGEND}.",
            _table(
                ["", *(f"`{name}`" for name in columns)],
                [[f"`{prefix}`", *(of_one[name] for name in columns)] for prefix, of_one in taken.items()],
            ),
            "Models that differ from their vendor's row:",
            _table(["vendor", "models", "what differs"], _differing(rows)),
            "Where the facts were read, and when:",
            _table(
                ["vendor", "source", "checked"],
                [[f"`{prefix}`", row.source, row.checked.isoformat()] for prefix, row in rows.items()],
            ),
        ]
    )


def _abilities(row: VendorRow, model: str = "") -> Abilities:
    return row.resolve(model).abilities(model, Limits())


def _differing(rows: Mapping[str, VendorRow]) -> list[list[str]]:
    """Models with the same differences share a line."""
    lines: list[list[str]] = []
    for prefix, row in rows.items():
        usual = cells(_abilities(row))
        alike: dict[str, list[str]] = {}
        for models in row.models:
            alike.setdefault(_differences(row, models, usual), []).append(f"`{models.match}`")
        lines += [[f"`{prefix}`", ", ".join(names), said] for said, names in alike.items() if said]
    return lines


def _differences(row: VendorRow, models: ModelRow, usual: dict[str, str]) -> str:
    name = _WILD.sub(lambda found: found[1] or "", models.match)
    resolved = row.resolve(name)
    own = cells(resolved.abilities(name, Limits()))
    said = [f"`{column}` {cell}" for column, cell in own.items() if cell != usual[column]]
    if resolved.language != row.language:
        said.insert(0, f"speaks `{resolved.language}`")
    return ", ".join(said)


def dialects_markdown() -> str:
    """The table of docs/upstream.md: each language, and what its dialects may say."""
    rows = []
    for name in languages():
        struct = language_struct(name)
        documents = field_documents(struct)
        for field in fields(struct):
            default = field.default_factory() if field.default is NODEFAULT else field.default
            rows.append([f"`{name}`", f"`{field.name}`", f"`{json.dumps(default)}`", documents.get(field.name, "")])
    return _table(["language", "field", "default", ""], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else "–"
