"""The vendors' rows: read, put over one another, and made into what the plan and the wire want.

A row says nothing twice. What a model takes is the language's row, with the vendor's entries over it, with those of
the vendor's `models` whose pattern fits the model's name over these in their order, with the operator's over all.
"""

from __future__ import annotations

import datetime
import fnmatch
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import msgspec
from msgspec import Struct

from andthen.contract.limits import Limits
from andthen.plan.abilities import Abilities, Row, remote
from andthen.wire.base import Wire

LANGUAGES_FILE = "languages.toml"
_PATTERN = re.compile(r"[*?\[]")


class Profile(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row of abilities with the way to speak that goes with it."""

    dialect: dict[str, Any] = msgspec.field(default_factory=dict)
    """Fields of the language's struct."""


class ModelRow(Profile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Models of one vendor that differ from its others."""

    match: str
    """A pattern (`*`, `?`, `[…]`) of the vendor's own names. One without any is a model that lists name."""
    language: str = ""
    """Where these models speak another."""


class VendorRow(Profile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A vendor: the file's name is the prefix of its models' names."""

    name: str
    """How people write it: `OpenAI`."""
    address: str
    """The base of its URLs; empty where only the operator can know it. `{NAME}` is an environment variable."""
    language: str
    provider: str = ""
    """What OpenTelemetry's conventions for generative AI call it (`gen_ai.provider.name`), where not by the prefix."""
    key_variable: str = ""
    """The environment variable that holds its key; its presence switches the vendor on. Where a key has several parts,
    their variables with blanks between, `NAME?` for one that may be absent; the parts reach the wire joined by
    newlines."""
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    private: bool = False
    """It usually stands on this machine or its network, so its address may be private."""
    source: str
    """Where the facts were read: package and version, file and class, or a page."""
    checked: datetime.date
    """When they were read."""
    models: tuple[ModelRow, ...] = ()

    def resolve(self, model: str, over: Sequence[Profile] = ()) -> Resolved:
        """What is so of one model; `over` are the operator's entries, the last the strongest."""
        fitting = [row for row in self.models if fnmatch.fnmatchcase(model, row.match)]
        language = next((row.language for row in reversed(fitting) if row.language), self.language)
        return resolved(language, [self, *fitting, *over])

    def listed(self) -> list[str]:
        """The vendor's own names of models that lists show."""
        return [row.match for row in self.models if not _PATTERN.search(row.match)]


class Resolved(Struct, frozen=True, kw_only=True):
    """Profiles put over one another."""

    language: str
    profile: Profile

    def wire(self) -> Wire:
        """The language in this dialect. Raises msgspec.ValidationError for a dialect that it does not have."""
        wire: Wire = msgspec.convert(self.profile.dialect, language_struct(self.language))
        return wire

    def abilities(self, model: str, limits: Limits) -> Abilities:
        """The row of a model by its whole name."""
        return remote(model, self.profile, limits)


def resolved(language: str, profiles: Sequence[Profile]) -> Resolved:
    """The language's own row with `profiles` over it, the last the strongest."""
    merged = languages()[language]
    for profile in profiles:
        merged = laid_over(merged, profile)
    return Resolved(language=language, profile=merged)


def laid_over(below: Profile, above: Profile) -> Profile:
    """`above` where it says something, else `below`; tables entry by entry."""
    values: dict[str, Any] = {}
    for field in Profile.__struct_fields__:
        low, high = getattr(below, field), getattr(above, field)
        values[field] = {**low, **high} if isinstance(low, dict) else low if high is None else high
    return Profile(**values)


@cache
def languages() -> Mapping[str, Profile]:
    """Every language's own row, by its name."""
    table = tomllib.loads((resources.files(__package__) / LANGUAGES_FILE).read_text(encoding="utf-8"))
    return msgspec.convert(table, dict[str, Profile])


@cache
def vendors() -> Mapping[str, VendorRow]:
    """Every row that ships, by prefix, in the prefixes' order."""
    files = sorted(
        (file for file in resources.files(__package__).iterdir() if file.name.endswith(".toml")), key=lambda f: f.name
    )
    return {
        file.name.removesuffix(".toml"): msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), VendorRow)
        for file in files
        if file.name != LANGUAGES_FILE
    }


def language_struct(name: str) -> type[Any]:
    """A language, from the one file that may know it; its fields are what a dialect may say."""
    module = __import__(f"andthen.wire.{name}", fromlist=["Language"])
    return module.Language  # type: ignore[no-any-return]
